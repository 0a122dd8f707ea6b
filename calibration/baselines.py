"""POS and CHROM, the two classic readings of a pulse from mean skin colour, as what the student has to beat.

Both get the student's own grid of times and window, a band pass over the profile's band, the same post-processing and the
same gate. They know the pulse alone: no breath, and no belief whether a pulse is there. On rendered clips their skin is
known too, in two ways:

pos, chrom                 where the skin is in the resting pose, weighted by how well each place is perfused: the field's
                           usual region of interest, found once, but found perfectly
pos_oracle, chrom_oracle   the same in every single frame, wherever the body moves: no segmentation can do that, and it
                           bounds what one could gain

Written from the papers: POS, Wang, den Brinker, Stuijk and de Haan, IEEE TBME 64 (2017); CHROM, de Haan and Jeanne, IEEE
TBME 60 (2013).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.metrics import Array, band_passed
from calibration.phantom import Phantom
from edge.clip import GridResampler
from edge.gate import Gate
from edge.records import Estimate, Frame, Reading, Reason, Waveform
from edge.vitals import Profile, estimate

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
SkinAt = Callable[[Frame], F32]

WINDOW_S = 1.6
"""Both papers' sliding window: long enough for two beats, short enough that the light stays the same in it."""

CHROM_BAND_HZ = (40 / 60, 240 / 60)
"""CHROM mixes its two signals by their sizes in this band (the paper's 40 to 240 /min)."""

COUNTED_WEIGHT = 0.05
"""Places under this share of the strongest one's weight are cut off: a border of the mask is no skin."""

LEAST_SKIN = 0.02
"""A picture with less skin-coloured area than this share has none that could be told from chance."""

SETTLED_S = 2.0
"""Less valid time than this is not filtered: it would be all edge."""

JUDGED_ON_STUDENT = frozenset({Reason.MOTION, Reason.LIGHT_FLICKER, Reason.CAMERA_SHAKE})
"""Conditions that are found in the student's own features and rate, and say nothing about another method's."""


def skin_mask(bgr: NDArray[np.uint8]) -> F32:
    """Where a picture has the colour of skin (the usual box in YCrCb): float32 (H, W). All of it where hardly anything has."""
    _, red, blue = np.moveaxis(cv2.cvtColor(bgr, cv2.COLOR_BGR2YCrCb), -1, 0)
    mask = (red >= 135) & (red <= 180) & (blue >= 85) & (blue <= 135)
    return (mask if mask.mean() >= LEAST_SKIN else np.ones_like(mask)).astype(np.float32)


