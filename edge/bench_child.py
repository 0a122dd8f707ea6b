"""The appliance under test, in a process of its own: the very Live loop, a clip played over and over as if it were a camera,
and faults on command. `python -m edge.bench_child SPEC`; edge/bench.py starts it and listens.

stdin takes one command a line (see Faults.obey). stdout gives one JSON object a line: what was measured and what was sent.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.camera import Camera, CameraError, CameraLost, open_camera
from edge.config import load_config
from edge.memory import one_arena
from edge.pipeline import Engine, Hop, Stages
from edge.recorder import Recorder
from edge.records import Frame, Reading
from edge.runtime import Live, RuntimeFault, Tap, make_engine
from engines.errors import EngineError
from engines.sidecar import ModelSpec
from firmware_bridge.frame import DecodedFrame
from firmware_bridge.link import Health, LinkState
from firmware_bridge.schema import MessageType
from firmware_bridge.transmitter import Outlet

F32 = NDArray[np.float32]

REPORT_S = 1.0
LATE_NS = 300_000_000
"""A picture due longer ago than a camera's ring holds is lost, as it would be at a camera nobody reads."""


def emit(**line: Any) -> None:
    """One line in one write, so that a SIGKILL leaves whole ones."""
    os.write(1, (json.dumps(line, separators=(",", ":")) + "\n").encode())


