"""Maps with what is true of them: what the teacher learns from and is measured on.

Resampling time by a known factor multiplies the rate by it, so a few hundred clips give maps at every rate and pairs of
halves at every ratio.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillation.prompts import RATIOS, TASKS, TeacherError, bin_hz, rate_labels
from distillation.stmap import SPAN_S, joined, maps_of, resample

STEADY = (0.1, 0.2)
"""Deviation of a clip's heart and breathing rate, as a share of its mean, up to which it has one rate. Recorded newborn
breathing wanders by 0.14 within 19 s, its heart rate by 0.02; an episode of bradycardia or a pause lies above."""

CYCLES = 1.5
"""What a half map must hold of a rhythm for its frequency to be compared."""

SLOWEST = 0.3
"""Least resampling factor: the map's own sampling (9 Hz) stays above twice the highest heart rate."""


@dataclass(frozen=True)
class Batch:
    """maps (b, 3, ROWS, columns) of one task; labels (b, prompts) over its rate or relation prompts; rows sum to 1."""

    task: int
    relation: bool
    maps: Tensor
    labels: Tensor


class Lessons:
    """Maps (clips, 2, 3, ROWS, n) with rates (clips, 2, n) in Hz and presence (clips, 2): 1 seen, 0 not, -1 unknown."""

    def __init__(self, maps: Tensor, rates_hz: NDArray[np.float64], presence: NDArray[np.int64], fs_hz: float) -> None:
        self.maps, self.rates_hz, self.presence = maps, rates_hz, presence
        self.span = SPAN_S * fs_hz
        if maps.shape[-1] < self.span:
            raise TeacherError(f"clips of {maps.shape[-1]} samples are shorter than a map ({self.span:.0f} samples)")
        steady = (rates_hz.min(-1) > 0) & (rates_hz.std(-1) <= np.array(STEADY) * rates_hz.mean(-1))
        self.seen = [np.flatnonzero((presence[:, t] == 1) & steady[:, t]) for t in range(len(TASKS))]
        self.absent = [np.flatnonzero(presence[:, t] == 0) for t in range(len(TASKS))]

    @classmethod
    def of(cls, folders: list[Path]) -> Lessons:
        """Rendered caches of one sampling rate, one after the other."""
        fs_hz = {float(json.loads((folder / "spec.json").read_text())["fs_hz"]) for folder in folders}
        if len(fs_hz) != 1:
            raise TeacherError(f"caches sampled at {sorted(fs_hz)} Hz cannot be learned from together")
        truths = [np.load(folder / "truth.npz") for folder in folders]
        rates = [np.stack([t["hr"], t["rr"]], 1) / 60 for t in truths]
        presence = [np.stack([t["pulse_presence"], t["resp_presence"]], 1) for t in truths]
        return cls(torch.cat([maps_of(folder) for folder in folders]), np.concatenate(rates).astype(np.float64),
                   np.concatenate(presence), fs_hz.pop())

    def rate(self, clip: int, task: int, start: float, length: float) -> float:
        """Mean rate in Hz over a span of samples."""
        first = int(start)
        return float(self.rates_hz[clip, task, first:max(first + 1, int(start + length))].mean())

    def cut(self, clips: NDArray[np.intp], task: int, starts: NDArray[np.float64], lengths: NDArray[np.float64],
            columns: int) -> Tensor:
        """Spans of samples as maps."""
        rows = self.maps[torch.from_numpy(clips), task]
        return resample(rows, torch.from_numpy(starts).float(), torch.from_numpy(lengths).float(), columns)

    def whole(self, clips: NDArray[np.intp], task: int, columns: int) -> tuple[Tensor, NDArray[np.float64]]:
        """The middle of each clip at its own pace, and its rate in Hz (0 where there is none)."""
        start = (self.maps.shape[-1] - self.span) / 2
        maps = self.cut(clips, task, np.full(clips.size, start), np.full(clips.size, self.span), columns)
        return maps, np.array([self.rate(int(c), task, start, self.span) for c in clips])

    def paced(self, clip: int, task: int, rng: np.random.Generator) -> tuple[float, float, float]:
        """A span whose rate, played as one map, is spread over the task's prompts: start, length, rate in Hz."""
        low, high = bin_hz()[task][[0, -1]]
        n = self.maps.shape[-1]
        own = float(self.rates_hz[clip, task].mean())
        slowest, fastest = max(SLOWEST, low / own), min(n / self.span, high / own)
        pace = float(np.exp(rng.uniform(np.log(slowest), np.log(fastest)))) if slowest < fastest else 1.0
        length = pace * self.span
        start = float(rng.uniform(0, n - length))
        return start, length, pace * self.rate(clip, task, start, length)

    def rates(self, task: int, count: int, columns: int, rng: np.random.Generator) -> Batch:
        """Maps of one rate each, a third of them without a visible rhythm."""
        clips = np.empty(count, np.intp)
        spans = np.empty((count, 3))
        for i in range(count):
            none = self.absent[task].size and rng.random() < 1 / 3 or not self.seen[task].size
            clips[i] = rng.choice(self.absent[task] if none else self.seen[task])
            if none:
                length = float(np.exp(rng.uniform(np.log(SLOWEST), 0))) * self.span
                spans[i] = rng.uniform(0, self.maps.shape[-1] - length), length, np.nan
            else:
                spans[i] = self.paced(int(clips[i]), task, rng)
        maps = self.cut(clips, task, spans[:, 0], spans[:, 1], columns)
        return Batch(task, False, maps, torch.from_numpy(rate_labels(spans[:, 2], task)))

    def pair(self, clip: int, task: int, ratio: float, rng: np.random.Generator) -> tuple[float, ...] | None:
        """Spans for a left and a right half whose rates have this ratio: start, length, start, length; None where none fits."""
        low, high = bin_hz()[task][[0, -1]]
        low = max(low, CYCLES / (SPAN_S / 2))
        n, half = self.maps.shape[-1], self.span / 2
        own = float(self.rates_hz[clip, task].mean())
        slowest = max(SLOWEST, low / own) / min(ratio, 1)
        fastest = min(n / half, high / own) / max(ratio, 1)
        if slowest > fastest:
            return None
        length = half * float(np.exp(rng.uniform(np.log(slowest), np.log(fastest))))
        start, place, left = float(rng.uniform(0, n - length)), float(rng.random()), ratio * length
        wanted = ratio * length * self.rate(clip, task, start, length)
        for _ in range(3):
            # a rate wanders: the left span is stretched until the true rates have the ratio
            left = min(wanted / self.rate(clip, task, place * (n - left), left), n)
        return place * (n - left), left, start, length

    def relations(self, task: int, count: int, columns: int, rng: np.random.Generator) -> Batch | None:
        """Maps whose halves differ by one of RATIOS, ratios in turn; None where no clip can give one."""
        if not self.seen[task].size:
            return None
        clips: list[int] = []
        spans: list[tuple[float, ...]] = []
        labels: list[int] = []
        for attempt in range(20 * count):
            clip, ratio = int(rng.choice(self.seen[task])), attempt % len(RATIOS)
            span = self.pair(clip, task, RATIOS[ratio], rng)
            if span is not None:
                clips.append(clip)
                spans.append(span)
                labels.append(ratio)
            if len(clips) == count:
                break
        return self.pairs(task, clips, spans, labels, columns) if clips else None

    def pairs(self, task: int, clips: list[int], spans: list[tuple[float, ...]], ratios: list[int],
              columns: int) -> Batch:
        """Relation maps of the given spans (`pair`)."""
        rows, span = np.array(clips, np.intp), np.array(spans)
        maps = joined(self.cut(rows, task, span[:, 0], span[:, 1], columns // 2),
                      self.cut(rows, task, span[:, 2], span[:, 3], columns - columns // 2))
        return Batch(task, True, maps, torch.eye(len(RATIOS))[torch.tensor(ratios)])