def followed_skin(phantom: Phantom) -> SkinAt:
    """The pulse map of each rendered frame, with the body's parts where they are in it: the oracle's mask.

    It looks into the phantom's own layers, and lays maps over each other as that lays pictures.
    """
    size = phantom.scene.width, phantom.scene.height
    layers = []
    for layer in phantom._layers:
        pulse = -sum(change[..., :3].sum(axis=2) for change, name in layer.changes if name == "pulse")
        tex = np.repeat(np.zeros_like(layer.base[..., :1]) + np.atleast_3d(pulse), 3, axis=2)
        layers.append(replace(layer, base=np.concatenate([tex, layer.base[..., 3:]], axis=2).astype(np.float32), changes=()))

    def at(frame: Frame) -> F32:
        canvas = np.zeros((size[1], size[0], 3), np.float32)
        for layer, path in zip(layers, phantom._paths, strict=True):
            phantom._paint(canvas, layer, path, frame.seq)
        cx, cy = phantom._tracks["camera"][frame.seq]
        if cx or cy:
            shift = np.array([[1, 0, cx], [0, 1, cy]], np.float32)
            canvas = cv2.warpAffine(canvas, shift, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        return np.maximum(canvas[..., 0], 0.0)

    return at


class SkinColour:
    """Mean colour of the skin on the model's grid of times.

    skin: (H, W) weights, or a function that gives them for each frame. None, or as long as there are no weights: where the
    first picture has the colour of skin.
    """

    def __init__(self, skin: F32 | SkinAt | None, fs_hz: float) -> None:
        self._skin_at = skin if callable(skin) else None
        self._fixed = _cut(skin) if skin is not None and not callable(skin) and skin.any() else None
        self._grid = GridResampler(fs_hz)
        self._points: list[tuple[F32 | None, int]] = []

    def push(self, frame: Frame) -> None:
        weights = None if self._skin_at is None else self._skin_at(frame)
        if weights is not None and weights.any():
            box, flat = _cut(weights)
        else:
            self._fixed = self._fixed or _cut(skin_mask(frame.bgr))
            box, flat = self._fixed
        skin = frame.bgr[box].reshape(-1, 3).astype(np.float32)
        self._points.extend(self._grid.push(frame.t_ns, np.asarray(flat @ skin, np.float32)))

    def window(self, t_end_ns: int, n: int) -> tuple[Array, Bools]:
        """The last n colours (n, 3) blue, green, red up to t_end_ns, and which of them are valid; older ones are dropped."""
        first_later = next((i for i, (_, t_ns) in enumerate(self._points) if t_ns > t_end_ns), len(self._points))
        latest = self._points[max(0, first_later - n):first_later]
        self._points = [*latest, *self._points[first_later:]]
        colours, valid = np.zeros((n, 3)), np.zeros(n, np.bool_)
        for i, (mean, _) in enumerate(latest, n - len(latest)):
            if mean is not None:
                colours[i], valid[i] = mean, True
        return colours, valid


def pos(colours: Array, valid: Bools, fs_hz: float) -> Array:
    """Pulse (n,) by projection on the plane orthogonal to skin, in windows of WINDOW_S a sample apart, overlap-added.

    colours: (n, 3) blue, green, red. Each sample is divided by the windows that it lies in, so that the ends do not fade
    (the paper leaves that out). Zero where no whole window of valid samples reaches.
    """

    def projected(blue: Array, green: Array, red: Array) -> Array:
        one, other = green - blue, green + blue - 2.0 * red
        return one + _ratio(one, other) * other

    return _overlap_added(colours, valid, round(WINDOW_S * fs_hz), 1, None, projected)


def chrom(colours: Array, valid: Bools, fs_hz: float) -> Array:
    """Pulse (n,) from two chrominances mixed by their sizes in the band, in Hann windows half a window apart."""
    length = 2 * (round(WINDOW_S * fs_hz) // 2)
    hann = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2

    def projected(blue: Array, green: Array, red: Array) -> Array:
        one = band_passed(3.0 * red - 2.0 * green, fs_hz, CHROM_BAND_HZ, order=2)
        other = band_passed(1.5 * red + green - 1.5 * blue, fs_hz, CHROM_BAND_HZ, order=2)
        return one - _ratio(one, other) * other

    return _overlap_added(colours, valid, length, length // 2, hann, projected)


def in_band(wave: Array, valid: Bools, fs_hz: float, band_hz: tuple[float, float]) -> Array:
    """wave (n,) band-passed from its first valid sample on, gaps bridged by straight lines and left to `valid`.

    Neither paper's own step but everybody's: measured here, it makes both methods better, so they get it.
    """
    known = np.flatnonzero(valid)
    out = np.zeros_like(wave)
    if known.size < SETTLED_S * fs_hz:
        return out
    whole = np.interp(np.arange(known[0], wave.size), known, wave[known])
    out[known[0]:] = band_passed(whole, fs_hz, band_hz)
    return out


METHODS: dict[str, Callable[[Array, Bools, float], Array]] = {
    "pos": pos, "chrom": chrom, "pos_oracle": pos, "chrom_oracle": chrom}
ORACLES = ("pos_oracle", "chrom_oracle")
"""Baselines that follow the skin in every frame."""


def _cut(weights: F32) -> tuple[tuple[slice, slice], F32]:
    """The box that holds all weight that counts, and the weights in it, flat and summing to 1."""
    kept = np.where(weights >= COUNTED_WEIGHT * weights.max(), weights, 0.0)
    rows, cols = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
    return box, (kept[box] / kept.sum()).astype(np.float32).ravel()


def _ratio(one: Array, other: Array) -> Array:
    """(m, 1): spread of one over that of other, 0 where other does not vary."""
    spread = other.std(axis=-1, keepdims=True)
    return one.std(axis=-1, keepdims=True) / np.where(spread > 0.0, spread, np.inf)


def _overlap_added(colours: Array, valid: Bools, length: int, step: int, shape: Array | None,
                   projected: Callable[[Array, Array, Array], Array]) -> Array:
    """Windows that end at the newest sample, each colour divided by its mean, projected, centred and added up."""
    n = len(colours)
    wave, weight = np.zeros(n), np.zeros(n)
    starts = np.arange(n - length, -1, -step)[::-1]
    starts = starts[[bool(valid[s:s + length].all()) for s in starts]] if starts.size else starts
    if not starts.size:
        return wave
    windows = np.lib.stride_tricks.sliding_window_view(colours, length, axis=0)[starts]
    means = windows.mean(axis=2, keepdims=True)
    blue, green, red = (windows / np.maximum(means, 1e-6)).transpose(1, 0, 2)
    found = projected(blue, green, red)
    found = found - found.mean(axis=1, keepdims=True)
    shape = np.ones(length) if shape is None else shape
    for start, piece in zip(starts, found * shape, strict=True):
        wave[start:start + length] += piece
        weight[start:start + length] += shape
    return np.where(weight > 0.0, wave / np.maximum(weight, 1e-3), 0.0)


@dataclass(frozen=True)
class Read:
    """What one hop gave a baseline."""

    reading: Reading
    waveform: Waveform
    estimate: Estimate


class Baseline:
    """One classic method behind a gate of its own."""

    def __init__(self, name: str, profile: Profile, fs_hz: float) -> None:
        self._method = METHODS[name]
        self._profile, self._fs_hz = profile, fs_hz
        self._gate = Gate(profile)

    def read(self, colours: Array, valid: Bools, t_end_ns: int, now_ns: int, conditions: Collection[Reason]) -> Read:
        """The pulse read from a window of colours. conditions: what the pipeline found at this hop."""
        low, high = self._profile.hr_band_per_min
        wave = in_band(self._method(colours, valid, self._fs_hz), valid, self._fs_hz, (low / 60.0, high / 60.0))
        scale = float(wave.std())
        wave = (wave / scale if scale > 0.0 else wave).astype(np.float32)
        waveform = Waveform(wave, np.zeros_like(wave), valid, 1.0, 0.0, np.full((2, 1, 1), 1.0, np.float32), self._fs_hz,
                            t_end_ns)
        found = estimate(waveform, self._profile)
        reading = self._gate.update(found, waveform, frozenset(conditions) - JUDGED_ON_STUDENT, now_ns)
        return Read(reading, waveform, found)
