"""Runs of normalised frames out of a rendered scene or a data set's record, as calibration keeps and hashes them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.phantom import Phantom
from calibration.scene import Scene
from edge.clip import CHANNELS, ClipBuilder, Region

if TYPE_CHECKING:
    from calibration.datasets.record import ClipRecord

STEPS_PER_UNIT = 1000
"""Normalised values are kept as whole steps of a thousandth: a twenty-fourth of the stem's INT8 step at its input (3 / 127),
and +-3 fit int16."""

@dataclass(frozen=True)
class Seen:
    """Normalised frames in STEPS_PER_UNIT, int16 (n, CHANNELS, S, S). valid: no hole in them. level_counts: mean light before
    normalisation, 8-bit counts. grey: the three colours are one."""

    frames: NDArray[np.int16]
    valid: bool
    level_counts: float
    grey: bool


GREY_COUNTS = 1.5
"""Colours that differ by less are one, as under infrared; a codec's rounding makes such differences."""


def windows(source: Scene | ClipRecord, starts: Iterable[int], count: int, fs_hz: float, size: int,
            recordings: Path | None = None) -> Iterator[Seen]:
    """`count` grid points from each of `starts` on (rising, without overlap), in one pass over the whole frame's pictures.

    Where the pictures end inside a window, it comes as short as it is, and no more do. One window is held at a time.
    Raises DatasetError, MissingRecordingError or BrokenRecordingError.
    """
    cv2.setNumThreads(1)
    pictures = Phantom(source, recordings) if isinstance(source, Scene) else source.frames()
    builder = ClipBuilder(Region(0, 0, source.width, source.height), fs_hz, size)
    wanted, at = iter(starts), -1
    start, kept, colours = next(wanted), _Window(), np.zeros(3)
    for frame in pictures:
        means, points = builder.push(frame)
        colours = means.mean(axis=(0, 1), dtype=np.float64)
        for normalised, (_, valid, _) in zip(builder.frames(points), points, strict=True):
            at += 1
            if at < start:
                continue
            kept.add(normalised, valid, colours)
            if len(kept.frames) == count:
                yield kept.seen(size)
                following = next(wanted, None)
                if following is None:
                    return
                start, kept = following, _Window()
    yield kept.seen(size)


@dataclass
class _Window:
    frames: list[NDArray[np.int16]] = field(default_factory=list)
    valid: bool = True
    colours: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, normalised: NDArray[np.float32], valid: bool, colours: NDArray[np.float64]) -> None:
        self.frames.append(np.rint(normalised * np.float32(STEPS_PER_UNIT)).astype(np.int16))
        self.valid &= valid
        self.colours.append(colours)

    def seen(self, size: int) -> Seen:
        frames = np.stack(self.frames) if self.frames else np.empty((0, CHANNELS, size, size), np.int16)
        colours = np.mean(self.colours, axis=0) if self.colours else np.zeros(3)
        return Seen(frames, self.valid, float(colours.mean()), bool(np.ptp(colours) < GREY_COUNTS))


def sha256_of(frames: NDArray[np.int16]) -> str:
    """Of the frames' shape and values, the same on machines of either byte order."""
    return hashlib.sha256(repr(frames.shape).encode() + frames.astype("<i2").tobytes()).hexdigest()


def made_with() -> dict[str, str]:
    """What may change a frame's last bit."""
    return {"numpy": np.__version__, "opencv": cv2.__version__, "machine": platform.machine()}
