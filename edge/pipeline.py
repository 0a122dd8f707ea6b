"""Frames in, readings out: region, stem, ring of features, head, post-processing and gate. No camera, port or clock here.

A `View` is one region looked at through the student. With `--roi auto` the pipeline may hold two for a while: the one that
is shown, and a candidate that has to fill its window and read at least as well before it takes over, so finding a better
region never interrupts a number.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge import clip
from edge.clip import BuilderLost, ClipBuilder, MakeBuilder, Points, Region
from edge.gate import OVERTONES, Gate
from edge.light_steps import LightSteps
from edge.motion import camera_sways, lamp_beats, lamp_swells, rhythm_moves, sway_rate
from edge.records import Estimate, Frame, Reading, Reason, Waveform
from edge.region import RegionSearch
from edge.vitals import Profile, estimate
from engines.sidecar import ModelSpec

F32 = NDArray[np.float32]

HOP_S = 1.0
"""One reading a second, as bedside monitors refresh; the display hears each twice."""

DARK_COUNTS, BRIGHT_COUNTS = 14.0, 246.0
"""Median of the region's area means (8-bit counts) below or above which no pulse survives noise or saturation."""

STILL_S = 1.0
"""Pictures that stay identical to the last count this long are a frozen source: noise alone changes real ones."""

FPS_OVER_S = 4.0
"""The frame rate is judged over this long: half of the pulse's averaging time, so that a fall shows before it is read."""

PULSE_FPS_PER_BAND, BREATH_FPS_PER_BAND = 2.4, 2.2
"""Frames per highest cycle of the band that are needed before a rhythm may be shown; below two it folds (Nyquist)."""

MOVING_BELIEVED = 0.95
"""The student's belief from which a pulse that also moves stays one, each beat kicks the head a little. Rendered newborns
whose pulse moves have 0.95 in the median; what rocks without a pulse has up to 0.6, one thing in ten 0.93."""

LONG_HOLE_S = 20.0
"""A hole longer than the window leaves nothing to keep: the view starts anew instead of computing hops of nothing."""

STALL_STEPS = 2.5
"""A step between new pictures longer than this many usual ones is a stall. One lost frame makes two, and jitter a little more
or less; two lost ones make three."""

STEP_DOUBT_S = 8.0
"""The light's jump stays in the pulse's averaging time this long, and makes what is shown meanwhile questionable."""

HUNTING_STEPS, HUNTING_STEP = 3, 0.03
"""So many jumps of this size within STEP_DOUBT_S are no single event but an exposure that hunts: no number then. On rendered
newborns smaller ones never made a shown number wrong; of these, one number in fifty was."""

USUAL_STEP = 0.9
"""Nine steps in ten must be this short: a mean or median would hide long steps among short ones."""


_Reasons = frozenset[Reason]


class Engine(Protocol):
    """What runs the student: engines.onnxruntime_backend and, on the Jetson, engines.tensorrt_backend."""

    spec: ModelSpec

    def stem(self, frames: F32) -> F32: ...
    def head(self, features: F32, mask: F32) -> tuple[F32, F32, F32]: ...


class ModelMismatch(RuntimeError):
    """The weights were trained on another preprocessing than this program's: refuse to start."""


def normalisation() -> dict[str, float]:
    """The preprocessing's constants, as the sidecar carries them."""
    return {name.lower(): float(getattr(clip, name)) for name in (
        "CHANNELS", "GAP_S", "NEW_SEGMENT_S", "LOG_OFFSET_COUNTS", "MEAN_TAU_S", "LIGHT_SCALE", "LIGHT_CLIP", "FLOW_SCALE",
        "FLOW_CLIP", "FLOW_FLOOR")}


def check_normalisation(spec: ModelSpec) -> None:
    """Raise ModelMismatch when the weights expect other preprocessing constants than ours."""
    for name, ours in normalisation().items():
        theirs = spec.normalisation.get(name)
        if theirs is None or abs(theirs - ours) > 1e-9:
            raise ModelMismatch(f"weights {spec.name} were trained with {name} = {theirs}, this program has {ours}; "
                                "install the weights of this release")


