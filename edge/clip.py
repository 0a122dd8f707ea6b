"""THE preprocessing: camera frames -> normalised frames on the model's uniform time grid.

Training, calibration and the runtime all call this file, so they cannot drift apart. Three steps, in this order:

1. `area_means`: the region becomes S x S area means in float. Averaging is where the signal-to-noise comes from, and
   rounding the means back to 8 bits would throw the pulse away (it is 0.1-1 % of the light), so nothing is rounded.
2. `GridResampler`: linear interpolation of uneven frame times onto the model's grid. Linear on real timestamps reads
   jittered and dropped frames best; cubic rings on jitter. Gaps are marked, never bridged.
3. `Normaliser`: log light minus its own running mean (three channels: what pulses), and the motion that would explain
   the luminance change against the picture's own gradient (two channels: what breathes). A brightness change at an edge
   has the sign of the edge, so without the gradient a breath is not readable from the change alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.records import Clip, Frame

CHANNELS = 5
"""Delta log blue, green, red; horizontal and vertical normal flow."""

GAP_S = 0.30
"""Neighbouring frames further apart than this are a gap. 5 fps (0.2 s) still interpolates; 1 s is nine missed frames."""

NEW_SEGMENT_S = 1.0
"""After a hole this long the running mean describes another scene and starts anew."""

LOG_OFFSET_COUNTS = 8.0
"""Added before the log so that read noise in black areas stays small against skin (8-bit counts)."""

MEAN_TAU_S = 2.0
"""Time constant of the running mean: a corner at 0.08 Hz, below breathing at 5 per minute."""

LIGHT_SCALE, LIGHT_CLIP = 20.0, 3.0
"""A pulse of 0.5 % becomes 0.1; changes beyond +-15 % are motion or light and saturate."""

FLOW_SCALE, FLOW_CLIP = 4.0, 3.0
"""Flow is in cells of the S x S grid; +-0.75 cell saturates."""

FLOW_FLOOR = 0.04
"""Gradient (log units per cell) at which flow is halved: below it noise would divide by nothing."""


AT_ONCE = 10
"""Grid points that are normalised together: more fill the second-level cache, and fewer cost numpy's calls."""


class RegionError(ValueError):
    """The region of interest does not lie inside the frame."""


@dataclass(frozen=True)
class Region:
    """A rectangle in frame pixels; x, y is its upper left corner."""

    x_px: int
    y_px: int
    w_px: int
    h_px: int

    def check_inside(self, width_px: int, height_px: int) -> None:
        inside = (self.x_px >= 0 and self.y_px >= 0 and self.w_px > 0 and self.h_px > 0
                  and self.x_px + self.w_px <= width_px and self.y_px + self.h_px <= height_px)
        if not inside:
            raise RegionError(
                f"region {self.x_px},{self.y_px},{self.w_px},{self.h_px} does not lie inside the {width_px}x{height_px} "
                f"frame; give X,Y,W,H with X+W <= {width_px} and Y+H <= {height_px}")


def area_means(bgr: NDArray[np.uint8], region: Region, size: int) -> NDArray[np.float32]:
    """Mean of each of size x size cells of the region: float32 (size, size, 3) in 8-bit counts.

    By exact integer sums over bands of rows, half the cost of a float area resize at 640x480 and an eighth of an integral
    image's at 4K. Cell borders lie on whole pixels; a side with fewer pixels than cells is interpolated instead.
    """
    crop = bgr[region.y_px:region.y_px + region.h_px, region.x_px:region.x_px + region.w_px]
    if min(region.w_px, region.h_px) < size:
        larger = cv2.resize(crop.astype(np.float32), (max(region.w_px, size), max(region.h_px, size)),
                            interpolation=cv2.INTER_LINEAR)
        return np.asarray(cv2.resize(larger, (size, size), interpolation=cv2.INTER_AREA), np.float32)
    rows, cols, counts = _cells(region.w_px, region.h_px, size)
    bands = np.empty((size, region.w_px, 3), np.int32)
    for i, (top, bottom) in enumerate(itertools.pairwise(rows)):
        cv2.reduce(crop[top:bottom], 0, cv2.REDUCE_SUM, bands[i:i + 1], cv2.CV_32S)
    return (np.add.reduceat(bands, cols[:-1], axis=1, dtype=np.int32) / counts).astype(np.float32)  # numpy would take int64


@lru_cache(maxsize=8)
def _cells(width_px: int, height_px: int, size: int) -> tuple[list[int], NDArray[np.intp], NDArray[np.float64]]:
    """Borders of the cells' rows and columns, and how many pixels each cell has (size, size, 1)."""
    rows, cols = (np.linspace(0, length, size + 1).round().astype(np.intp) for length in (height_px, width_px))
    counts = np.diff(rows)[:, None] * np.diff(cols)[None, :]
    return rows.tolist(), cols, counts[..., None].astype(np.float64)


