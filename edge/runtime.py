"""The loops and the wiring: camera -> pipeline -> link. Camera, engine, link and clock are arguments.

`replay` reads a recording through the very pipeline that `run` uses live; only who paces it differs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cv2

from edge.camera import Camera, CameraError, CameraLost, CaptureThread, open_camera
from edge.clip import ClipBuilder, MakeBuilder, Region
from edge.config import Config
from edge.gate import Gate
from edge.memory import Tidy
from edge.pipeline import Engine, Hop, Pipeline, Stages
from edge.records import Frame, Reading, Reason
from edge.vitals import PROFILES
from edge.watchdog import Watchdog
from edge.wire import Traces, vitals_message, withheld
from engines.errors import EngineError
from engines.sidecar import DEFAULT_WEIGHTS, load
from firmware_bridge.frame import Sender
from firmware_bridge.link import Link, LinkState
from firmware_bridge.messages import Hello, Vitals, Wave
from firmware_bridge.schema import Flags
from firmware_bridge.transmitter import FileLink, Outlet, Transmitter

log = logging.getLogger("physvlm")

VITALS_PERIOD_NS = 500_000_000
"""VITALS goes out twice a second, always (PROTOCOL.md)."""

HOP_GRACE_NS = 35_000_000
"""One frame at 30 /s: half a second after a hop's own VITALS, the next waits this much longer for the next hop's."""

POLL_NS = 100_000_000
"""How often the display is listened to between two VITALS, and given what a full driver did not take."""

NO_FRAME_NS = 1_000_000_000
NO_CAMERA_NS = 2_500_000_000
"""Without frames this long the reading says FRAMES_STALLED, then NO CAMERA (shown within 3 s)."""

REOPEN_S = (0.5, 1.0, 2.0, 4.0, 8.0)

LIVE_SCHEMES = ("usb:", "csi:", "gst:")
"""Sources that may come later; a file that is not there never will."""

OPEN_LOOK_S, OPEN_LIMIT_NS = 0.02, 20_000_000_000
"""How often a camera that is being opened is looked after, and how long that may take: GStreamer alone waits 5 s for a first
picture. After it the watchdog is no longer fed, and the supervisor starts the program anew."""

OPEN_STOP_S = 1.0
"""How long a stop waits for a camera that is being opened, as it does for one that is read."""

ENGINE_FAULTS, ENGINE_FAULT_WINDOW_NS = 5, 60_000_000_000
"""More failed inferences than this within the window end the process; the supervisor starts it anew."""

class RuntimeFault(RuntimeError):
    """The appliance cannot go on by itself: exit and let the supervisor restart it."""


def make_engine(config: Config, say: Callable[[str], None] | None = None) -> tuple[Engine, str]:
    """The configured engine and the name of its weights. Raises SidecarError or EngineError.

    say: told how far it is, about twice a second, where an engine has to be built.
    """
    sidecar = Path(config.model.weights) / DEFAULT_WEIGHTS.name if config.model.weights else DEFAULT_WEIGHTS
    spec, _ = load(sidecar)
    precision = config.model.precision
    if config.model.backend == "tensorrt":
        from edge.prepare import cache_folder, chosen
        from engines.tensorrt_build import import_tensorrt
        from engines.tensorrt_cache import open_engine

        import_tensorrt()  # what is missing altogether is said first
        folder = cache_folder(config.model.engine_cache)
        precision = chosen(folder, spec) if precision == "auto" else precision
        return open_engine(spec, precision, folder, say=say), spec.name
    from engines.onnxruntime_backend import OnnxRuntimeEngine

    return OnnxRuntimeEngine(spec, "fp32" if precision == "auto" else precision), spec.name


class Tap:
    """What may look on while the appliance runs: a recorder, a benchmark. Called by the loop: return at once, never raise."""

    def outlets(self) -> Sequence[Outlet]:
        """What else is offered every frame of the wire, before the port is."""
        return ()

    def frame(self, frame: Frame, now_ns: int, dropped: int) -> None:
        """A frame was taken from the ring, which has dropped so many."""

    def hop(self, hop: Hop, now_ns: int) -> None:
        """A frame was processed that completed this hop."""

    def said(self, reading: Reading, withheld: bool, now_ns: int) -> None:
        """The reading was offered to the display, or withheld: FAULT in its place, because the display cannot be trusted."""

    def event(self, source: str, state: str, detail: str, now_ns: int) -> None:
        """The camera was opened or lost, an inference failed."""


def make_pipeline(engine: Engine, camera: Camera, config: Config, stages: Stages | None = None) -> Pipeline:
    """The pipeline for this camera's picture size. Raises RegionError, ModelMismatch, and ConfigError where the GPU was asked
    for and cannot pre-process."""
    cv2.setNumThreads(1)  # the pieces are too small to share out, and the other cores belong to camera and decoder
    roi = config.camera.roi
    fixed = roi if isinstance(roi, Region) else None
    stages, model = stages or Stages(), config.model
    builder: MakeBuilder = ClipBuilder
    if model.preprocess == "cuda" or (model.preprocess == "auto" and model.backend == "tensorrt"):
        from edge.cuda_clip import choose
        from edge.prepare import cache_folder

        builder = choose(model.preprocess, engine.spec.fs_hz, engine.spec.size, cache_folder(model.engine_cache), camera.width,
                         camera.height, fixed, stages.notes)
    return Pipeline(engine, PROFILES[config.vitals.profile], camera.width, camera.height, fixed, roi == "auto", stages, builder)


class _PatientLink(Link):
    """A port that is not there yet is waited for, as one that went away is."""

    def open(self, wait: bool = True) -> None:
        super().open(wait)


def make_transmitter(config: Config, clock_ns: Callable[[], int], product: str, demo: bool,
                     further: Sequence[Outlet] = (), patient: bool = False) -> Transmitter:
    """The voice towards the display and the wire file; it may have no outlet at all. product: cut to 16 characters.

    patient: a port that is not there yet is waited for.
    """
    outlets: list[Outlet] = [*further]
    if config.serial.port:
        outlets.append((_PatientLink if patient else Link)(config.serial.port, config.serial.baud, config.serial.stop_bits))
    if config.serial.wire_file:
        outlets.append(FileLink(config.serial.wire_file))
    flags = Flags.INVESTIGATIONAL | (Flags.DEMO if demo or config.serial.demo else 0)
    return Transmitter(Sender(clock_ns, flags=int(flags)), outlets, Hello(product=product[:16]), clock_ns)


@dataclass
class Record:
    """What a replay keeps: one row a reading, and the last waveform for pictures."""

    readings: list[dict[str, Any]] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    frames: int = 0
    first_ns: int | None = None
    last_ns: int = 0

    def add(self, hop: Hop) -> None:
        hr, rr = hop.reading.hr, hop.reading.rr
        self.readings.append({
            "t_s": round((hop.reading.t_ns - (self.first_ns or 0)) / 1e9, 3),
            "hr": _rounded(hr.value_per_min), "hr_state": hr.state.name, "hr_quality": round(hr.quality, 3),
            "rr": _rounded(rr.value_per_min), "rr_state": rr.state.name, "rr_quality": round(rr.quality, 3)})

    @property
    def duration_s(self) -> float:
        return (self.last_ns - (self.first_ns or 0)) / 1e9

    def summary(self) -> dict[str, float | None]:
        """Medians of what was shown, and the share of readings that showed a number."""
        out: dict[str, float | None] = {}
        for name in ("hr", "rr"):
            shown = [r[name] for r in self.readings if r[name] is not None]
            out[f"{name}_median"] = _rounded(median(shown)) if shown else None
            out[f"{name}_shown_fraction"] = round(len(shown) / len(self.readings), 4) if self.readings else 0.0
        return out


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 2)


def replay(camera: Camera, pipeline: Pipeline, config: Config, product: str,
           progress: Callable[[Record], None] | None = None, keep_hops: bool = False) -> Record:
    """A recording through the pipeline, as fast as it goes (or as the camera paces it); bytes to the wire file."""
    record = Record()
    traces = Traces()
    now_ns = 0
    vitals_due_ns: int | None = None
    with make_transmitter(config, lambda: now_ns, product, demo=True) as voice:
        while True:
            with pipeline.stages.timed("decode"):
                frame = next(camera, None)
            if frame is None:
                break
            now_ns = frame.t_ns
            hops = pipeline.push(frame, now_ns)
            if record.first_ns is None:
                record.first_ns = now_ns
                log.info("first frame processed")
            record.frames, record.last_ns = record.frames + 1, now_ns
            for hop in hops:
                record.add(hop)
                if keep_hops:
                    record.hops.append(hop)
                for piece in traces.put(hop.waveform, now_ns):
                    voice.send(piece)
                if progress is not None:
                    progress(record)
            for piece in traces.due(now_ns):
                voice.send(piece)
            if vitals_due_ns is None or now_ns >= vitals_due_ns:
                voice.send(vitals_message(pipeline.reading(now_ns, frozenset())))
                vitals_due_ns = max((vitals_due_ns or now_ns) + VITALS_PERIOD_NS, now_ns)
    return record


def report(record: Record, camera: Camera, pipeline: Pipeline) -> dict[str, Any]:
    """The replay's JSON object (the command line's contract)."""
    stages = {name: round(s / max(record.frames, 1) * 1e3, 4) for name, s in pipeline.stages.seconds.items()}
    own = sum(v for name, v in stages.items() if name != "decode")
    fps = (record.frames - 1) / record.duration_s if record.frames > 1 and record.duration_s > 0 else None
    return {"video": camera.name, "fps": _rounded(fps), "frames": record.frames,
            "duration_s": round(record.duration_s, 3), "readings": record.readings, "summary": record.summary(),
            "timing": {"ms_per_frame": round(own, 4), "stages": stages, **pipeline.stages.notes},
            "peak_rss_mb": round(_peak_rss_kb() / 1024, 1)}


def _peak_rss_kb() -> int:
    """Of this program alone: what getrusage says on Linux still counts the process that started it, from before exec."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    path = path.resolve()  # a symlink stays one
    direct = path.exists() and not path.is_file()  # a pipe or a device takes it as it comes
    partial = path if direct else path.with_name(path.name + ".partial")
    with partial.open("w") as sink:
        json.dump(content, sink, indent=1)
        sink.write("\n")
        sink.flush()
        if not direct:
            os.fsync(sink.fileno())
    if not direct:
        partial.replace(path)