class Faults:
    """What is wrong with the world just now. Commands come from a thread, the rest of the process asks."""

    def __init__(self) -> None:
        self._until_ns = {"stall": 0, "unplug": 0, "disk": 0, "readonly": 0, "memory": 0}
        self._failures, self._words = 0, ""
        sys.addaudithook(self._read_only)

    def obey(self, line: str) -> None:
        """"stall S", unplug, disk, readonly, memory alike: for S seconds; "engine N WORDS": the next N inferences fail."""
        name, _, rest = line.strip().partition(" ")
        if name == "engine":
            count, _, self._words = rest.partition(" ")
            self._failures = int(count)
            return
        self._until_ns[name] = time.monotonic_ns() + int(float(rest) * 1e9)
        if name in ("disk", "readonly"):
            # no file of this process may grow: what a full disk does, without filling one
            _limit(resource.RLIMIT_FSIZE, 0, float(rest))
        elif name == "memory":
            _limit(resource.RLIMIT_AS, 1, float(rest))  # not a page more than now

    def _read_only(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook, which may refuse: on a read-only disk nothing is opened for writing, made, moved or removed."""
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink") or (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) != 0)
        if changes and self.holds("readonly") and not str(args[0]).startswith("/dev/"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(args[0]))

    def holds(self, name: str) -> bool:
        return time.monotonic_ns() < self._until_ns[name]

    def inference(self) -> None:
        if self._failures > 0:
            self._failures -= 1
            raise EngineError(self._words or "told to fail")


def _limit(what: int, size: int, seconds: float) -> None:
    soft, hard = resource.getrlimit(what)
    timer = threading.Timer(seconds, resource.setrlimit, (what, (soft, hard)))
    timer.start()  # first: with no memory to have there would be no thread either
    resource.setrlimit(what, (size, hard))


class LoopedClip(Camera):
    """A clip for ever, as a camera: frames come at their time, are lost where nobody fetched them, and stop with a fault.

    It is rewound, not opened again: a decoder made anew each time would show as growing memory.
    """

    live, recorded = True, False

    def __init__(self, path: str, faults: Faults) -> None:
        with open_camera(path) as clip:  # says what is wrong with it, where something is
            self.width, self.height, self.fps_nominal = clip.width, clip.height, clip.fps_nominal
        self.name = f"bench:{path}"
        self._faults = faults
        self._clip = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        self._seq = -1
        self._stamp_ns = -1
        self._step_ns = 33_333_333
        self._start_ns = time.monotonic_ns()  # of our clock, where the clip's time is 0
        self._over = False

    def __next__(self) -> Frame:
        while self._faults.holds("stall") and not self._over:
            time.sleep(0.01)
        if self._faults.holds("unplug"):
            raise CameraLost(f"{self.name}: unplugged by the benchmark")
        stamp_ns, picture = self._read()
        self._seq += 1
        late_ns = time.monotonic_ns() - (self._start_ns + stamp_ns)
        if late_ns > LATE_NS:
            missed = late_ns // self._step_ns
            self._seq += missed
            self._start_ns += missed * self._step_ns
        t_ns = self._start_ns + stamp_ns
        while (ahead_ns := t_ns - time.monotonic_ns()) > 0 and not self._over:
            time.sleep(ahead_ns / 1e9)
        return Frame(self._seq, t_ns, picture)

    def _read(self) -> tuple[int, NDArray[np.uint8]]:
        """The next picture and its time within the clip; after the last, the first again."""
        ok, picture = self._clip.read()
        if not ok:
            self._start_ns += self._stamp_ns + self._step_ns
            self._stamp_ns = -1
            self._clip.set(cv2.CAP_PROP_POS_FRAMES, 0)
            ok, picture = self._clip.read()
            if not ok:
                raise CameraError(f"{self.name}: this container cannot be played over and over; give a clip in AVI, MP4 or "
                                  "Matroska with an index")
        stamp_ns = round(self._clip.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        if stamp_ns > self._stamp_ns >= 0:
            self._step_ns = stamp_ns - self._stamp_ns
        self._stamp_ns = stamp_ns
        return stamp_ns, picture.astype(np.uint8, copy=False)

    def cancel(self) -> None:
        self._over = True

    def close(self) -> None:
        self._clip.release()


class TimedStages(Stages):
    """Wall milliseconds of each call, for percentiles, beside the CPU seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.calls_ms: dict[str, list[float]] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start_ns = time.perf_counter_ns()
        try:
            with super().timed(stage):
                yield
        finally:
            self.calls_ms.setdefault(stage, []).append((time.perf_counter_ns() - start_ns) / 1e6)

    def take(self) -> dict[str, list[float]]:
        taken, self.calls_ms = self.calls_ms, {}
        return {name: [round(ms, 3) for ms in calls] for name, calls in taken.items()}


class FailingEngine:
    def __init__(self, engine: Engine, faults: Faults) -> None:
        self.spec: ModelSpec = engine.spec
        self._engine, self._faults = engine, faults

    def stem(self, frames: F32) -> F32:
        self._faults.inference()
        return self._engine.stem(frames)

    def head(self, features: F32, mask: F32) -> tuple[F32, F32, F32]:
        return self._engine.head(features, mask)


class Probe(Tap):
    """Tells what happens, as it happens; what is many is told once a second."""

    def __init__(self, stages: TimedStages, recorder: Recorder | None) -> None:
        self._stages, self._recorder = stages, recorder
        self._waits_ms: list[float] = []
        self._frames = self._missed = 0
        self._frame_ns = self._seq = 0
        self._due_ns = 0
        self._hop_frame_ns: int | None = None

    def outlets(self) -> Sequence[Outlet]:
        return [_Sent()]

    def frame(self, frame: Frame, now_ns: int, dropped: int) -> None:
        if not self._frames:
            emit(k="first", t=now_ns)
            self._due_ns = now_ns
        else:
            self._missed += frame.seq - self._seq - 1  # by the ring or before it: both show in seq
        self._frames += 1
        self._seq, self._frame_ns = frame.seq, frame.t_ns
        self._waits_ms.append(round((now_ns - frame.t_ns) / 1e6, 3))
        if now_ns >= self._due_ns:
            self._due_ns = max(self._due_ns + int(REPORT_S * 1e9), now_ns)
            self._report(now_ns)

    def hop(self, hop: Hop, now_ns: int) -> None:
        self._hop_frame_ns = self._frame_ns
        emit(k="hop", t=self._frame_ns, hr=hop.reading.hr.value_per_min, rr=hop.reading.rr.value_per_min)

    def said(self, reading: Reading, withheld: bool, now_ns: int) -> None:
        # the newest picture behind a number, which is what it must not outlive
        emit(k="said", t=now_ns, newest=reading.t_ns, frame=self._hop_frame_ns)
        self._hop_frame_ns = None

    def event(self, source: str, state: str, detail: str, now_ns: int) -> None:
        emit(k="event", t=now_ns, source=source, state=state)

    def _report(self, now_ns: int) -> None:
        kept, lost = (self._recorder.kept, self._recorder.lost) if self._recorder else (0, 0)
        emit(k="second", t=now_ns, frames=self._frames, missed=self._missed, loop_cpu_s=round(time.thread_time(), 4),
             cpu_s=round(time.process_time(), 4), wall=round(time.time(), 1),
             wait_ms=self._waits_ms, stages=self._stages.take(), kept=kept, lost=lost)
        self._waits_ms = []


class _Sent:
    """Every VITALS, told before the port gets it: what is on the glass was surely told."""

    def open(self) -> None: ...

    def offer(self, frame: bytes, kind: MessageType) -> bool:
        if kind is MessageType.VITALS:
            emit(k="vitals", hex=frame.hex())
        return True

    def poll(self) -> list[DecodedFrame]:
        return []

    def health(self) -> Health:
        return Health(LinkState.UP)

    def close(self, farewell: bytes | None = None) -> None: ...


def main(spec: dict[str, Any]) -> int:
    """spec: {"config": overrides for load_config, "clip": path, "record": folder or ""}. 1 after a fault, as `physvlm run`."""
    one_arena()  # as `physvlm run` does
    logging.basicConfig(stream=sys.stderr, level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    config = load_config(None, spec["config"])
    faults, stages, stop = Faults(), TimedStages(), threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() == "stop":
                break
            faults.obey(line)
        stop.set()  # also where who listens to us is gone

    threading.Thread(target=listen, name="commands", daemon=True).start()

    def opener(path: str, realtime: bool) -> Camera:
        if faults.holds("unplug"):
            raise CameraError(f"{path}: unplugged by the benchmark")
        return LoopedClip(path, faults)

    engine, product = make_engine(config)
    with contextlib.ExitStack() as stack:
        recorder = None
        if spec["record"]:
            recorder = stack.enter_context(Recorder(Path(spec["record"]), 64 << 20, False, {"product": product}))
        probe = Probe(stages, recorder)
        taps: list[Tap] = [probe] if recorder is None else [recorder, probe]
        try:
            Live(config, FailingEngine(engine, faults), product, stop=stop.is_set, opener=opener, taps=taps,
                 stages=stages).run()
        except RuntimeFault as e:
            print(f"bench: {e}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