class Grid:
    """Uneven frame times -> what each grid point, one every 1 / fs_hz, takes from the frames before and after it."""

    def __init__(self, fs_hz: float) -> None:
        self._step_ns = 1e9 / fs_hz
        self._start_ns = 0
        self._index = 0
        self._last_ns: int | None = None

    def push(self, t_ns: int) -> list[tuple[np.float32 | None, int]] | None:
        """(weight of the frame at t_ns against the one before, grid time) of every grid point up to t_ns; weight None: a gap.

        None for a time that does not advance: the camera repeated a frame, and the one before stays the one before.
        """
        before_ns = self._last_ns
        if before_ns is None:
            self._start_ns, self._last_ns, self._index = t_ns, t_ns, 1
            return [(np.float32(1), t_ns)]
        if t_ns <= before_ns:
            return None
        self._last_ns = t_ns
        bridged = t_ns - before_ns <= GAP_S * 1e9
        points: list[tuple[np.float32 | None, int]] = []
        while (grid_ns := self._start_ns + round(self._index * self._step_ns)) <= t_ns:
            self._index += 1
            points.append((np.float32((grid_ns - before_ns) / (t_ns - before_ns)) if bridged else None, grid_ns))
        return points


class GridResampler:
    """Area means at uneven times -> (mean or None, grid time) at every 1 / fs_hz; None marks a grid point in a gap."""

    def __init__(self, fs_hz: float) -> None:
        self._grid = Grid(fs_hz)
        self._last: NDArray[np.float32] | None = None

    def push(self, t_ns: int, means: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32] | None, int]]:
        """Every grid point up to t_ns. A time that does not advance is dropped (the camera repeated a frame)."""
        points = self._grid.push(t_ns)
        if points is None:
            return
        before = means if self._last is None else self._last
        self._last = means
        for weight, grid_ns in points:
            yield (None if weight is None else before + weight * (means - before)), grid_ns


class Gains:
    """How the running mean takes each grid point in."""

    def __init__(self, fs_hz: float) -> None:
        self._fs_hz = fs_hz
        self._seen = 0
        self._missing = 0

    def push(self, present: bool) -> float | None:
        """None for a gap; 0 where the mean starts with this point, so that there is nothing yet to compare it with; else the
        share of its difference that the mean moves by."""
        if not present:
            self._missing += 1
            if self._missing > NEW_SEGMENT_S * self._fs_hz:
                self._seen = 0
            return None
        self._missing = 0
        self._seen += 1
        # a plain mean until the window is full, so that the start is not a long exponential
        return 0.0 if self._seen == 1 else max(1.0 / self._seen, 1.0 / (MEAN_TAU_S * self._fs_hz))


class Normaliser:
    """Area means on the grid -> float32 (CHANNELS, S, S) each, causal: how they are shared out among calls changes nothing.

    Many at once cost a quarter of one at a time between the pauses of a camera, after which every cache is cold.
    """

    def __init__(self, fs_hz: float, size: int) -> None:
        self._gains = Gains(fs_hz)
        self._size = size
        self._mean = np.zeros((size, size, 3), np.float32)

    def push(self, points: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32]:
        """(n, CHANNELS, S, S): the grid points' normalised frames, in order. Zeros for a gap (None) and for the first frame
        after one that was too long."""
        out = np.zeros((len(points), CHANNELS, self._size, self._size), np.float32)
        for i in range(0, len(points), AT_ONCE):
            part = points[i:i + AT_ONCE]
            gains = [self._gains.push(means is not None) for means in part]
            present = [means for means in part if means is not None]
            if present:
                out[i:i + AT_ONCE][[gain is not None for gain in gains]] = self._normalised(
                    np.stack(present), [gain for gain in gains if gain is not None])
        return out

    def _normalised(self, light: NDArray[np.float32], gains: list[float]) -> NDArray[np.float32]:
        """light: (n, S, S, 3) area means, which are overwritten."""
        light += np.float32(LOG_OFFSET_COUNTS)
        delta, means, mean = np.log(light, out=light), np.empty_like(light), self._mean
        for each, after, gain in zip(delta, means, gains, strict=True):
            if gain == 0:
                mean = each.copy()
            each -= mean
            np.multiply(each, np.float32(gain), out=after)
            after += mean
            mean = after
        self._mean = mean.copy()
        out = np.empty((len(light), CHANNELS, self._size, self._size), np.float32)
        np.multiply(delta.transpose(0, 3, 1, 2), np.float32(LIGHT_SCALE), out=out[:, :3])
        np.clip(out[:, :3], -LIGHT_CLIP, LIGHT_CLIP, out=out[:, :3])
        _normal_flow(_grey(delta), _grey(means), out[:, 3:])
        return out


