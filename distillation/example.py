"""One rendered clip as the student learns from it: normalised frames in int8, truth on the same grid, what can be seen.

The cache is keyed by this file's text: what changes a label or a frame belongs here, what only stores them does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.phantom import Phantom
from calibration.scene import Scene
from edge.clip import CHANNELS, LIGHT_CLIP, Region, area_means, normalise_clip

INT8_STEP = LIGHT_CLIP / 127.0

PULSE_SEEN_R2, PULSE_LOST_R2 = 0.40, 0.10
"""A pulse counts as visible when a linear reading of the skin explains this share of it, as lost below the other."""

PULSE_AROUND_HZ = 0.4
"""Around the slowest and the fastest heart rate of a clip: where its pulse is looked for."""

BREATH_OVER_MOTION = 1.0
"""A chest's edge moves by about half of breath_frac; other motion above this share of breath_frac hides the breath."""


@dataclass(frozen=True)
class Example:
    """One clip's truth on the grid: waves (n,), rates per minute (n,), and whether each rhythm can be seen.

    A rate is 0 where there is no rhythm (a pause in breathing, no body) or no label. Presence is 1 (seen), 0 (not there or
    not to be seen) or -1 (in between, or not labelled by the source: neither taught nor judged).
    """

    pulse: NDArray[np.float32]
    resp: NDArray[np.float32]
    hr: NDArray[np.float32]
    rr: NDArray[np.float32]
    valid: NDArray[np.bool_]
    pulse_presence: int
    resp_presence: int


def pulse_r2(light: NDArray[np.float32], pulse: NDArray[np.float64], fs_hz: float, low_hz: float, high_hz: float) -> float:
    """Share of the pulse that the best fixed mix of the skin's mean colours explains around the heart rate.

    light: (n, 3). Both are cut to the slowest and fastest rate +-PULSE_AROUND_HZ first, so the answer is about the pulse
    and not about drift.
    """
    freqs = np.fft.rfftfreq(pulse.size, 1 / fs_hz)
    keep = (freqs >= low_hz - PULSE_AROUND_HZ) & (freqs <= high_hz + PULSE_AROUND_HZ)
    columns = np.fft.rfft(light - light.mean(axis=0), axis=0)[keep]
    target = np.fft.rfft(pulse)[keep]
    stacked = np.concatenate([columns.real, columns.imag])
    goal = np.concatenate([target.real, target.imag])
    mix, *_ = np.linalg.lstsq(stacked, goal, rcond=None)
    return 1.0 - float(((goal - stacked @ mix) ** 2).sum() / max(float((goal**2).sum()), 1e-12))


def make_example(scene: Scene, n_samples: int, fs_hz: float, size: int,
                 recordings: Path | None = None) -> tuple[NDArray[np.int8], Example]:
    """Render one scene: int8 (n_samples, S, S, CHANNELS) and its truth. A short clip is padded with invalid samples.

    recordings: folder of the recorded times that the scene may name.
    """
    body = Phantom(scene, recordings)
    seen_clip = normalise_clip(iter(body), None, fs_hz, size, limit=n_samples)
    n = seen_clip.frames.shape[0]
    pad = n_samples - n
    t_s = seen_clip.t_end_ns / 1e9 + (np.arange(n) - n + 1) / fs_hz
    zero = np.zeros(n)
    pulse = body.pulse.at(t_s) if body.pulse else zero
    resp = body.breath.at(t_s) if body.breath else zero
    hr = body.pulse.rate_at(t_s) if body.pulse else zero
    rr = body.breath.rate_at(t_s) if body.breath else zero
    seen = 0
    if body.pulse is not None:
        region = Region(0, 0, scene.width, scene.height)
        weights = area_means(np.repeat(body.pulse_map()[..., None] * 50, 3, 2).clip(0, 255).astype(np.uint8),
                             region, size)[..., 0]
        light = np.einsum("nchw,hw->nc", seen_clip.frames[:, :3], weights / max(float(weights.sum()), 1e-6))
        r2 = pulse_r2(light, pulse, fs_hz, float(hr.min()) / 60, float(hr.max()) / 60)
        seen = 1 if r2 > PULSE_SEEN_R2 else 0 if r2 < PULSE_LOST_R2 else -1
    frames = np.zeros((n_samples, size, size, CHANNELS), np.int8)
    frames[:n] = np.rint(seen_clip.frames.transpose(0, 2, 3, 1) / INT8_STEP)

    def padded(x: NDArray) -> NDArray[np.float32]:
        return np.pad(x, (0, pad)).astype(np.float32)

    return frames, Example(padded(pulse), padded(resp), padded(hr), padded(rr), np.pad(seen_clip.valid, (0, pad)), seen,
                           _breath_presence(scene, body))


def _breath_presence(scene: Scene, body: Phantom) -> int:
    """As for the pulse. A head that nods a little, a breath smaller than the posture's own motion, and a thing that
    rocks slowly are neither breathing for sure nor surely not."""
    slow_rock = 0 < scene.sway_hz <= 2.2
    if body.breath is None:
        return -1 if slow_rock else 0
    other = max(scene.motion_frac, scene.shake_frac, scene.sway_frac if scene.sway_hz else 0.0)
    hidden = other > BREATH_OVER_MOTION * scene.breath_frac
    return 1 if body.shows_chest and not hidden else -1