class Stages:
    """CPU seconds by stage, summed over a run. notes: what else a report tells beside them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.notes: dict[str, Any] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.thread_time()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.thread_time() - start


class View:
    """One region through the student: grid frames wait for the hop, go through the stem once, and stay as features."""

    def __init__(self, region: Region, engine: Engine, stages: Stages, builder: MakeBuilder = ClipBuilder) -> None:
        self.region = region
        self._make_builder = builder
        self.means: F32 | None = None
        self._engine = engine
        self._stages = stages
        self._hop = round(HOP_S * engine.spec.fs_hz)
        self._last_ns: int | None = None
        self._begin()

    def _begin(self) -> None:
        spec = self._engine.spec
        self._builder = self._make_builder(self.region, spec.fs_hz, spec.size)
        self._features = np.zeros((spec.window, spec.cells, spec.features), np.float32)
        self._mask = np.zeros(spec.window, np.float32)
        self._breath: F32 | None = None
        self._waiting: Points = []  # in order; each goes through the builder's frames once

    def push(self, frame: Frame) -> list[Waveform]:
        """A waveform whenever a hop is full; more than one after a gap. Raises the engine's error."""
        if self._last_ns is not None and frame.t_ns - self._last_ns > LONG_HOLE_S * 1e9:
            self._begin()
        self._last_ns = frame.t_ns
        with self._stages.timed("preprocess"):
            try:
                self.means, points = self._builder.push(frame)
            except BuilderLost:
                self._begin()
                self.means, points = self._builder.push(frame)
            self._waiting.extend(points)
        waves = []
        while len(self._waiting) >= self._hop:
            chunk, self._waiting = self._waiting[:self._hop], self._waiting[self._hop:]
            waves.append(self._advance(chunk))
        return waves

    def _advance(self, chunk: Points) -> Waveform:
        spec, n = self._engine.spec, len(chunk)
        with self._stages.timed("preprocess"):
            frames = self._builder.frames(chunk)
        with self._stages.timed("stem"):
            valid = np.array([ok for _, ok, _ in chunk], np.float32)
            features = self._engine.stem(frames)
            self._features = np.concatenate([self._features[n:], features * valid[:, None, None]])
            self._mask = np.concatenate([self._mask[n:], valid])
        with self._stages.timed("head"):
            waves, presence, attention = self._engine.head(self._features, self._mask)
        side = int(round(spec.cells**0.5))
        breath = waves[1]
        # which way a chest moves in the picture is arbitrary; that it stays the same from hop to hop is not
        if self._breath is not None and float(self._breath[n:] @ breath[:-n]) < 0:
            breath = -breath
        self._breath = breath
        return Waveform(waves[0], breath, self._mask > 0, float(presence[0]), float(presence[1]),
                        attention.reshape(2, side, side), spec.fs_hz, chunk[-1][2])

    def imitated(self, found: Estimate, wave: Waveform) -> tuple[frozenset[Reason], frozenset[Reason]]:
        """(why the pulse, why the breath) of this window's estimate is none: a thing that moves, a lamp that swells, a
        camera that sways. A breath in a picture that moves as one is doubted alone: a chest that fills it does so, too."""
        pulse, breath, fs_hz = set(), set(), self._engine.spec.fs_hz
        if found.hr_per_min is None and found.rr_per_min is None:
            return frozenset(), frozenset()
        sway_hz = sway_rate(self._features, self._mask, fs_hz)
        if found.hr_per_min is not None:
            seen = self._features, self._mask, found.hr_per_min / 60, fs_hz
            if wave.pulse_presence < MOVING_BELIEVED and rhythm_moves(*seen):
                pulse.add(Reason.MOTION)
            if lamp_beats(*seen):
                pulse.add(Reason.LIGHT_FLICKER)
            if camera_sways(*seen, sway_hz, times=OVERTONES):
                pulse.add(Reason.MOTION)
        if found.rr_per_min is not None:
            seen = self._features, self._mask, found.rr_per_min / 60, fs_hz
            if lamp_swells(*seen):
                breath.add(Reason.LIGHT_FLICKER)
            if camera_sways(*seen, sway_hz):
                breath.add(Reason.CAMERA_SHAKE)
        return frozenset(pulse), frozenset(breath)

    @property
    def seen_s(self) -> float:
        """Seconds of valid samples in the window."""
        return float(self._mask.sum()) / self._engine.spec.fs_hz