def _grey(colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over the last axis: three sums, since numpy is slow over so short an axis."""
    return (colours[..., 0] + colours[..., 1] + colours[..., 2]) / np.float32(3)


def _normal_flow(delta: NDArray[np.float32], mean: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Displacement from the running mean, in cells, that explains delta by mean's gradient: out (n, 2, S, S), x then y.

    The diagonal of Lucas and Kanade's normal equations over 3x3 cells. delta, mean: (n, S, S).
    """
    for axis, (before, after, inner) in enumerate(((np.s_[:, :, :-2], np.s_[:, :, 2:], np.s_[:, :, 1:-1]),
                                                   (np.s_[:, :-2], np.s_[:, 2:], np.s_[:, 1:-1]))):
        gradient = np.zeros_like(mean)  # of the outermost cells: none, as where the picture were mirrored there
        np.subtract(mean[after], mean[before], out=gradient[inner])
        gradient *= np.float32(0.5)
        numerator = _box_means(delta * gradient)
        gradient *= gradient
        energy = _box_means(gradient)
        energy += np.float32(FLOW_FLOOR**2)
        np.divide(numerator, energy, out=numerator)
        numerator *= np.float32(-FLOW_SCALE)
        np.clip(numerator, -FLOW_CLIP, FLOW_CLIP, out=out[:, axis])


def _box_means(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 3x3 cells, mirrored at the outermost."""
    n, height, width = cells.shape
    if height == 1:  # a cell that is its own mirror image
        return cells.copy()
    edged = np.empty((n, height + 2, width + 2), np.float32)
    edged[:, 1:-1, 1:-1] = cells
    edged[:, 0], edged[:, -1] = edged[:, 2], edged[:, -3]
    edged[:, :, 0], edged[:, :, -1] = edged[:, :, 2], edged[:, :, -3]
    rows = edged[:, :-2] + edged[:, 1:-1]
    rows += edged[:, 2:]
    means = rows[:, :, :-2] + rows[:, :, 1:-1]
    means += rows[:, :, 2:]
    means /= np.float32(9)
    return means


Points = list[tuple[NDArray[np.float32] | None, bool, int]]
"""(what its builder needs to make the normalised frame, valid, t_ns) of grid points."""


class Builder(Protocol):
    """Frames in, normalised grid frames out: ClipBuilder, and on a GPU edge.cuda_clip's."""

    def push(self, frame: Frame) -> tuple[NDArray[np.float32], Points]:
        """The frame's area means (S, S, 3) in 8-bit counts, and every grid point that it completes."""

    def frames(self, points: Points) -> NDArray[np.float32]:
        """(n, CHANNELS, S, S): the normalised frames of all points since the last call, in order."""


class BuilderLost(RuntimeError):
    """What a builder ran on failed, and its running mean with it. A new one begins afresh; nothing old compares with that."""


MakeBuilder = Callable[[Region, float, int], Builder]
"""(region, fs_hz, size) -> a new builder."""


class ClipBuilder:
    """The three steps in one, with the region fixed between `restart` calls. What a point holds is its area means."""

    def __init__(self, region: Region, fs_hz: float, size: int) -> None:
        self.fs_hz = fs_hz
        self.size = size
        self.restart(region)

    def restart(self, region: Region) -> None:
        """Look at another region from the next frame on. What was normalised before no longer compares."""
        self.region = region
        self._resampler = GridResampler(self.fs_hz)
        self._normaliser = Normaliser(self.fs_hz, self.size)

    def push(self, frame: Frame) -> tuple[NDArray[np.float32], Points]:
        """As Builder's."""
        means = area_means(frame.bgr, self.region, self.size)
        return means, [(resampled, resampled is not None, t_ns)
                       for resampled, t_ns in self._resampler.push(frame.t_ns, means)]

    def frames(self, points: Points) -> NDArray[np.float32]:
        """As Builder's."""
        return self._normaliser.push([resampled for resampled, _, _ in points])


def normalise_clip(frames: Iterator[Frame], region: Region | None, fs_hz: float, size: int,
                   limit: int | None = None) -> Clip:
    """A whole recording at once, by the same steps: for training, calibration and parity checks.

    region None takes the full frame. limit: stop after this many grid points.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError("no frames to normalise: the recording is empty")
    height, width = first.bgr.shape[:2]
    builder = ClipBuilder(region or Region(0, 0, width, height), fs_hz, size)
    points: Points = []
    for frame in itertools.chain([first], iterator):
        points.extend(builder.push(frame)[1])
        if limit is not None and len(points) >= limit:
            points = points[:limit]
            break
    return Clip(builder.frames(points), np.array([valid for _, valid, _ in points]), fs_hz, points[-1][2])