class Live:
    """The appliance's loop. stop: asked every turn; clock_ns: monotonic, the same as the frames'.

    watchdog: told what gets on. patient: a camera or a display that is not there yet is waited for, not refused.
    """

    def __init__(self, config: Config, engine: Engine, product: str, clock_ns: Callable[[], int] = time.monotonic_ns,
                 stop: Callable[[], bool] = lambda: False,
                 opener: Callable[[str, bool], Camera] | None = None,
                 on_hop: Callable[[Hop], None] = lambda hop: None,
                 taps: Sequence[Tap] = (), stages: Stages | None = None,
                 watchdog: Watchdog | None = None, patient: bool = False) -> None:
        self._config = config
        self._engine = engine
        self._product = product
        self._clock_ns = clock_ns
        self._stop = stop
        self._opener = opener or partial(open_camera, mains_hz=config.camera.mains_hz)
        self._on_hop = on_hop
        self._taps = tuple(taps)
        self._stages = stages or Stages()
        self._watchdog = watchdog or Watchdog()
        self._patient = patient
        self._blind = Gate(PROFILES[config.vitals.profile])  # what is said before the first picture
        self._written = 0
        self._hop_ns: int | None = None
        self._frame_ns: int | None = None  # when the newest frame came; None: none yet since the camera was lost
        self._faults_ns: list[int] = []
        self._trouble: frozenset[Reason] = frozenset()
        self._said = ""
        self._traces = Traces()
        self._tidy = Tidy()
        self.frames = 0

    def run(self) -> int:
        """How many frames were taken until the source ended or stop() said so.

        Raises RuntimeFault after too many failed inferences.
        """
        config = self._config
        camera = self._first_camera()
        self._frame_ns = self._clock_ns()
        recorded = camera is not None and camera.recorded
        pipeline = None if camera is None else make_pipeline(self._engine, camera, config, self._stages)
        further = [outlet for tap in self._taps for outlet in tap.outlets()]
        with make_transmitter(config, self._clock_ns, self._product, recorded, further, self._patient) as voice:
            while not self._stop():
                if camera is not None and pipeline is not None:
                    lost = self._watch_camera(camera, pipeline, voice)
                    if not lost or recorded:
                        break
                again = self._reopen(pipeline, voice)
                if again is None:
                    break
                if pipeline is None or camera is None or (again.width, again.height) != (camera.width, camera.height):
                    pipeline = make_pipeline(self._engine, again, config, self._stages)
                camera = again
            self._watchdog.stopping()
        log.info("stopped after %d frames", self.frames)
        return self.frames

    def _first_camera(self) -> Camera | None:
        """None: not there yet, and waited for."""
        source = self._config.camera.source
        try:
            return self._opener(source, True)
        except CameraError as e:
            if not self._patient or not source.startswith(LIVE_SCHEMES):
                raise
            log.warning("no camera yet: %s", e)
            return None

    def _watch_camera(self, camera: Camera, pipeline: Pipeline, voice: Transmitter) -> bool:
        """Frames of one camera; True when it was lost, False at the end of a file or when asked to stop."""
        due_ns = poll_ns = self._clock_ns()
        self._tell("camera", "OPEN", f"{camera.name} {camera.width}x{camera.height}")
        with CaptureThread(camera) as capture:
            while not self._stop() and not capture.ended:
                try:
                    frame = capture.get(max(0.0, (due_ns - self._clock_ns()) / 1e9))
                except CameraLost as e:
                    log.error("camera lost: %s", e)
                    self._tell("camera", "LOST", str(e))
                    return True
                now_ns = self._clock_ns()
                if frame is not None:
                    self._frame_ns = now_ns
                    self.frames += 1
                    for tap in self._taps:
                        tap.frame(frame, now_ns, capture.dropped)
                    if camera.settling:
                        self._watchdog.frame()  # gets on, but its light still moves: no sample
                    elif self._take(pipeline, voice, frame, now_ns):
                        due_ns = now_ns  # a new reading leaves at once: what it was made from grows old
                        self._hop_ns = now_ns
                self._send_traces(voice, now_ns)
                if now_ns >= due_ns:
                    due_ns = self._next_due_ns(due_ns, now_ns)
                    self._say(pipeline, voice, self._silence(now_ns) | self._trouble)
                    self._tidy.look(now_ns)
                elif now_ns >= poll_ns:
                    poll_ns = now_ns + POLL_NS
                    voice.poll()
        return False

    def _next_due_ns(self, due_ns: int, now_ns: int) -> int:
        """When the next VITALS is due, if no hop brings one before."""
        between_hops = self._hop_ns is not None and 0 < now_ns - self._hop_ns < 1.5 * VITALS_PERIOD_NS
        return max(due_ns + VITALS_PERIOD_NS + (HOP_GRACE_NS if between_hops else 0), now_ns)

    def _take(self, pipeline: Pipeline, voice: Transmitter, frame: Frame, now_ns: int) -> bool:
        """Whether the frame completed a hop."""
        try:
            hops = pipeline.push(frame, now_ns)
        except EngineError as e:
            log.error("inference failed: %s", e)
            self._tell("engine", "FAILED", str(e))
            pipeline.forget()
            self._faults_ns = [t for t in self._faults_ns if now_ns - t < ENGINE_FAULT_WINDOW_NS] + [now_ns]
            self._trouble = frozenset({Reason.MODEL_FAULT})  # until the next hop succeeds
            self._say(pipeline, voice, self._trouble)
            if len(self._faults_ns) > ENGINE_FAULTS:
                raise RuntimeFault(f"inference failed {len(self._faults_ns)} times within a minute, last: {e}; "
                                   "check the weights and the accelerator") from e
            return False
        self._watchdog.frame()
        if hops:
            self._trouble = frozenset()
        for hop in hops:
            self._on_hop(hop)
            for tap in self._taps:
                tap.hop(hop, now_ns)
            for piece in self._traces.put(hop.waveform, now_ns):
                self._send(voice, piece)
        return bool(hops)

    def _send_traces(self, voice: Transmitter, now_ns: int) -> None:
        for piece in self._traces.due(now_ns):
            self._send(voice, piece)

    def _send(self, voice: Transmitter, message: Vitals | Wave) -> None:
        with self._stages.timed("wire"):
            voice.send(message)

    def _tell(self, source: str, state: str, detail: str) -> None:
        now_ns = self._clock_ns()
        for tap in self._taps:
            tap.event(source, state, detail, now_ns)

    def _say(self, pipeline: Pipeline | None, voice: Transmitter, trouble: frozenset[Reason]) -> None:
        now_ns = self._clock_ns()
        reading = self._blind.no_estimate(now_ns, trouble) if pipeline is None else pipeline.reading(now_ns, trouble)
        vitals = vitals_message(reading)
        distrusted = voice.distrusted
        self._send(voice, withheld(vitals) if distrusted else vitals)
        now_ns = self._clock_ns()
        for tap in self._taps:
            tap.said(reading, distrusted, now_ns)
        voice.poll()
        pairs = (("PR", reading.hr), ("RR", reading.rr))
        said = " ".join(f"{name} {v.state.name}/{v.reason.name}" for name, v in pairs)
        if said != self._said:
            self._said = said
            log.info("%s", said)
        self._watchdog.port(self._port_gets_on(voice))
        self._watchdog.feed(said)

    def _port_gets_on(self, voice: Transmitter) -> bool:
        """It took a frame since last asked, or is away and being reopened, or there is none."""
        ports = [outlet.health() for outlet in voice.outlets if isinstance(outlet, Link)]
        before, self._written = self._written, sum(port.frames for port in ports)
        return self._written > before or all(port.state is LinkState.BACKOFF for port in ports)

    def _reopen(self, pipeline: Pipeline | None, voice: Transmitter) -> Camera | None:
        """Try again with growing pauses, telling the display NO CAMERA meanwhile; None when asked to stop."""
        if pipeline is not None:
            pipeline.forget()
        self._traces = Traces()
        self._frame_ns = None
        attempt = 0
        while not self._stop():
            until_ns = self._clock_ns() + int(REOPEN_S[min(attempt, len(REOPEN_S) - 1)] * 1e9)
            while self._clock_ns() < until_ns and not self._stop():
                self._watchdog.no_camera()
                self._say(pipeline, voice, frozenset({Reason.NO_CAMERA}))
                time.sleep(min(VITALS_PERIOD_NS, max(0, until_ns - self._clock_ns())) / 1e9)
            attempt += 1
            try:
                return self._opened_meanwhile(pipeline, voice)
            except CameraError as e:
                log.warning("camera not back yet (attempt %d): %s", attempt, e)
        return None

    def _opened_meanwhile(self, pipeline: Pipeline | None, voice: Transmitter) -> Camera | None:
        """The camera, opened by a thread of its own: a driver may hold that for seconds, and the display must go on hearing
        NO CAMERA. None when asked to stop. A driver that never lets go ends with the watchdog. Raises CameraError."""
        opened: Future[Camera] = Future()

        def work() -> None:
            try:
                opened.set_result(self._opener(self._config.camera.source, True))
            except BaseException as e:  # noqa: BLE001 - carried into the loop, whatever it is
                opened.set_exception(e)

        begun_ns = due_ns = self._clock_ns()
        threading.Thread(target=work, name="open-camera", daemon=True).start()
        while not self._stop():
            wait((opened,), OPEN_LOOK_S)
            if opened.done():
                return opened.result()
            now_ns = self._clock_ns()
            if now_ns >= due_ns:
                due_ns = now_ns + VITALS_PERIOD_NS
                if now_ns - begun_ns < OPEN_LIMIT_NS:
                    self._watchdog.no_camera()
                self._say(pipeline, voice, frozenset({Reason.NO_CAMERA}))
        wait((opened,), OPEN_STOP_S)  # a thread cut off inside OpenCV takes the process down with it
        if opened.done() and opened.exception() is None:
            opened.result().close()
        return None

    def _silence(self, now_ns: int) -> frozenset[Reason]:
        """Whether frames come. A camera that was lost is back with its first picture, not with its opening."""
        if self._frame_ns is None or now_ns - self._frame_ns > NO_CAMERA_NS:
            return frozenset({Reason.NO_CAMERA})
        return frozenset({Reason.FRAMES_STALLED}) if now_ns - self._frame_ns > NO_FRAME_NS else frozenset()
