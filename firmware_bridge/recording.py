"""What a display received, with the times at which it did: recorded, checked, replayed exactly.

A recording begins when a display is switched on, and holds one line for every step that it took:

    PVL-RECORDING 1
    <ms since it was switched on> <bytes in hex, or - for none>
    ...
    end <number of steps> <SHA-256 of the last frame buffer, or -> <SHA-256 of everything above this line>

ASCII, lines end with LF, times never go back. The display takes its time from the steps alone, so that a replay ends with the
same pixels; steps without bytes are in it for that. A file without its last line was cut off (a crash): what is whole of it
can still be replayed.

Plain wire bytes, as `physvlm run --wire` keeps them, have no times of arrival; they are replayed on the sender's clock.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from firmware_bridge.frame import Decoder, Verdict
from firmware_bridge.port import LinkError

HEAD = b"PVL-RECORDING 1\n"
MAX_FILE_BYTES = 64 << 20  # about 15 hours of VITALS, WAVE and HELLO
MAX_MEMORY_BYTES = 8 << 20  # about 2 hours; what a browser may send, too
MAX_STEP_BYTES = 65_536  # no port delivers more at once
_MAX_LINE = 2 * MAX_STEP_BYTES + 32
_MAX_END = 256
_MAX_MS = 1 << 40
TICK_MS = 50  # the display is stepped at least so often, as its firmware's loop would
SESSION_PAUSE_MS = 500  # put between the sessions of a wire file, whose clocks have nothing in common
MAX_SILENCE_MS = 10_000  # a longer silence in a wire file is cut to this; the screen has long been blank
Step = tuple[int, bytes]  # ms since the display was switched on; what arrived
_FLUSH_MS = 1_000  # a crash costs at most so much


class RecordingError(LinkError):
    """A recording that cannot be written, or that is not what was recorded."""


@dataclass(frozen=True)
class Recording:
    """A checked recording, in a file or in memory. screen: hash of its last frame buffer, "" where none was made."""

    source: Path | bytes
    steps: int
    duration_ms: int
    screen: str
    complete: bool

    @classmethod
    def read(cls, source: Path | bytes) -> Recording:
        """Reads all of it once. Raises RecordingError where it is no recording, or not as it was written."""
        digest = hashlib.sha256()
        steps = last_ms = 0
        with _opened(source) as file:
            if file.readline(_MAX_LINE) != HEAD:
                raise RecordingError(f"{_name(source)}: no recording; its first line is not {HEAD.decode().strip()!r}.")
            digest.update(HEAD)
            for line in _lines(file):
                if line.startswith(b"end "):
                    screen = _end(line, steps, digest.hexdigest(), _name(source))
                    return cls(source, steps, last_ms, screen, complete=True)
                try:
                    t_ms, _ = _step(line, steps, _name(source))
                    if t_ms < last_ms:
                        raise RecordingError(f"{_name(source)}: step {steps + 1} goes back in time; the file is damaged.")
                except RecordingError:
                    if _has_end(source):
                        raise
                    break  # it was cut off, and power lost within a write leaves worse than half a line
                digest.update(line)
                steps, last_ms = steps + 1, t_ms
        return cls(source, steps, last_ms, "", complete=False)

    def __iter__(self) -> Iterator[Step]:
        with _opened(self.source) as file:
            file.readline()
            for number, line in enumerate(_lines(file)):
                if number == self.steps:
                    return
                yield _step(line, number, _name(self.source))

    def as_bytes(self) -> bytes:
        with _opened(self.source) as file:
            return file.read()


def is_recording(path: str | Path) -> bool:
    """Whether the file begins as a recording does; anything else is taken for plain wire bytes."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(len(HEAD)) == HEAD
    return False


