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

    wave: (n,), zero mean, unit standard deviation. rate_per_min: (n,), the instantaneous rate, 0 while it pauses.
    fs_hz: of both.
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


def _read_shape(phase: Array, shape: Array) -> Array:
    return np.interp(phase % 1.0, np.arange(shape.size + 1) / shape.size, np.append(shape, shape[0]))


def _from_rate(rate_per_min: Array, shape: Array, start_phase: float, fs_hz: float) -> Array:
    return _read_shape(start_phase + np.cumsum(rate_per_min / 60.0) / fs_hz, shape)


def _standardised(wave: Array) -> Array:
    return (wave - wave.mean()) / max(float(wave.std()), 1e-12)


def from_times(times_s: Array, duration_s: float, shape: Array, longest_s: float = np.inf) -> Rhythm:
    """A rhythm whose peaks stand at given times (beats, or breaths), the shape warped between successive ones.

    The rate is 60 / interval, interpolated between the intervals' middles. An interval longer than `longest_s` is a
    pause: the last breath ends and the next begins at the usual pace, and in between the wave rests and the rate is 0.
    Before the first and after the last time it goes on at the median interval. Raises ValueError for times that do not
    rise or are fewer than two.
    """
    times = np.asarray(times_s, float)
    if times.size < 2 or not (np.diff(times) > 0).all():
        raise ValueError(f"beat or breath times: expected at least two, strictly rising; got {times.size}, smallest step "
                         f"{np.diff(times).min() if times.size > 1 else 'none'} s")
    usual = float(np.median(np.diff(times)))
    before = np.arange(np.ceil(max(times[0], 0) / usual) + 1, 0, -1)
    after = np.arange(1, np.ceil(max(duration_s - times[-1], 0) / usual) + 2)
    times = np.concatenate([times[0] - before * usual, times, times[-1] + after * usual])
    shape = np.roll(shape, -int(np.argmax(shape)))
    rest = (int(np.argmin(shape)) + 0.5) / shape.size
    knots_t, knots_phase, rates_t, rates = [], [], [], []
    grid = np.arange(int(duration_s * FINE_HZ) + 1) / FINE_HZ
    paused = np.zeros(grid.size, bool)
    for k, (start, stop) in enumerate(zip(times[:-1], times[1:], strict=True)):
        knots_t.append(start)
        knots_phase.append(k)
        if stop - start <= longest_s:
            rates_t.append((start + stop) / 2)
            rates.append(60 / (stop - start))
            continue
        ends, begins = start + rest * usual, stop - (1 - rest) * usual
        knots_t += [ends, begins]
        knots_phase += [k + rest, k + rest]
        rates_t += [ends, begins]
        rates += [60 / usual, 60 / usual]
        paused |= (grid >= ends) & (grid < begins)
    wave = _read_shape(np.interp(grid, [*knots_t, times[-1]], [*knots_phase, times.size - 1]), shape)
    return Rhythm(_standardised(wave), np.where(paused, 0.0, np.interp(grid, rates_t, rates)), FINE_HZ)


def _walk(rng: np.random.Generator, rate_per_min: Array, spread: float, pause_s: float = 0.0,
          burst_s: float = np.inf) -> Array:
    """Event times that follow a rate on the fine grid, each interval off by `spread` (relative): from before 0 to past the
    end. With pause_s, a pause of about that length follows every burst of about burst_s."""
    end_s = rate_per_min.size / FINE_HZ + 1.0
    times = [-float(rng.random()) * 60 / float(rate_per_min[0])]
    next_pause_s = burst_s * rng.uniform(0.2, 1.0) if pause_s else np.inf
    while times[-1] < end_s:
        here = min(max(int(times[-1] * FINE_HZ), 0), rate_per_min.size - 1)
        step = 60 / float(rate_per_min[here]) * float(np.clip(1 + spread * rng.normal(), 0.6, 1.8))
        if times[-1] >= next_pause_s:
            step += pause_s * rng.uniform(0.85, 1.15)
            next_pause_s = times[-1] + step + burst_s * rng.uniform(0.7, 1.3)
        times.append(times[-1] + step)
    return np.array(times)


PAUSE_INTERVALS = 2.5
"""A breath-to-breath interval of this many usual ones is a pause."""