@dataclass(frozen=True)
class Hop:
    """What one hop gave: the reading to show, and what it came from."""

    reading: Reading
    waveform: Waveform
    estimate: Estimate
    region: Region
    conditions: frozenset[Reason]


class Pipeline:
    """The appliance between camera and link. roi: a fixed region, None = the whole picture.

    search: follow the rhythm from there. builder: makes what pre-processes, on the CPU or the GPU.
    """

    def __init__(self, engine: Engine, profile: Profile, width_px: int, height_px: int, roi: Region | None,
                 search: bool, stages: Stages | None = None, builder: MakeBuilder = ClipBuilder) -> None:
        check_normalisation(engine.spec)
        whole = Region(0, 0, width_px, height_px)
        (roi or whole).check_inside(width_px, height_px)
        self.stages = stages or Stages()
        self._engine = engine
        self._builder = builder
        self._profile = profile
        self._gate = Gate(profile)
        self._search = RegionSearch(whole) if search else None
        self._shown = View(roi or whole, engine, self.stages, builder)
        self._candidate: View | None = None
        self._candidate_estimate: Estimate | None = None
        self._watch = _Watch(profile)
        self._last: tuple[Estimate, Waveform, _Reasons, _Reasons, _Reasons, _Reasons] | None = None
        self._now_ns = 0

    def push(self, frame: Frame, now_ns: int) -> list[Hop]:
        """Every reading that this frame completes (none, for most frames). Raises the engine's error."""
        hops = []
        if self._candidate is not None:
            for wave in self._candidate.push(frame):
                with self.stages.timed("vitals"):
                    self._candidate_estimate = estimate(wave, self._profile)
        waves = self._shown.push(frame)
        if self._shown.means is not None:
            self._watch.see(frame.t_ns, self._shown.means, self._shown.region)
        for wave in waves:
            with self.stages.timed("vitals"):
                found = estimate(wave, self._profile)
                both, pulse_only, doubts = self._watch.conditions(wave)
                moved, swelled = self._shown.imitated(found, wave)
                pulse_only |= moved
                self._last = (found, wave, both, pulse_only, swelled, doubts)
            with self.stages.timed("gate"):
                reading = self._gate.update(found, wave, both, self._later(max(now_ns, wave.t_end_ns)),
                                            hr_conditions=pulse_only, rr_conditions=swelled, doubts=doubts)
            hops.append(Hop(reading, wave, found, self._shown.region, both | pulse_only | swelled | doubts))
            if self._search is not None:
                with self.stages.timed("region"):
                    self._move(self._search, wave, found)
        return hops

    def reading(self, now_ns: int, trouble: frozenset[Reason]) -> Reading:
        """The newest reading as it stands now: older, stale, or none at all. trouble: what the world does to us."""
        now_ns = self._later(now_ns)
        if self._last is None:
            return self._gate.no_estimate(now_ns, trouble)
        found, wave, both, pulse_only, breath_only, doubts = self._last
        return self._gate.update(found, wave, both | trouble, now_ns, hr_conditions=pulse_only, rr_conditions=breath_only,
                                 doubts=doubts)

    @property
    def seen(self) -> dict[str, int]:
        """How often so far: duplicates (repeated pictures), stalls, light_steps."""
        return {"duplicates": self._watch.duplicates, "stalls": self._watch.stalls, "light_steps": self._watch.light_steps}

    def _later(self, now_ns: int) -> int:
        """now_ns, but never before a time already told: a driver may stamp a frame some ms after the moment of its grab."""
        self._now_ns = max(self._now_ns, now_ns)
        return self._now_ns

    def forget(self) -> None:
        """After a failed inference or a lost camera: what was seen before no longer counts."""
        self._last = None
        self._candidate = self._candidate_estimate = None
        self._shown = View(self._shown.region, self._engine, self.stages, self._builder)

    def _move(self, search: RegionSearch, wave: Waveform, found: Estimate) -> None:
        """Let the search propose a candidate region, and let a candidate that reads as well take over."""
        if self._candidate is None:
            region = search.propose(self._shown.region, wave, found)
            if region is not None:
                self._candidate = View(region, self._engine, self.stages, self._builder)
                self._candidate_estimate = None
        elif self._candidate_estimate is not None:
            verdict = search.judge(self._candidate.seen_s, found, self._candidate_estimate)
            if verdict is not None:
                if verdict:
                    self._shown = self._candidate
                self._candidate = self._candidate_estimate = None