class Recorder:
    """Writes a recording, into FILE.partial until it is whole, or into memory. Ends by itself when it is full."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.steps = self.size = self.duration_ms = 0
        self.problem = ""  # why it ended by itself
        self._digest = hashlib.sha256()
        self._flushed_ms = 0
        self._file: BinaryIO = io.BytesIO() if path is None else _created(path)
        self._write(HEAD)

    def step(self, t_ms: int, data: bytes) -> bool:
        """False when it has ended by itself: full, or the disk is."""
        line = b"%d %s\n" % (t_ms, data.hex().encode() or b"-")
        if not self.problem and self.size + len(line) > (MAX_MEMORY_BYTES if self.path is None else MAX_FILE_BYTES):
            self.problem = "full"
        if self.problem:
            return False
        try:
            self._write(line)
            if t_ms - self._flushed_ms >= _FLUSH_MS:
                self._flushed_ms = t_ms
                self._file.flush()
        except OSError as error:
            self.problem = f"cannot be written ({error.strerror})"
            return False
        self.steps, self.duration_ms = self.steps + 1, t_ms
        return True

    def finish(self, screen: str) -> Recording:
        """Ends it and gives the file its name. screen: hash of the last frame buffer, "" for none."""
        end = f"end {self.steps} {screen or '-'} {self._digest.hexdigest()}\n".encode()
        if self.path is None:
            with self._file as memory:
                memory.seek(0)
                return Recording(memory.read() + end, self.steps, self.duration_ms, screen, complete=True)
        try:
            with self._file as file:
                file.write(end)
                file.flush()
                os.fsync(file.fileno())
            os.replace(_partial(self.path), self.path)
        except OSError as error:
            raise RecordingError(f"recording {self.path} cannot be finished ({error.strerror}); what was written is in "
                                 f"{_partial(self.path)}. Make room and replay that.") from error
        return Recording(self.path, self.steps, self.duration_ms, screen, complete=True)

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._digest.update(line)
        self.size += len(line)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _created(path: Path) -> BinaryIO:
    try:
        return open(_partial(path), "xb")
    except FileExistsError as error:
        raise RecordingError(f"{_partial(path)} exists: a recording that was cut off, or one that is being made. Replay it "
                             "or move it away first.") from error
    except OSError as error:
        raise RecordingError(f"recording {path} cannot be written ({error.strerror}); choose another path.") from error


def _opened(source: Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return open(source, "rb")
    except OSError as error:
        raise RecordingError(f"recording {source} cannot be read ({error.strerror}). Check the path.") from error


def _name(source: Path | bytes) -> str:
    return "the recording" if isinstance(source, bytes) else str(source)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Whole lines; one that was cut off ends the file."""
    while (line := file.readline(_MAX_LINE)).endswith(b"\n"):
        yield line


def _has_end(source: Path | bytes) -> bool:
    """Whether the last line is one that ends a recording."""
    with _opened(source) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _MAX_END))
        lines = file.read().splitlines(keepends=True)
    return bool(lines) and lines[-1].startswith(b"end ") and lines[-1].endswith(b"\n")


def _step(line: bytes, number: int, name: str) -> tuple[int, bytes]:
    t_ms, _, data = line.rstrip(b"\n").partition(b" ")
    try:
        if not t_ms.isdigit() or not data or (step := int(t_ms)) > _MAX_MS:
            raise ValueError
        return step, b"" if data == b"-" else bytes.fromhex(data.decode("ascii"))
    except ValueError as error:
        raise RecordingError(f"{name}: step {number + 1} reads {line[:40]!r}; expected milliseconds and hex. "
                             "The file is damaged.") from error


def _end(line: bytes, steps: int, digest: str, name: str) -> str:
    """Checks the last line and returns the hash of the last screen."""
    words = line.decode("ascii", "replace").split()
    if len(words) != 4 or words[1] != str(steps) or words[3] != digest:
        raise RecordingError(f"{name}: its hash does not match; it is not what was recorded. Take an undamaged copy.")
    return "" if words[2] == "-" else words[2]


def wire_file_steps(path: Path) -> Iterator[Step]:
    """Plain wire bytes on the sender's clock, with the steps that a display takes while nothing comes."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LinkError(f"wire file {path} cannot be read ({error.strerror}). Check the path.") from error
    tick_ms = 0
    for arrival_ms, chunk in _timeline(data):
        while tick_ms < arrival_ms:
            tick_ms = min(arrival_ms, tick_ms + TICK_MS)
            yield tick_ms, b""
        yield arrival_ms, chunk


def _timeline(data: bytes) -> Iterator[Step]:
    """Cuts wire bytes at their delimiters; every piece comes with the time of its frame, a bad one with that before."""
    decoder = Decoder()
    now_ms, session, last_t_ms, start = 0, None, 0, 0
    while start < len(data):
        end = data.find(b"\x00", start)
        end = len(data) if end < 0 else end + 1
        for frame in decoder.feed(data[start:end]):
            header = frame.header
            if frame.verdict is not Verdict.OK or header is None or header.type & 0x80:
                continue
            step_ms = (header.t_ms - last_t_ms) & 0xFFFFFFFF
            if session == header.session:
                if step_ms >= 0x80000000:  # older: it came late
                    continue
                now_ms += min(step_ms, MAX_SILENCE_MS)
            elif session is not None:
                now_ms += SESSION_PAUSE_MS
            session, last_t_ms = header.session, header.t_ms
        yield now_ms, data[start:end]
        start = end
