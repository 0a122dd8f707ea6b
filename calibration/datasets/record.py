"""What every reader gives: a ClipRecord, pictures read one at a time beside labels that say how they came about."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge.records import Frame

KINDS = ("pulse", "resp", "hr", "rr")
"""Label kinds: two waves, and two rates per minute."""

RATES = ("hr", "rr")

TRUTHS = ("contact", "device", "derived", "synthetic")
"""How a label came about: a contact sensor's wave; a number that a device worked out and displayed (late, smoothed);
computed by someone from another signal, such as breathing from a pulse wave; rendered."""

COUNT_TOLERANCE_S = 1.0
"""A label with one value per frame and the video may differ in length by this much: a few frames are lost at either end
of many recordings. More means that the two are not of one recording, or one of them was cut."""

MIN_COVERED = 0.5
"""A label on its own clock must cover this share of the video at least; outside it the label is NaN."""

_GAP_STEPS = 3.0  # a hole this many usual steps wide is not interpolated across
_SAME_TIME_S = 1e-6  # frame times are rounded to ns, and must not fall off a label's end for it
_MAX_REPEATED = 0.01  # share of samples that may repeat the time before: a logger's hiccup, not another clock


class DatasetError(RuntimeError):
    """A data set, or one record of it, cannot be read as what it should be.

    path: the file or folder. field: what in it (a line, column, key or data set).
    """

    def __init__(self, path: Path, field: str, problem: str) -> None:
        super().__init__(path, field, problem)  # these three, so that it survives pickling between processes
        self.path = path
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.field}: {self.problem}"


class Pictures(Protocol):
    """Where a record's frames come from; opened anew by every `frames` call, and pickled freely.

    fps: the container's claim, or measured from the times of an image sequence; None where nothing tells.
    count: frames that should come; None where nothing tells.
    """

    @property
    def path(self) -> Path: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def fps(self) -> float | None: ...
    @property
    def count(self) -> int | None: ...
    def frames(self) -> Iterator[Frame]: ...


@dataclass(frozen=True, eq=False)
class Label:
    """One label over time; NaN where the source has no value.

    values, times_s: float64 (n,), n >= 2; times strictly rise and count from the record's first frame.
    aligned: its times can be held against the frames'. A wave that is not aligned gives rates, never phase.
    """

    values: NDArray[np.float64]
    times_s: NDArray[np.float64]
    unit: str
    truth: str
    aligned: bool = True

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.values.shape != self.times_s.shape or self.values.size < 2:
            raise ValueError(f"label: expected two equal rows of 2 or more, got {self.values.shape}, {self.times_s.shape}")
        if not (np.isfinite(self.times_s).all() and (np.diff(self.times_s) > 0).all()):
            raise ValueError("label: times must be finite and rise")
        if self.truth not in TRUTHS:
            raise ValueError(f"label: truth {self.truth!r}, expected one of {', '.join(TRUTHS)}")

    @property
    def rate_hz(self) -> float:
        """Mean sampling rate."""
        return float((self.times_s.size - 1) / (self.times_s[-1] - self.times_s[0]))

    def at(self, times_s: ArrayLike) -> NDArray[np.float64]:
        """Linear interpolation; NaN outside the label, inside a hole of it, and beside a missing value."""
        wanted = np.asarray(times_s, np.float64)
        left = np.clip(np.searchsorted(self.times_s, wanted, side="right") - 1, 0, self.times_s.size - 2)
        before, after = self.times_s[left], self.times_s[left + 1]
        at_before, at_after = self.values[left], self.values[left + 1]
        between = at_before + (wanted - before) / (after - before) * (at_after - at_before)
        bridged = (before < wanted) & (wanted < after) & (after - before <= _GAP_STEPS * np.median(np.diff(self.times_s)))
        value = np.where(bridged, between, np.nan)
        value = np.where(np.abs(wanted - after) < _SAME_TIME_S, at_after, value)
        return np.where(np.abs(wanted - before) < _SAME_TIME_S, at_before, value)


@dataclass(frozen=True, eq=False)
class ClipRecord:
    """One recording of one subject.

    name: stable, unique within the data set, and begins with the subject.
    labels: by kind (KINDS); only what the source holds.
    domain: what a domain-wise evaluation groups by; the data set unless a manifest says otherwise.
    flags: known trouble, in words; empty for most.
    facts: what the source says of the circumstances (light, motion, skin...).
    """

    dataset: str
    subject: str
    name: str
    pictures: Pictures = field(repr=False)
    labels: Mapping[str, Label] = field(repr=False)
    domain: str
    flags: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.labels) - set(KINDS):
            raise ValueError(f"{self.name}: label kind {unknown.pop()!r}, expected one of {', '.join(KINDS)}")
        for kind, label in self.labels.items():
            _check_covers(label, self.pictures, kind)

    @property
    def who(self) -> str:
        """The subject, told apart across data sets: what a split must keep on one side."""
        return f"{self.dataset}/{self.subject}"

    @property
    def fps(self) -> float | None:
        return self.pictures.fps

    @property
    def width(self) -> int:
        return self.pictures.width

    @property
    def height(self) -> int:
        return self.pictures.height

    def truth(self, kind: str) -> Label | None:
        """The label to train or score against, or None: a derived label and an unaligned wave are neither."""
        label = self.labels.get(kind)
        return label if label is not None and label.truth != "derived" and label.aligned else None

    def frames(self) -> Iterator[Frame]:
        """The frames, each decoded when asked for; times in ns from the first frame.

        Raises DatasetError where a picture cannot be read, times do not rise, or the recording ends early.
        """
        last_ns = -1
        for frame in self.pictures.frames():
            if frame.t_ns <= last_ns:
                raise DatasetError(self.pictures.path, f"time of frame {frame.seq}",
                                   f"does not rise: {frame.t_ns / 1e9:.6f} s after {last_ns / 1e9:.6f} s")
            if frame.bgr.shape[:2] != (self.height, self.width):
                raise DatasetError(self.pictures.path, f"frame {frame.seq}", f"expected {self.width}x{self.height}, got "
                                   f"{frame.bgr.shape[1]}x{frame.bgr.shape[0]}; fetch the recording again")
            last_ns = frame.t_ns
            yield frame


def _check_covers(label: Label, pictures: Pictures, kind: str) -> None:
    if pictures.count is None or pictures.fps is None:
        return
    video_s = (pictures.count - 1) / pictures.fps
    covered_s = min(label.times_s[-1], video_s) - max(label.times_s[0], 0.0)
    if covered_s < MIN_COVERED * video_s:
        raise DatasetError(pictures.path, f"{kind} label", f"covers {max(covered_s, 0):.1f} s of a video of {video_s:.1f} s "
                           f"(label from {label.times_s[0]:.1f} to {label.times_s[-1]:.1f} s); is it of this recording, "
                           "and whole?")


def make_label(path: Path, field: str, values: NDArray[np.float64], unit: str, truth: str, *,
               times_s: NDArray[np.float64] | None = None, rate_hz: float | None = None, offset_s: float = 0.0,
               aligned: bool = True) -> Label:
    """A label from a file, on its own times or at an even rate from offset_s; DatasetError names the file and the field.

    Samples that repeat the time before are dropped while they are few; times that fall are refused.
    """
    if values.size < 2:
        raise DatasetError(path, field, f"expected at least 2 values, got {values.size}; fetch the file again")
    if not np.isfinite(values).any():
        raise DatasetError(path, field, f"none of its {values.size} values is a usable number; fetch the file again")
    if times_s is None:
        if rate_hz is None or not (np.isfinite(rate_hz) and rate_hz > 0):
            raise DatasetError(path, field, f"expected a sampling rate above 0 Hz, got {rate_hz}")
        times_s = np.arange(values.size) / rate_hz
    elif times_s.size != values.size:
        raise DatasetError(path, field, f"expected a value for each of {times_s.size} times, got {values.size}")
    times_s, values = rising(path, f"times of {field}", times_s, values)
    return Label(values, times_s + offset_s, unit, truth, aligned)


def rising(path: Path, field: str, times_s: NDArray[np.float64],
           values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times and their values without the few samples that repeat the time before; DatasetError where times fall."""
    steps = np.diff(times_s)
    if not np.isfinite(times_s).all():
        bad = int(np.flatnonzero(~np.isfinite(times_s))[0])
        raise DatasetError(path, field, f"time {bad + 1} of {times_s.size} is no number")
    if (steps < 0).any():
        bad = int(np.flatnonzero(steps < 0)[0])
        raise DatasetError(path, field, f"must rise, but time {bad + 2} is {times_s[bad + 1]:.6f} s after "
                           f"{times_s[bad]:.6f} s; fetch the file again, or leave this recording out")
    fresh = np.concatenate(([True], steps > 0))
    if (~fresh).sum() > max(1.0, _MAX_REPEATED * times_s.size):
        raise DatasetError(path, field, f"{(~fresh).sum()} of {times_s.size} times repeat the one before; expected a clock")
    return times_s[fresh], values[fresh]


