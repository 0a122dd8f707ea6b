"""The bedside display on this computer: source of bytes -> faults -> the display -> who looks. One clock, one thread.

What decides is the display (core.CoreDisplay, the firmware's own C); nothing here knows a rule. A Simulator may be spoken to
from other threads; whoever calls run() owns the port and the time.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from firmware_bridge import dump
from firmware_bridge.faults import Faults, FaultyWire
from firmware_bridge.frame import Counters, DecodedFrame, Sender, Verdict
from firmware_bridge.link import Health, Link
from firmware_bridge.messages import Status
from firmware_bridge.recording import TICK_MS, Recorder, Recording, RecordingError, Step, is_recording, wire_file_steps
from firmware_bridge.rules import DisplayRules, Screen
from firmware_bridge.schema import MessageType, ScreenMode

log = logging.getLogger(__name__)

PAINT_INTERVAL_MS = 100
STATUS_INTERVAL_MS = 1_000
FRAMES_KEPT = 20
WIDTH_PX, HEIGHT_PX = 800, 480

Steps = Iterator["Step | None"]  # None: nothing to do yet; the caller may attend to something else


class DisplayDevice(Protocol):
    """The display as the simulator sees it; times are milliseconds since it was switched on."""

    lost: int
    late: int

    @property
    def counters(self) -> Counters: ...
    def receive(self, data: bytes, now_ms: int) -> list[DecodedFrame]: ...
    def screen(self, now_ms: int) -> Screen: ...
    def status(self, now_ms: int) -> Status: ...


class PythonDisplay(DisplayRules):
    """The Python rules as a display: no pixels, and not what the bedside runs."""

    @property
    def counters(self) -> Counters:
        return self.decoder.counters


@dataclass(frozen=True)
class Heard:
    """A frame that reached the display, as text."""

    t_s: float
    good: bool
    text: str


@dataclass(frozen=True)
class Replay:
    """A recording that was played. same: the last screen's pixels were those of the recording; None where not known."""

    name: str
    over: bool = False
    screen: str = ""
    same: bool | None = None


@dataclass(frozen=True)
class Taking:
    """A recording that is being made; path None: in memory."""

    path: Path | None
    duration_s: float
    bytes: int


@dataclass(frozen=True)
class Look:
    """One look at the glass. t_s: since the simulator started; pixels: RGB565 little endian, b"" where the display has none
    or nobody asked for them; glass: their hash; testing: the start-up segment test is on.

    mode: "live", "replay" or "silent" (a replay is over, and nothing more comes).
    """

    number: int
    t_s: float
    screen: Screen
    testing: bool
    pixels: bytes
    glass: str
    counters: dict[str, int]
    damage: dict[str, int]
    faults: Faults
    frames: tuple[Heard, ...]
    source: str
    mode: str
    link: Health | None
    replay: Replay | None
    recorder: Taking | None
    recording: Recording | None
    problem: str


def pixel_hash(pixels: bytes) -> str:
    """SHA-256 of a frame buffer; "" without one."""
    return hashlib.sha256(pixels).hexdigest() if pixels else ""


