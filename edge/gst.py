"""`csi:` and `gst:` cameras: a Jetson's own sensors, and whatever else GStreamer can play (gst_spec.py says how they are
written). Every frame has the sensor's own time and number where it gives them, and the automatisms are locked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from edge.camera import Camera, CameraError, CameraLost
from edge.gst_library import PipelineError
from edge.gst_pipeline import Mark, Pipeline, Sample
from edge.gst_spec import advice, complete, csi_pipeline, exposure_note, parse_csi
from edge.records import Frame

_log = logging.getLogger(__name__)

FIRST_FRAME_S = STALL_S = 5.0
"""A source without a picture this long is lost. The loop tells the display long before."""

SETTLE_S = 2.5
"""Exposure and white balance are locked so long after the first picture; Argus has settled within 2 s."""

_EFFECT_S = 0.3  # a lock shows in the pictures after those under way: Argus keeps up to six requests in flight
_SLICE_S = 0.1  # the longest wait in one go, so that a cancelled reader comes back
_STILL_S = 1.0  # a silence worth a line in the log, or twice the interval of slow pictures
_STUCK_CLOCK_FRAMES = 30  # frames in a row without a usable time, after which a source's clock counts as broken: a second
# How far a stamp may lie from now and still be on our clock: behind by all queues on the way, ahead by a clock's rounding.
_BEHIND_NS, _AHEAD_NS = 5_000_000_000, 100_000_000
_STEP_MOST = 10_000  # a number that leaps further was not counted on: the source has begun to count anew
_LOCKS = (("auto exposure", "aelock"), ("white balance", "awblock"))


def open_csi(rest: str, mains_hz: int) -> GstCamera:
    """Open what stands behind `csi:`. Streams already; the first frame is waited for by the reader. Raises CameraError."""
    asked = parse_csi(rest)
    note = exposure_note(asked, mains_hz)
    return GstCamera(f"csi:{rest}", csi_pipeline(asked, mains_hz), asked.picture, (note,) if note else ())


def open_gst(pipeline: str) -> GstCamera:
    """Open what stands behind `gst:`, and wait for its first picture, which tells the size. Raises CameraError."""
    return GstCamera(f"gst:{pipeline}", complete(pipeline), None)


class GstCamera(Camera):
    """A pipeline's pictures. Times are the sensor's where it stamps them on the monotonic clock, else of their arrival in
    the pipeline (PTS + base time). A source that is not live is played at its own pace, and ends.

    argus: size of the picture, for a Jetson's own sensor; None for other pipelines. sensor_clock: None before the first frame.
    """

    def __init__(self, name: str, description: str, argus: tuple[int, int] | None, notes: Sequence[str] = ()) -> None:
        self.name = name
        self.lost = self.bad_stamps = 0
        self.sensor_clock: bool | None = None
        self.fps_nominal: float | None = None
        self._argus = argus is not None
        self._notes: tuple[str, ...] = ()
        self._cancelled = threading.Event()
        self._seq = -1
        self._number: int | None = None
        self._last_ns = -1
        self._first_ns: int | None = None
        self._locked_ns: int | None = None
        try:
            self._pipeline = Pipeline(description)
        except PipelineError as error:
            raise CameraError(self._why(str(error))) from error
        try:
            self._pipeline.start()
            self.live = True
            self.recorded = not self._pipeline.live
            self.settling = self._pipeline.live and self._lockable()
            self.width, self.height = argus or self._first_size()
        except PipelineError as error:
            self.close()
            raise CameraError(self._why(str(error))) from error
        except CameraError:
            self.close()
            raise
        for note in notes:
            self._note(note, logging.WARNING)

    def _why(self, words: str) -> str:
        what = advice(words, self._argus)
        return f"{self.name}: {words.rstrip('.')}" + (f"; {what}" if what else "")

    @property
    def _no_picture(self) -> str:
        # Argus of some releases says to stderr alone that there is no camera, and ends the stream
        return ("no cameras available: " if self._argus else "") + "the stream ends before its first picture"

    def _first_size(self) -> tuple[int, int]:
        """Of the first picture, which is not kept: it would be old before it is asked for."""
        sample = self._wait(FIRST_FRAME_S)
        if sample is None:
            raise CameraError(self._why(self._no_picture))
        self.fps_nominal = sample.fps
        return sample.bgr.shape[1], sample.bgr.shape[0]

    def notes(self) -> tuple[str, ...]:
        return self._notes

    def _note(self, note: str, level: int = logging.INFO) -> None:
        self._notes = (*self._notes, note)
        _log.log(level, "%s: %s", self.name, note)

    def __next__(self) -> Frame:
        for _ in range(_STUCK_CLOCK_FRAMES):
            try:
                sample = self._wait(FIRST_FRAME_S if self._seq < 0 else STALL_S)
            except PipelineError as error:
                raise CameraLost(self._why(str(error))) from error
            if sample is None:
                raise StopIteration
            frame = self._frame(sample)
            if frame is not None:
                self._settle(frame.t_ns)
                return frame
            self.bad_stamps += 1
        raise CameraLost(self._why(f"{_STUCK_CLOCK_FRAMES} pictures in a row without a time that rises"))

    def _wait(self, patience_s: float) -> Sample | None:
        """The next picture; None when cancelled, or at the end of what is not live.

        Raises CameraLost when a live one ends or none comes, and PipelineError.
        """
        silent_s, told = 0.0, False
        while not self._cancelled.is_set():
            before_s = time.monotonic()
            sample = self._pipeline.pull(_SLICE_S)
            if sample is not None:
                if told:
                    _log.warning("%s: pictures come again after %.1f s", self.name, silent_s)
                return sample
            if self._pipeline.ended:
                if self.recorded:
                    return None
                raise CameraLost(self._why("the stream has ended" if self._seq >= 0 else self._no_picture))
            passed_s = time.monotonic() - before_s
            if passed_s < _SLICE_S:
                self._cancelled.wait(_SLICE_S - passed_s)
            # a slice and no more: this process may have stood still, not the camera
            silent_s += _SLICE_S
            if silent_s > patience_s:
                raise CameraLost(self._why(f"no picture for {patience_s:g} s"))
            if not told and silent_s > max(_STILL_S, 2 / (self.fps_nominal or 30)):
                told = True
                _log.warning("%s: no picture for %.1f s", self.name, silent_s)
        return None

    def _frame(self, sample: Sample) -> Frame | None:
        """None where its time does not rise, or is not on the clock that the others are on."""
        height, width = sample.bgr.shape[:2]
        if (width, height) != (self.width, self.height):
            raise CameraLost(f"{self.name}: the picture changes from {self.width}x{self.height} to {width}x{height}")
        if self.fps_nominal is None:
            self.fps_nominal = sample.fps
        self._count(sample.mark)
        t_ns = self._time(sample)
        if t_ns is None or t_ns <= self._last_ns:
            return None
        self._last_ns = t_ns
        return Frame(self._seq, t_ns, sample.bgr)

    def _count(self, mark: Mark | None) -> None:
        step = 1
        if mark is not None:
            if self._number is not None and 0 < mark.number - self._number <= _STEP_MOST:
                step = mark.number - self._number
            self._number = mark.number
        self.lost += step - 1
        self._seq += step

    def _time(self, sample: Sample) -> int | None:
        now_ns = time.monotonic_ns()
        sensor_ns = sample.mark.sensor_ns if sample.mark is not None else None
        if self.sensor_clock is None:
            # settled once: two clocks in one stream would put their difference into the signal
            self.sensor_clock = sensor_ns is not None and now_ns - _BEHIND_NS < sensor_ns < now_ns + _AHEAD_NS
            if self.sensor_clock:
                self._note("times: the sensor's")
            elif self._argus:
                why = "it gives none of its own" if sensor_ns is None else "its clock is not the monotonic one"
                self._note(f"times: of arrival in the pipeline, not the sensor's: {why}; a jitter of some ms is in them",
                           logging.WARNING)
        t_ns = sensor_ns if self.sensor_clock else sample.t_ns
        if t_ns is None and not self.sensor_clock:
            raise CameraLost(f"{self.name}: pictures without times; add do-timestamp=true to the pipeline's source")
        return t_ns if t_ns is not None and t_ns < now_ns + _AHEAD_NS else None

    def _lockable(self) -> bool:
        """Whether there is something to lock. Opens the locks, also where the pipeline was typed with them shut."""
        answers = [self._pipeline.set(self._pipeline.cam, key, "false") for _, key in _LOCKS]
        return self._argus or any(answer is not None for answer in answers)

    def _settle(self, t_ns: int) -> None:
        """Lock exposure and white balance once they have had their time, and end settling once that shows."""
        if not self.settling:
            return
        if self._first_ns is None:
            self._first_ns = t_ns
        if self._locked_ns is not None:
            self.settling = t_ns - self._locked_ns < _EFFECT_S * 1e9
        elif t_ns - self._first_ns >= SETTLE_S * 1e9:
            self._locked_ns = t_ns
            for what, key in _LOCKS:
                answer = self._pipeline.set(self._pipeline.cam, key, "true")
                if answer:
                    self._note(f"locked: {what}")
                elif answer is None:
                    self._note(f"lacking: the camera has no lock for {what} ({key})", logging.WARNING)
                else:
                    self._note(f"refused: {what}: {key} was set and reads back as not set", logging.WARNING)

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self._cancelled.set()
        try:
            self._pipeline.close()
        except PipelineError as error:
            # the next opening will say so if it matters; the process must get on
            _log.error("%s", self._why(f"does not close: {error}"))
