"""Recorded beat and breath times that drive rendered clips, whole recordings apart for training and for test.

A folder holds NAME/truth.json with `beats_s` and perhaps `breaths_s`, both in seconds and rising; a recording without
beats_s is passed over.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.rhythms import Array

RECORDINGS_ENV = "PHYSVLM_RECORDINGS"
"""Folder of recordings, where none is given to the renderer."""

TEST_RECORDINGS = ("pics_preterm_infant1_seg1", *(f"welltory_{i:02d}" for i in range(2, 15, 2)))
TRAIN_RECORDINGS = ("pics_preterm_infant1_seg0", *(f"welltory_{i:02d}" for i in range(1, 15, 2)))
"""Fixed halves; a recording in neither is put by the hash of its name."""

MARGIN_S = 2.0
"""Recorded beyond a clip's end, so that the last intervals are real ones too."""

SLOWEST_BEAT_SHARE, FASTEST_BEAT_SHARE = 1.8, 0.5
"""Beat intervals outside these multiples of an excerpt's median are missed or invented beats: such truth is not used."""


class MissingRecordingError(LookupError):
    """A scene names a recording that is not in the folder."""


class BrokenRecordingError(ValueError):
    """A recording's truth.json cannot be used."""


@dataclass(frozen=True)
class Recording:
    """Times in seconds from the recording's start; breaths_s is empty where breathing was not recorded."""

    name: str
    beats_s: Array
    breaths_s: Array


def half_of(name: str) -> str:
    """`train` or `test`: the same for a recording on every machine and in every run."""
    if name in TEST_RECORDINGS:
        return "test"
    if name in TRAIN_RECORDINGS:
        return "train"
    return "test" if hashlib.sha256(name.encode()).digest()[0] < 85 else "train"


def recordings_folder(folder: Path | None = None) -> Path | None:
    """The given folder, else that of PHYSVLM_RECORDINGS, else None."""
    if folder is not None:
        return folder
    named = os.environ.get(RECORDINGS_ENV, "")
    return Path(named) if named else None


@functools.lru_cache(maxsize=256)
def load_recording(folder: Path | None, name: str) -> Recording:
    """Read one recording. Raises MissingRecordingError or BrokenRecordingError; both name the file."""
    if folder is None:
        raise MissingRecordingError(f"the scene is driven by recording {name!r} and no folder of recordings is given; "
                                    f"set {RECORDINGS_ENV} to the folder that holds {name}/truth.json")
    path = folder / name / "truth.json"
    if not path.is_file():
        raise MissingRecordingError(f"{path}: the scene is driven by recording {name!r}, which is not there; set "
                                    f"{RECORDINGS_ENV} to the folder that holds it")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise BrokenRecordingError(f"{path}: not JSON: {error}") from error
    return Recording(name, _times(path, content, "beats_s"), _times(path, content, "breaths_s"))


def _times(path: Path, content: dict[str, object], field: str) -> Array:
    raw = content.get(field)
    if raw is None:
        return np.empty(0)
    times = np.asarray(raw, float) if isinstance(raw, list) else np.empty(0)
    if times.ndim != 1 or times.size < 2 or not np.isfinite(times).all() or not (np.diff(times) > 0).all():
        raise BrokenRecordingError(f"{path}: {field}: expected at least two rising times in seconds")
    return times


@dataclass(frozen=True)
class Excerpt:
    """A place in a recording, and the mean rates there. rr_per_min: None where breathing was not recorded."""

    name: str
    start_s: float
    hr_per_min: float
    rr_per_min: float | None


class Recordings:
    """One half (`train` or `test`) of a folder's recordings. Raises MissingRecordingError for a folder without any."""

    def __init__(self, folder: Path, half: str) -> None:
        if half not in ("train", "test"):
            raise ValueError(f"half {half!r} unknown; choose train or test")
        self.folder, self.half = folder, half
        found = sorted(path.parent.name for path in folder.glob("*/truth.json"))
        loaded = [load_recording(folder, name) for name in found if half_of(name) == half]
        self.recordings = [recording for recording in loaded if recording.beats_s.size]
        if not self.recordings:
            raise MissingRecordingError(f"{folder}: no recording of the {half} half with beats_s in it; expected "
                                        "NAME/truth.json files")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(recording.name for recording in self.recordings)

    def draw(self, rng: np.random.Generator, span_s: float, lowest_hr: float = 0.0) -> Excerpt | None:
        """A random excerpt of span_s with believable beats and a mean rate of at least lowest_hr; None if there is none."""
        fitting = [r for r in self.recordings if 60 / float(np.median(np.diff(r.beats_s))) >= lowest_hr]
        for _ in range(12 if fitting else 0):
            recording = fitting[int(rng.integers(len(fitting)))]
            first, last = recording.beats_s[0], recording.beats_s[-1] - span_s - MARGIN_S
            if last <= first:
                continue
            start = round(float(rng.uniform(first, last)), 3)
            beats = np.diff(window(recording.beats_s, start, span_s))
            usual = float(np.median(beats))
            believable = beats.min() > FASTEST_BEAT_SHARE * usual and beats.max() < SLOWEST_BEAT_SHARE * usual
            if not believable:
                continue
            breaths = window(recording.breaths_s, start, span_s)
            rr = 60 / float(np.median(np.diff(breaths))) if breaths.size > 3 else None
            return Excerpt(recording.name, start, 60 / float(beats.mean()), rr)
        return None


def window(times_s: Array, start_s: float, span_s: float) -> Array:
    """Times from start_s to start_s + span_s with one more on each side, counted from start_s."""
    if not times_s.size:
        return times_s
    low, high = np.searchsorted(times_s, (start_s, start_s + span_s))
    return times_s[max(low - 1, 0):high + 1] - start_s
