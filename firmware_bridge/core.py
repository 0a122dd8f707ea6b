"""The display's own C core, built with the system's compiler on first use and bound by ctypes.

CoreDisplay stands where rules.DisplayRules stands, and gives the framebuffer as well: what it shows is what the bedside
shows. rules.py remains the reference that it is tested against.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from firmware_bridge.frame import Counters, DecodedFrame, Decoder, Verdict
from firmware_bridge.messages import Status
from firmware_bridge.port import LinkError
from firmware_bridge.rules import Numeral, Screen
from firmware_bridge.schema import BANNER_TEXT, NO_SAMPLE, VERDICTS, Channel, ScreenMode

SOURCES = Path(__file__).with_name("display")
# What the code is held to by the tests; a build here lets -Werror go, since a newer compiler may warn of more.
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-ffreestanding")
WIDTH, HEIGHT = 800, 480
_VERDICTS = tuple(Verdict[name] for name in VERDICTS)
_MASK = 0xFFFFFFFF
_DISPLAY_BYTES = 256  # what pvl_display may need at most; pvl_core.c does not compile when it needs more
_TRACES_BYTES = 8192  # of which pvl_traces needs a third; a test compares
_STATUS_BYTES = 64
_LISTED_SAMPLES = 2000


class CoreError(LinkError):
    """The C core cannot be built or loaded on this machine."""


class DecodersDisagree(RuntimeError):
    """The C core judged a frame differently from frame.py: a bug in one of them, never trouble on the wire."""


def compiler() -> list[str]:
    """The system's C compiler as the start of a command line: $CC, or cc, gcc, clang."""
    named = shlex.split(os.environ.get("CC", ""))
    for candidate in [named] if named else (["cc"], ["gcc"], ["clang"]):
        if shutil.which(candidate[0]):
            return candidate
    raise CoreError(f"no C compiler: {named[0] if named else 'cc'} is not there, and C code of this program is built "
                          "on first use. Install one (Debian, Ubuntu: sudo apt-get install gcc), or name it in CC.")


def cache_folder() -> Path:
    """Where built libraries are kept. A folder that others may write is refused: what lies there is run."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "physvlm"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.stat()
    except OSError as error:
        raise CoreError(f"cache folder {folder} cannot be made ({error.strerror}). Name a writable place in "
                              "XDG_CACHE_HOME.") from error
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CoreError(f"cache folder {folder} may be written by others (mode {stat.S_IMODE(info.st_mode):o}, owner "
                              f"{info.st_uid}); expected one of this user's alone. Run chmod go-w on it, or name another "
                              "place in XDG_CACHE_HOME.")
    return folder


def build(sources: Sequence[Path], name: str, flags: Sequence[str] = ()) -> Path:
    """A shared library of C sources, from the cache when it was built before from the same bytes by the same compiler."""
    command = [*compiler(), *(flag for flag in FLAGS if flag != "-Werror"), *flags, "-O2", "-fPIC", "-shared", f"-I{SOURCES}"]
    digest = hashlib.sha256("\0".join([platform.machine(), *command]).encode())
    for path in sorted({*sources, *SOURCES.glob("*.h"), *(h for source in sources for h in source.parent.glob("*.h"))}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    folder = cache_folder()
    target = folder / f"{name}-{digest.hexdigest()[:20]}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
        built = Path(scratch, "built.so")
        done = subprocess.run([*command, "-o", str(built), *map(str, sources)], capture_output=True, text=True)
        if done.returncode:
            raise CoreError(f"the C code of {name} does not compile with {command[0]}:\n{done.stderr.strip()[-2000:]}\n"
                                  "Name another compiler in CC (gcc and clang are known to work).")
        with built.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(built, target)
    return target


class CNumeral(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char * 4), ("x10", ctypes.c_uint16), ("questionable", ctypes.c_uint8),
                ("bars", ctypes.c_uint8), ("averaging_s", ctypes.c_uint8), ("reason", ctypes.c_char_p)]

    def numeral(self) -> Numeral:
        return Numeral(self.text.decode("ascii"), bool(self.questionable), self.reason.decode("ascii"), self.bars,
                       self.averaging_s, self.x10)


class CView(ctypes.Structure):
    _fields_ = [("mode", ctypes.c_uint8), ("pr", CNumeral), ("rr", CNumeral), ("message", ctypes.c_char_p),
                ("banners", ctypes.c_uint8), ("testing", ctypes.c_uint8), ("alive", ctypes.c_uint16),
                ("host_t_ms", ctypes.c_uint32), ("has_host_t", ctypes.c_uint8), ("ok", ctypes.c_uint16),
                ("bad", ctypes.c_uint16), ("lost", ctypes.c_uint16), ("late", ctypes.c_uint16)]


_OnProduct = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_char))
_OnVerdict = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint8, ctypes.c_void_p, ctypes.c_size_t)


class CHooks(ctypes.Structure):
    _fields_ = [("user", ctypes.c_void_p), ("wave", ctypes.c_void_p), ("erase", ctypes.c_void_p),
                ("product", _OnProduct), ("verdict", _OnVerdict)]


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The core, the traces and the renderer. Raises CoreError."""
    path = build(sorted(SOURCES.glob("pvl_*.c")), "display")
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise CoreError(f"{path} cannot be loaded ({error}). Remove it and try again; the cache folder must not be "
                              "mounted noexec.") from error
    pointer, u32 = ctypes.c_void_p, ctypes.c_uint32
    loaded.pvl_init.argtypes = [pointer, u32]
    loaded.pvl_receive.argtypes = [pointer, ctypes.c_char_p, ctypes.c_size_t, u32, ctypes.POINTER(CHooks)]
    loaded.pvl_look.argtypes = [pointer, u32, ctypes.POINTER(CView)]
    loaded.pvl_status.argtypes = [pointer, u32, pointer]
    loaded.pvl_traces_erase.argtypes = [pointer]
    loaded.pvl_traces_look.argtypes = [pointer, ctypes.POINTER(CView), u32]
    loaded.pvl_traces_list.argtypes = [pointer, ctypes.c_uint8, pointer]
    loaded.pvl_draw.argtypes = [pointer, ctypes.POINTER(CView), pointer, ctypes.c_char_p]
    loaded.pvl_status.restype = loaded.pvl_traces_list.restype = ctypes.c_size_t
    for name in ("pvl_init", "pvl_receive", "pvl_look", "pvl_traces_erase", "pvl_traces_look", "pvl_draw"):
        getattr(loaded, name).restype = None
    return loaded


