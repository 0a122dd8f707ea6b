"""Heartbeat and breath signals with known truth: what drives a rendered clip.

Everything is a function of a numpy Generator, so a seed gives the same signal on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FINE_HZ = 200.0
"""Signals are made at this rate and read off at the frame times by interpolation."""


@dataclass(frozen=True)
class Rhythm:
    """A quasi-periodic signal on a fine grid.

    wave: (n,), zero mean, unit standard deviation. rate_per_min: (n,), the instantaneous rate. fs_hz: of both.
    """

    wave: Array
    rate_per_min: Array
    fs_hz: float

    def at(self, t_s: Array) -> Array:
        return np.interp(t_s, np.arange(self.wave.size) / self.fs_hz, self.wave)

    def rate_at(self, t_s: Array) -> Array:
        return np.interp(t_s, np.arange(self.wave.size) / self.fs_hz, self.rate_per_min)


def smooth_noise(rng: np.random.Generator, n: int, fs_hz: float, corner_hz: float) -> Array:
    """Unit-variance noise without content above about corner_hz: (n,). A random-phase sum, so it has no start-up."""
    freqs = np.fft.rfftfreq(n, 1.0 / fs_hz)
    spectrum = np.exp(-0.5 * (freqs / corner_hz) ** 2) * np.exp(2j * np.pi * rng.random(freqs.size))
    spectrum[0] = 0.0
    wave = np.fft.irfft(spectrum, n)
    return wave / max(float(wave.std()), 1e-12)


def pulse_shape(rng: np.random.Generator) -> Array:
    """One beat as light absorption over its phase 0-1: systolic rise, and a dicrotic wave after its notch. (256,)

    Camera pulses are rounder than fingertip pulses, so the widths are generous (peak positions and the notch after
    textbook photoplethysmograms; newborns' faster beats leave less room for the notch, so it may vanish).
    """
    phase = np.arange(256) / 256.0
    systole, width = rng.uniform(0.18, 0.32), rng.uniform(0.09, 0.17)
    dicrotic, height = systole + rng.uniform(0.25, 0.38), rng.uniform(0.0, 0.55)
    shape = np.zeros_like(phase)
    for centre, sigma, gain in ((systole, width, 1.0), (dicrotic, rng.uniform(0.09, 0.15), height)):
        distance = (phase - centre + 0.5) % 1.0 - 0.5
        shape += gain * np.exp(-0.5 * (distance / sigma) ** 2)
    return shape


def breath_shape(rng: np.random.Generator) -> Array:
    """One breath over its phase 0-1: a raised cosine with its own inspiration share and a possible pause. (256,)"""
    phase = np.arange(256) / 256.0
    inspiration, pause = rng.uniform(0.32, 0.5), rng.uniform(0.0, 0.25)
    active = 1.0 - pause
    up = inspiration * active
    rise = 0.5 - 0.5 * np.cos(np.pi * np.clip(phase / up, 0, 1))
    fall = 0.5 + 0.5 * np.cos(np.pi * np.clip((phase - up) / (active - up), 0, 1))
    return np.where(phase < up, rise, fall)


def _from_rate(rate_per_min: Array, shape: Array, start_phase: float, fs_hz: float) -> Array:
    phase = start_phase + np.cumsum(rate_per_min / 60.0) / fs_hz
    return np.interp(phase % 1.0, np.arange(shape.size + 1) / shape.size, np.append(shape, shape[0]))


def _standardised(wave: Array) -> Array:
    return (wave - wave.mean()) / max(float(wave.std()), 1e-12)


def breathing(rng: np.random.Generator, rate_per_min: float, duration_s: float, wander: float = 0.06) -> Rhythm:
    """Breaths whose rate wanders by about `wander` (relative) and whose depth varies from breath to breath."""
    n = int(duration_s * FINE_HZ) + 1
    rate = rate_per_min * (1.0 + wander * smooth_noise(rng, n, FINE_HZ, 0.08))
    rate = np.clip(rate, 0.6 * rate_per_min, 1.5 * rate_per_min)
    wave = _from_rate(rate, breath_shape(rng), rng.random(), FINE_HZ)
    depth = 1.0 + 0.2 * smooth_noise(rng, n, FINE_HZ, 0.15)
    return Rhythm(_standardised(wave * np.clip(depth, 0.4, 1.8)), rate, FINE_HZ)


def heartbeat(rng: np.random.Generator, rate_per_min: float, duration_s: float, breath: Rhythm | None,
              wander: float = 0.015) -> Rhythm:
    """Beats whose rate wanders slowly and with breathing (respiratory sinus arrhythmia), and whose size does too."""
    n = int(duration_s * FINE_HZ) + 1
    slow = wander * smooth_noise(rng, n, FINE_HZ, 0.05) + rng.normal(0, 0.02) * np.linspace(-0.5, 0.5, n)
    breathed = np.zeros(n) if breath is None else breath.wave[:n]
    rate = rate_per_min * (1.0 + slow + rng.uniform(0.0, 0.012) * breathed)
    wave = _standardised(_from_rate(rate, pulse_shape(rng), rng.random(), FINE_HZ))
    size = 1.0 + rng.uniform(0.0, 0.15) * breathed + 0.08 * smooth_noise(rng, n, FINE_HZ, 0.3)
    return Rhythm(_standardised(wave * np.clip(size, 0.4, 1.6)), rate, FINE_HZ)