class _Watch:
    """Looks at the pictures themselves: too dark, too bright, frozen, too few a second, holes, stalls, jumps of the light."""

    def __init__(self, profile: Profile) -> None:
        self._pulse_fps = PULSE_FPS_PER_BAND * profile.hr_band_per_min[1] / 60
        self._breath_fps = BREATH_FPS_PER_BAND * profile.rr_band_per_min[1] / 60
        self._times_ns: list[int] = []
        self._shortest_ns = 0  # no step between these times is shorter
        self._newest_ns = 0
        self._last: F32 | None = None
        self._changed_ns: int | None = None
        self._region: Region | None = None
        self._steps = LightSteps()
        self._jumps: list[tuple[int, float]] = []  # (t_ns, size)
        self._stalled_ns: int | None = None
        self.duplicates = self.stalls = self.light_steps = 0

    def see(self, t_ns: int, means: F32, region: Region) -> None:
        self._newest_ns = t_ns
        if region != self._region:
            self._region = region
            self._steps.forget()
        # a repeated picture is no new sample, whatever its time says: a rhythm folds at the rate of new pictures
        if self._last is not None and self._changed_ns is not None and np.array_equal(means, self._last):
            self.duplicates += 1
            return
        times = self._times_ns
        step_ns = t_ns - times[-1] if times else 0
        # the median is dear and no less than the shortest, which clears most steps
        if len(times) > 8 and step_ns > STALL_STEPS * self._shortest_ns and step_ns > STALL_STEPS * median(
                after - before for before, after in pairwise(times)):
            self._stalled_ns = t_ns
            self.stalls += 1
        self._shortest_ns = min(self._shortest_ns, step_ns)
        self._last, self._changed_ns = means, t_ns
        self._times_ns = [*times[bisect_right(times, t_ns - FPS_OVER_S * 1e9):bisect_left(times, t_ns)], t_ns]
        jump = self._steps.push(t_ns, means)
        if jump:
            self._jumps = [seen for seen in self._jumps if t_ns - seen[0] < STEP_DOUBT_S * 1e9] + [(t_ns, jump)]
            self.light_steps += 1

    def conditions(self, wave: Waveform) -> tuple[_Reasons, _Reasons, _Reasons]:
        """(for both vitals, for the pulse alone, what makes both questionable and no more)."""
        both: set[Reason] = set()
        pulse: set[Reason] = set()
        doubts: set[Reason] = set()
        level = float(np.median(self._last)) if self._last is not None else 0.0
        if level < DARK_COUNTS:
            both.add(Reason.TOO_DARK)
        elif level > BRIGHT_COUNTS:
            both.add(Reason.OVEREXPOSED)
        if self._changed_ns is not None and self._newest_ns - self._changed_ns > STILL_S * 1e9:
            both.add(Reason.FRAMES_STALLED)
        steps_ns = np.diff(self._times_ns)
        self._shortest_ns = int(steps_ns.min(initial=0 if steps_ns.size < 8 else steps_ns[0]))
        fps = 1e9 / float(np.quantile(steps_ns, USUAL_STEP)) if steps_ns.size >= 8 else np.inf
        if fps < self._breath_fps:
            both.add(Reason.LOW_FPS)
        elif fps < self._pulse_fps:
            pulse.add(Reason.LOW_FPS)
        stalled = self._stalled_ns is not None and self._newest_ns - self._stalled_ns < HOP_S * 1e9
        if stalled or not wave.valid[int(wave.valid.argmax()):].all():
            both.add(Reason.GAP)
        jumps = [size for t_ns, size in self._jumps if self._newest_ns - t_ns < STEP_DOUBT_S * 1e9]
        if jumps:
            hunting = sum(size >= HUNTING_STEP for size in jumps) >= HUNTING_STEPS
            (both if hunting else doubts).add(Reason.LIGHT_FLICKER)
        return frozenset(both), frozenset(pulse), frozenset(doubts)