class CoreDisplay:
    """The C core in place of DisplayRules. Times are the display's own monotonic milliseconds; only their last 32 bits
    reach the core.

    lost, late: as of the last screen(), modulo 65536 as the core counts. decoder: describes the frames that the core judged.
    verdicts: (verdict, COBS bytes) of every frame in the last receive(), as the core judged them.
    """

    def __init__(self, now_ms: int) -> None:
        self._core = library()
        self.decoder = Decoder()
        self.verdicts: list[tuple[Verdict, bytes]] = []
        self._state = (ctypes.c_uint64 * (_DISPLAY_BYTES // 8))()
        self._traces = (ctypes.c_uint64 * (_TRACES_BYTES // 8))()
        self._view = CView()
        self._product = product = ctypes.create_string_buffer(17)
        verdicts = self.verdicts

        def on_product(_user: int, name: ctypes._Pointer[ctypes.c_char]) -> None:
            ctypes.memmove(product, name, 16)

        def on_verdict(_user: int, verdict: int, raw: int, n: int) -> None:
            verdicts.append((_VERDICTS[verdict], ctypes.string_at(raw, n)))

        self._hooks = CHooks(
            ctypes.addressof(self._traces), ctypes.cast(self._core.pvl_traces_wave, ctypes.c_void_p),
            ctypes.cast(self._core.pvl_traces_erase, ctypes.c_void_p), _OnProduct(on_product), _OnVerdict(on_verdict))
        self._core.pvl_traces_erase(self._traces)
        self._core.pvl_init(self._state, now_ms & _MASK)
        self._look(now_ms)

    def receive(self, data: bytes, now_ms: int) -> list[DecodedFrame]:
        """Takes what arrived (nothing, too: that it was looked at moves the alive mark). Returns the verdicts."""
        self.verdicts.clear()
        self._core.pvl_receive(self._state, data, len(data), now_ms & _MASK, self._hooks)
        decoded = self.decoder.feed(data)
        if [(frame.verdict, frame.raw) for frame in decoded] != self.verdicts:
            raise DecodersDisagree(f"on the bytes {data.hex()}: frame.py says {[f.verdict.value for f in decoded]}, "
                                   f"pvl_core.c {[verdict.value for verdict, _ in self.verdicts]}")
        return decoded

    def screen(self, now_ms: int) -> Screen:
        """What has to be on the glass at this moment."""
        self._look(now_ms)
        view = self._view
        return Screen(
            mode=ScreenMode(view.mode), pr=view.pr.numeral(), rr=view.rr.numeral(), message=view.message.decode("ascii"),
            banners=tuple(text for flag, text in BANNER_TEXT.items() if view.banners & flag), alive=view.alive,
            product=self._product.value.decode("ascii"), pulse=self._trace(Channel.PULSE), resp=self._trace(Channel.RESP),
            link=f"ok {view.ok} bad {view.bad} lost {view.lost} late {view.late}",
            host_t_ms=view.host_t_ms if view.has_host_t else None,
        )

    def status(self, now_ms: int) -> Status:
        """What was received, and what the last screen made put on the glass."""
        message = Decoder().feed(self.status_frame(now_ms))[0].message
        if not isinstance(message, Status):
            raise DecodersDisagree("frame.py does not accept the core's STATUS")
        return message

    def status_frame(self, now_ms: int) -> bytes:
        """The same as the core sends it, with a session, seq and clock of its own."""
        out = (ctypes.c_uint8 * _STATUS_BYTES)()
        return bytes(out[:self._core.pvl_status(self._state, now_ms & _MASK, out)])

    def frame_buffer(self) -> bytes:
        """The whole glass as the last screen() made it: 800x480 pixels, RGB565 little-endian, row by row."""
        pixels = (ctypes.c_uint16 * (WIDTH * HEIGHT))()
        self._core.pvl_draw(pixels, self._view, self._traces, self._product.value)
        return bytes(pixels)

    @property
    def testing(self) -> bool:
        """Whether the last screen() fell into the start-up segment test."""
        return bool(self._view.testing)

    @property
    def counters(self) -> Counters:
        """How many frames met each verdict; not wrapped."""
        return self.decoder.counters

    def _look(self, now_ms: int) -> None:
        self._core.pvl_look(self._state, now_ms & _MASK, self._view)
        self._core.pvl_traces_look(self._traces, self._view, now_ms & _MASK)
        self.lost, self.late = int(self._view.lost), int(self._view.late)

    def _trace(self, channel: Channel) -> tuple[int | None, ...]:
        samples = (ctypes.c_int8 * _LISTED_SAMPLES)()
        count = self._core.pvl_traces_list(self._traces, channel, samples)
        return tuple(None if sample == NO_SAMPLE else sample for sample in samples[:count])