class Simulator:
    """The display behind a wire that can be broken, recorded and replayed.

    source: an open Link, or a Recording or plain wire file to be replayed. make_display is called each time the display is
    switched on. paced: replays take their own time; else they run as fast as they go. stays: a display whose replay is over
    stays on, on a silent wire, until stop(). with_pixels: every Look brings them.
    """

    def __init__(self, source: Link | Recording | Path, make_display: Callable[[int], DisplayDevice], *,
                 faults: Faults | None = None, seed: int = 1, record: Path | None = None, send_status: bool = True,
                 paced: bool = True, stays: bool = False, with_pixels: bool = False,
                 clock: Callable[[], int] = time.monotonic_ns,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self._make_display, self._clock, self._sleep = make_display, clock, sleep
        self._link = source if isinstance(source, Link) else None
        self._send_status, self._paced, self._stays, self._with_pixels = send_status, paced, stays, with_pixels
        self._sender = Sender(clock)
        self._wire = FaultyWire(faults, seed)
        self._lock = threading.RLock()
        self._stopping = False
        self._on_look: Callable[[Look], None] = lambda look: None
        self._looks = 0
        self._run_ms = self._before_ms = self._t_ms = self._paint_ms = self._status_ms = 0
        self._recorder: Recorder | None = None
        self._recording: Recording | None = None
        self._replay: Replay | None = None
        self._frames: deque[Heard] = deque(maxlen=FRAMES_KEPT)
        self._problem = ""
        if isinstance(source, Link):
            self.go_live()
        else:
            self._play(source)
        if record is not None:
            self._recorder = Recorder(record)

    # --- what others may ask for, from any thread ---------------------------------------------------------------------

    def set_faults(self, faults: Faults) -> None:
        with self._lock:
            self._wire.faults = faults

    def stop(self) -> None:
        """Ends run() within a step."""
        self._stopping = True

    def go_live(self) -> None:
        """Switches the display on anew, at the port."""
        with self._lock:
            if self._link is None:
                raise RecordingError("there is no live port; the display was started with a file.")
            self._refuse_while_recording()
            self._switch_on("live", self._link.port, _live(self._link, self._clock))
            self._replay, self._problem = None, ""

    def replay(self, recording: Recording | None = None) -> None:
        """Switches the display on anew, at a recording (the last one made, where none is given), on a sound wire."""
        with self._lock:
            self._refuse_while_recording()
            self._recording = recording or self._recording
            if self._recording is None:
                raise RecordingError("nothing has been recorded yet; record first, or open a recording.")
            self._wire.faults = Faults()  # what was wrong with the wire is in the recording already
            self._play(self._recording)

    def start_recording(self) -> None:
        """Switches the display on anew, so that a replay can end with the same pixels, and keeps what it receives."""
        with self._lock:
            if self._mode != "live":
                raise RecordingError("only what comes from the live port is recorded; go back to it first.")
            self.go_live()
            self._recorder = Recorder()

    def stop_recording(self) -> Recording:
        with self._lock:
            if self._recorder is None:
                raise RecordingError("nothing is being recorded.")
            self._look()
            recorder, self._recorder = self._recorder, None
            self._recording = recorder.finish(pixel_hash(self._pixels()))
            return self._recording

    @property
    def recording(self) -> Recording | None:
        return self._recording

    def _refuse_while_recording(self) -> None:
        if self._recorder is not None:
            raise RecordingError("a recording is being made; stop it first.")

    # --- the thread that calls run() ----------------------------------------------------------------------------------

    def run(self, on_look: Callable[[Look], None], seconds: float | None = None, until_bye: bool = False) -> None:
        """Until stop(), the end of a replay, BYE (where asked for) or the time is up. Finishes a recording that is made."""
        self._on_look = on_look
        try:
            while not self._stopping and self._turn():
                if seconds is not None and self._run_ms >= 1000 * seconds:
                    break
                if until_bye and self._looks and self._last.mode is ScreenMode.STOPPED:
                    break
        finally:
            with self._lock:
                if self._looks:
                    self._look()
                if self._recorder is not None:
                    self.stop_recording()

    def _turn(self) -> bool:
        """One step of the display. False when there will be no more."""
        steps = self._steps
        try:
            step = next(steps)
        except StopIteration:
            with self._lock:
                return steps is not self._steps or self._end_of_replay()
        if self._mode != "live" and self._link is not None:
            self._link.read()  # a backlog would be stale; nobody looks at the live port now
        with self._lock:
            if step is not None and steps is self._steps:
                self._step(*step)
        return True

    def _step(self, t_ms: int, sent: bytes) -> None:
        self._wire.put(sent, t_ms)
        data = self._wire.take(t_ms)
        if self._recorder is not None and not self._recorder.step(t_ms, data):
            self._give_up_recording(self._recorder.problem)
        self._t_ms, self._run_ms = t_ms, self._before_ms + t_ms
        self._frames.extend(Heard(self._run_ms / 1000, frame.verdict is Verdict.OK and not frame.notes, dump.line(frame))
                            for frame in self._display.receive(data, t_ms))
        if t_ms >= self._paint_ms:
            self._paint_ms = t_ms + PAINT_INTERVAL_MS
            self._look()
        if self._mode == "live" and self._send_status and t_ms >= self._status_ms and self._link is not None:
            self._status_ms = t_ms + STATUS_INTERVAL_MS
            if not self._wire.faults.unplugged:
                self._link.offer(self._sender.encode(self._display.status(t_ms)), MessageType.STATUS)

    def _give_up_recording(self, problem: str) -> None:
        """A full disk ends the recording, not the display."""
        self._problem = f"the recording ended by itself: {problem}"
        log.error("%s", self._problem)
        try:
            self.stop_recording()
        except RecordingError as error:
            log.error("%s", error)

    def _look(self) -> None:
        self._last = self._display.screen(self._t_ms)
        self._looks += 1
        pixels = self._pixels() if self._with_pixels else b""
        display, recorder = self._display, self._recorder
        self._on_look(Look(
            self._looks, self._run_ms / 1000, self._last, getattr(display, "testing", False), pixels, pixel_hash(pixels),
            {**display.counters.as_dict(), "lost": display.lost, "late": display.late}, self._wire.damage.as_dict(),
            self._wire.faults, tuple(self._frames), self._source, self._mode,
            self._link.health() if self._link is not None else None, self._replay,
            Taking(recorder.path, recorder.duration_ms / 1000, recorder.size) if recorder is not None else None,
            self._recording, self._problem))

    def pixels(self) -> bytes:
        """The frame buffer as last looked at; b"" where the display has none."""
        with self._lock:
            return self._pixels()

    def _pixels(self) -> bytes:
        frame_buffer = getattr(self._display, "frame_buffer", None)
        return frame_buffer() if frame_buffer is not None else b""

    # --- switching the display on ---------------------------------------------------------------------------------------

    def _switch_on(self, mode: str, source: str, steps: Steps) -> None:
        self._mode, self._source, self._steps = mode, source, steps
        self._display = self._make_display(0)
        self._wire.clear()
        self._before_ms = self._run_ms
        self._t_ms = self._paint_ms = 0
        self._status_ms = STATUS_INTERVAL_MS
        self._frames.clear()

    def _play(self, source: Recording | Path) -> None:
        if isinstance(source, Path) and is_recording(source):
            source = Recording.read(source)
        if isinstance(source, Recording):
            steps: Iterable[Step] = source
            self._recording = source
            name = source.source.name if isinstance(source.source, Path) else "the last recording"
        else:
            steps, name = wire_file_steps(source), source.name
        self._switch_on("replay", name, _paced(steps, self._clock, self._sleep) if self._paced else iter(steps))
        self._replay, self._damage_before = Replay(name), self._wire.damage.as_dict()

    def _end_of_replay(self) -> bool:
        """Compares the last screen with the recording's; True where the display stays on."""
        if self._replay is not None and not self._replay.over:
            self._look()
            screen = pixel_hash(self._pixels())
            expected = self._recording.screen if self._recording is not None else ""
            untouched = not self._wire.faults.any and self._wire.damage.as_dict() == self._damage_before
            self._replay = Replay(self._replay.name, True, screen,
                                  screen == expected if screen and expected and untouched else None)
        if not self._stays:
            return False
        self._mode = "silent"
        self._steps = _paced(_silence(self._t_ms), self._clock, self._sleep, self._t_ms)
        return True


def _live(link: Link, clock: Callable[[], int]) -> Steps:
    start_ms = clock() // 1_000_000
    while True:
        data = link.read(timeout_s=TICK_MS / 1000)
        yield clock() // 1_000_000 - start_ms, data


def _silence(from_ms: int) -> Iterator[Step]:
    while True:
        from_ms += TICK_MS
        yield from_ms, b""


def _paced(steps: Iterable[Step], clock: Callable[[], int], sleep: Callable[[float], None], from_ms: int = 0) -> Steps:
    """Every step in its own time, counted from the first call. Never sleeps longer than a tick."""
    start_ns = clock() - from_ms * 1_000_000
    for t_ms, data in steps:
        while (ahead_ns := start_ns + t_ms * 1_000_000 - clock()) > 0:
            if ahead_ns <= TICK_MS * 1_000_000:
                sleep(ahead_ns / 1e9)
            else:
                sleep(TICK_MS / 1000)
                yield None
        yield t_ms, data