def make_rate(kind: str, path: Path, field: str, values: NDArray[np.float64], truth: str, *,
              times_s: NDArray[np.float64] | None = None, rate_hz: float | None = None,
              offset_s: float = 0.0) -> tuple[dict[str, Label], tuple[str, ...]]:
    """A rate per minute by its kind, as `make_label`, and what to flag.

    A device writes 0 or less when it has no reading: NaN here, and no label at all where it never had one.
    """
    none = ~(values > 0)
    flags = (f"{field}: {none.sum()} of {values.size} values are no reading",) if none.any() else ()
    if values.size and none.all():
        return {}, flags
    label = make_label(path, field, np.where(none, np.nan, values), "per_min", truth, times_s=times_s, rate_hz=rate_hz,
                       offset_s=offset_s)
    return {kind: label}, flags


def check_counts(path: Path, field: str, values: int, pictures: Pictures) -> None:
    """For a label with one value per frame: DatasetError when the video's length differs beyond COUNT_TOLERANCE_S."""
    if pictures.count is None or pictures.fps is None:
        return
    if abs(values - pictures.count) > COUNT_TOLERANCE_S * pictures.fps:
        raise DatasetError(path, field, f"expected one value per frame, {pictures.count} as in {pictures.path.name}, got "
                           f"{values}; one of the two was cut: fetch both again")


def split_subjects(records: Iterable[ClipRecord],
                   held_out: Collection[str]) -> tuple[list[ClipRecord], list[ClipRecord]]:
    """(rest, held out), no subject on both sides. held_out: names as `ClipRecord.who` gives them.

    Raises ValueError for a name that no record has: a typing error must not pass as a test on nobody.
    """
    sides: tuple[list[ClipRecord], list[ClipRecord]] = ([], [])
    for record in records:
        sides[record.who in held_out].append(record)
    if missing := set(held_out) - {record.who for record in sides[1]}:
        raise ValueError(f"held-out subject {sorted(missing)[0]} is in no record; "
                         f"the others are {', '.join(sorted({r.who for r in sides[0]})[:8]) or 'none'}")
    return sides