def breathing(rng: np.random.Generator, rate_per_min: float, duration_s: float, wander: float = 0.06, *,
              spread: float = 0.0, pause_s: float = 0.0, burst_s: float = 12.0) -> Rhythm:
    """Breaths whose rate wanders by about `wander` (relative) and whose depth varies from breath to breath.

    spread: relative variation of each interval (10-30 % in infants). pause_s: periodic breathing, bursts of about
    burst_s and then a pause; the rate in a pause is 0.
    """
    n = int(duration_s * FINE_HZ) + 1
    rate = rate_per_min * (1.0 + wander * smooth_noise(rng, n, FINE_HZ, 0.08))
    rate = np.clip(rate, 0.6 * rate_per_min, 1.5 * rate_per_min)
    shape = breath_shape(rng)
    if spread or pause_s:
        times = _walk(rng, rate, spread, pause_s, burst_s)
        made = from_times(times, duration_s, shape, PAUSE_INTERVALS * 60 / rate_per_min if pause_s else np.inf)
        wave, rate = made.wave - made.wave.min(), made.rate_per_min
    else:
        wave = _from_rate(rate, shape, rng.random(), FINE_HZ)
    return _with_depth(rng, wave, rate)


def recorded_breathing(rng: np.random.Generator, times_s: Array, duration_s: float) -> Rhythm:
    """Breaths at recorded times, long intervals being pauses."""
    longest = PAUSE_INTERVALS * float(np.median(np.diff(times_s)))
    made = from_times(times_s, duration_s, breath_shape(rng), longest)
    return _with_depth(rng, made.wave - made.wave.min(), made.rate_per_min)


def _with_depth(rng: np.random.Generator, wave: Array, rate: Array) -> Rhythm:
    depth = 1.0 + 0.2 * smooth_noise(rng, wave.size, FINE_HZ, 0.15)
    return Rhythm(_standardised(wave * np.clip(depth, 0.4, 1.8)), rate, FINE_HZ)


def episode(n: int, at_s: float, length_s: float, change: float) -> Array:
    """Factor on a rate: 1, and 1 + change in the middle of an episode that starts and ends softly. (n,) on the fine grid."""
    t_s = np.arange(n) / FINE_HZ
    onset = np.clip((t_s - at_s) / (0.25 * length_s), 0, 1)
    recovery = np.clip((at_s + length_s - t_s) / (0.35 * length_s), 0, 1)
    soft = np.minimum(onset, recovery)
    return 1.0 + change * soft * soft * (3 - 2 * soft)


def heartbeat(rng: np.random.Generator, rate_per_min: float, duration_s: float, breath: Rhythm | None,
              wander: float = 0.015, *, variability: float = 0.0, profile: Array | None = None) -> Rhythm:
    """Beats whose rate wanders slowly and with breathing (respiratory sinus arrhythmia), and whose size does too.

    variability: relative standard deviation of beat intervals on top, in three parts: with the breath, slow (about
    0.1 Hz), and from beat to beat. profile: factor on the rate over the fine grid (an episode).
    """
    n = int(duration_s * FINE_HZ) + 1
    slow = wander * smooth_noise(rng, n, FINE_HZ, 0.05) + rng.normal(0, 0.02) * np.linspace(-0.5, 0.5, n)
    breathed = np.zeros(n) if breath is None else breath.wave[:n]
    rate = rate_per_min * (1.0 + slow + rng.uniform(0.0, 0.012) * breathed)
    if profile is not None:
        rate = rate * profile
    shape = pulse_shape(rng)
    if variability:
        rate = rate * np.clip(1 + variability * (0.5 * breathed + 0.7 * smooth_noise(rng, n, FINE_HZ, 0.12)), 0.6, 1.5)
        made = from_times(_walk(rng, rate, 0.4 * variability), duration_s, shape)
        return _with_size(rng, made.wave, made.rate_per_min, breathed)
    wave = _standardised(_from_rate(rate, shape, rng.random(), FINE_HZ))
    return _with_size(rng, wave, rate, breathed)


def recorded_heartbeat(rng: np.random.Generator, times_s: Array, duration_s: float, breath: Rhythm | None) -> Rhythm:
    """Beats at recorded times."""
    made = from_times(times_s, duration_s, pulse_shape(rng))
    return _with_size(rng, made.wave, made.rate_per_min, np.zeros(made.wave.size) if breath is None else breath.wave)


def _with_size(rng: np.random.Generator, wave: Array, rate: Array, breathed: Array) -> Rhythm:
    n = wave.size
    size = 1.0 + rng.uniform(0.0, 0.15) * breathed[:n] + 0.08 * smooth_noise(rng, n, FINE_HZ, 0.3)
    return Rhythm(_standardised(wave * np.clip(size, 0.4, 1.6)), rate, FINE_HZ)
