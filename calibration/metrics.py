"""What an error is: the figures of an evaluation, as pure functions of arrays. Rates are per minute.

Undefined is None and never 0: a mean over nothing, a correlation of two points, a share of no readings. A pair in which
either number is NaN is no pair and is left out. Errors, their standard errors, the rate by periodogram and the signal to
noise ratio follow the definitions of rPPG-Toolbox, so that figures compare; what differs is said where it differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NEAR_PER_MIN = 5.0
"""A shown rate further than this from the truth is wrong (ANSI/AAMI EC13: 5 /min or 10 %, the tighter for newborns)."""

TOOLBOX_BAND_HZ = (0.6, 3.3)
"""rPPG-Toolbox's band, 36 to 198 /min: adults'."""

HARMONIC_PER_MIN = 6.0
"""Half width of what counts as signal around a pulse's rate and its double; 3 for breathing."""

DETREND_LAMBDA = 100.0
"""Smoothness of the trend that is taken off (Tarvainen 2002), at 30 /s for a pulse."""

AGREEMENT_SD = 1.96
"""Standard deviations to either side that hold 95 % of normally distributed differences."""


@dataclass(frozen=True)
class Measured:
    """A figure and its standard error; both None where undefined."""

    value: float | None
    standard_error: float | None


UNDEFINED = Measured(None, None)


def _pairs(found: Sequence[float] | Array, true: Sequence[float] | Array) -> tuple[Array, Array]:
    """The pairs of which both are numbers. Raises ValueError where the lengths differ."""
    one, other = np.asarray(found, np.float64), np.asarray(true, np.float64)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"expected two one-dimensional arrays of one length, got {one.shape} and {other.shape}")
    both = np.isfinite(one) & np.isfinite(other)
    return one[both], other[both]


def mean(values: Sequence[float] | Array) -> Measured:
    """Mean of the numbers among the values; standard error std / sqrt(n), with the population's std as the toolbox has it."""
    numbers = np.asarray(values, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return UNDEFINED
    return Measured(float(numbers.mean()), float(numbers.std() / np.sqrt(numbers.size)))


def mae(found: Sequence[float] | Array, true: Sequence[float] | Array) -> Measured:
    one, other = _pairs(found, true)
    return mean(np.abs(one - other))


def rmse(found: Sequence[float] | Array, true: Sequence[float] | Array) -> Measured:
    """Standard error: square root of that of the mean squared error (the toolbox's own choice)."""
    one, other = _pairs(found, true)
    squares = mean((one - other) ** 2)
    if squares.value is None or squares.standard_error is None:
        return UNDEFINED
    return Measured(float(np.sqrt(squares.value)), float(np.sqrt(squares.standard_error)))


def mape(found: Sequence[float] | Array, true: Sequence[float] | Array) -> Measured:
    """In percent of the truth. A truth of 0 is no rate and is left out."""
    one, other = _pairs(found, true)
    one, other = one[other > 0], other[other > 0]
    return mean(100.0 * np.abs((one - other) / other))


def pearson(found: Sequence[float] | Array, true: Sequence[float] | Array) -> Measured:
    """Correlation; standard error sqrt((1 - r^2) / (n - 2)). None below three pairs or where either does not vary."""
    one, other = _pairs(found, true)
    if one.size < 3 or np.ptp(one) == 0.0 or np.ptp(other) == 0.0:
        return UNDEFINED
    r = float(np.clip(np.corrcoef(one, other)[0, 1], -1.0, 1.0))
    return Measured(r, float(np.sqrt((1.0 - r**2) / (one.size - 2))))


def share_within(found: Sequence[float] | Array, true: Sequence[float] | Array, near: float = NEAR_PER_MIN) -> float | None:
    """Share of the pairs that lie at most `near` apart: of readings a second apart, the share of time."""
    one, other = _pairs(found, true)
    return float((np.abs(one - other) <= near).mean()) if one.size else None


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# --- waves


def detrended(wave: Array, smoothness: float = DETREND_LAMBDA) -> Array:
    """wave (n,) less its smooth trend: (I + lambda^2 D2' D2)^-1 wave, D2 the second difference (Tarvainen 2002)."""
    if wave.size < 3:
        return wave - wave.mean() if wave.size else wave
    from scipy.linalg import solveh_banded

    return wave - solveh_banded(_trend_bands(wave.size, smoothness), wave, lower=True)


@lru_cache(maxsize=16)
def _trend_bands(n: int, smoothness: float) -> Array:
    """Lower bands (3, n) of I + lambda^2 D2' D2."""
    kernel = np.array([1.0, -2.0, 1.0])
    bands = np.zeros((3, n))
    for offset in range(3):
        for k in range(3 - offset):
            bands[offset, k:k + n - 2] += smoothness**2 * kernel[k] * kernel[k + offset]
    bands[0] += 1.0
    return bands


def band_passed(wave: Array, fs_hz: float, band_hz: tuple[float, float], order: int = 1) -> Array:
    """Butterworth forwards and backwards, along the last axis. Raises ValueError for a band that the rate cannot hold."""
    from scipy.signal import butter, filtfilt

    if not 0.0 < band_hz[0] < band_hz[1] < fs_hz / 2:
        raise ValueError(f"band {band_hz} Hz: expected 0 < low < high < {fs_hz / 2} Hz, half of the sampling rate")
    b, a = butter(order, band_hz, btype="bandpass", fs=fs_hz)
    return np.asarray(filtfilt(b, a, wave, axis=-1))


def prepared(wave: Array, fs_hz: float, band_hz: tuple[float, float], smoothness: float = DETREND_LAMBDA) -> Array:
    """A wave as rPPG-Toolbox reads it: detrended, then a first-order band pass."""
    return band_passed(detrended(np.asarray(wave, np.float64), smoothness), fs_hz, band_hz)


def _periodogram(wave: Array, fs_hz: float, nfft: int | None) -> tuple[Array, Array]:
    """Frequencies and power over a rectangular window, padded to nfft (the next power of two)."""
    nfft = max(1 << max(0, wave.size - 1).bit_length(), wave.size) if nfft is None else nfft
    return np.fft.rfftfreq(nfft, 1.0 / fs_hz), np.abs(np.fft.rfft(wave, nfft)) ** 2


def rate_by_fft(wave: Array, fs_hz: float, band_hz: tuple[float, float], nfft: int | None = None) -> float | None:
    """Rate per minute of the highest line in the band. nfft: more bins than the toolbox's next power of two.

    None for a wave without power there, such as a flat one.
    """
    freqs, power = _periodogram(np.asarray(wave, np.float64), fs_hz, nfft)
    inside = np.flatnonzero((freqs >= band_hz[0]) & (freqs <= band_hz[1]))
    if not inside.size or not np.isfinite(power).all() or power[inside].max() <= 0.0:
        return None
    return 60.0 * float(freqs[inside[np.argmax(power[inside])]])


def snr_db(wave: Array, rate_per_min: float, fs_hz: float, band_hz: tuple[float, float],
           near_per_min: float = HARMONIC_PER_MIN) -> float | None:
    """Power within near_per_min of the true rate and of its double, over the rest of the band, in dB.

    The double counts also where it lies above the band, as in the toolbox. None (the toolbox: 0) where there is no rest
    or no signal at all. Older versions of the toolbox print twice this figure (20 log of a power).
    """
    freqs, power = _periodogram(np.asarray(wave, np.float64), fs_hz, None)
    rate_hz, near_hz = rate_per_min / 60.0, near_per_min / 60.0
    signal = (np.abs(freqs - rate_hz) <= near_hz) | (np.abs(freqs - 2 * rate_hz) <= near_hz)
    rest = power[(freqs >= band_hz[0]) & (freqs <= band_hz[1]) & ~signal].sum()
    ratio = power[signal].sum() / rest if rest > 0.0 else 0.0
    return float(10.0 * np.log10(ratio)) if np.isfinite(ratio) and ratio > 0.0 else None


# --- agreement


@dataclass(frozen=True)
class Agreement:
    """Bland-Altman: found less true. lower, upper: 95 % limits of agreement over all pairs, as if they were independent.

    They are not: readings of one subject share its bias, and plain limits are then too narrow. repeated_*: limits from
    the variance within and between subjects (one-way analysis of variance; Bland and Altman 2007, true value varies).
    subject_*: of the subjects' mean differences, each subject once. None where too few.
    """

    pairs: int
    subjects: int
    bias: float | None = None
    lower: float | None = None
    upper: float | None = None
    repeated_lower: float | None = None
    repeated_upper: float | None = None
    subject_bias: float | None = None
    subject_lower: float | None = None
    subject_upper: float | None = None


def bland_altman(found: Sequence[float] | Array, true: Sequence[float] | Array, subjects: Sequence[str]) -> Agreement:
    """subjects: whose pair each one is."""
    one, other = np.asarray(found, np.float64), np.asarray(true, np.float64)
    _pairs(one, other)
    names = np.asarray(subjects, dtype=object)
    if names.shape != one.shape:
        raise ValueError(f"expected a subject for each of {one.size} pairs, got {names.size}")
    kept = np.isfinite(one) & np.isfinite(other)
    difference = (one - other)[kept]
    if not difference.size:
        return Agreement(0, 0)
    _, whose, sizes = np.unique(names[kept].astype(str), return_inverse=True, return_counts=True)
    groups = np.split(difference[np.argsort(whose, kind="stable")], np.cumsum(sizes)[:-1])
    bias = float(difference.mean())
    plain = _limits(bias, float(difference.var(ddof=1)) if difference.size > 1 else None)
    means = np.array([group.mean() for group in groups])
    by_subject = _limits(float(means.mean()), float(means.var(ddof=1)) if means.size > 1 else None)
    repeated = _limits(bias, _variance_of_repeated(groups, bias))
    return Agreement(difference.size, len(groups), bias, *plain, *repeated, float(means.mean()), *by_subject)


def _limits(bias: float, variance: float | None) -> tuple[float | None, float | None]:
    if variance is None:
        return None, None
    reach = AGREEMENT_SD * float(np.sqrt(variance))
    return bias - reach, bias + reach


def _variance_of_repeated(groups: list[Array], overall: float) -> float | None:
    """Variance of one difference: within subjects plus between them. None without two subjects and a repetition."""
    sizes = np.array([group.size for group in groups], np.float64)
    n, k = sizes.sum(), len(groups)
    if k < 2 or n <= k:
        return None
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / (n - k)
    between = sum(group.size * (float(group.mean()) - overall) ** 2 for group in groups) / (k - 1)
    typical = (n - (sizes**2).sum() / n) / (k - 1)
    return within + max(0.0, (between - within) / typical)


# --- answering and being right


@dataclass(frozen=True)
class Curve:
    """What it costs to answer more often: estimates are taken in from the best quality down.

    coverage, mae, wrong (m,): share of all readings answered, mean error and share of wrong ones among those.
    """

    coverage: Array
    mae: Array
    wrong: Array

    def mae_at(self, coverage: float) -> float | None:
        """Mean error at the first point that answers at least this share; None where none does."""
        reached = np.flatnonzero(self.coverage >= coverage - 1e-12)
        return float(self.mae[reached[0]]) if reached.size else None


def coverage_risk(quality: Sequence[float] | Array, estimate: Sequence[float] | Array, true: Sequence[float] | Array,
                  near: float = NEAR_PER_MIN) -> Curve:
    """Of readings with a truth. A reading without an estimate (NaN) can never be answered but counts in the whole.

    Estimates of one quality enter together: their order says nothing.
    """
    rank, one, other = (np.asarray(each, np.float64) for each in (quality, estimate, true))
    whole = int(np.isfinite(other).sum())
    judged = np.isfinite(one) & np.isfinite(other) & np.isfinite(rank)
    order = np.argsort(-rank[judged], kind="stable")
    sorted_rank = rank[judged][order]
    error = np.abs(one - other)[judged][order]
    if not error.size:
        empty = np.zeros(0)
        return Curve(empty, empty, empty)
    last = np.flatnonzero(np.append(np.diff(sorted_rank) != 0.0, True))
    count = last + 1.0
    return Curve(count / whole, np.cumsum(error)[last] / count, np.cumsum(error > near)[last] / count)


@dataclass(frozen=True)
class FirstShown:
    """Over clips: median and 90th percentile of the time of the first number, among those that ever showed one."""

    shown: float | None
    median_s: float | None
    p90_s: float | None


def first_shown(first_s: Sequence[float | None]) -> FirstShown:
    times = [t for t in first_s if t is not None and np.isfinite(t)]
    if not times:
        return FirstShown(share(0, len(first_s)), None, None)
    return FirstShown(len(times) / len(first_s), float(np.median(times)), float(np.quantile(times, 0.9)))


FOLDS = (1 / 3, 1 / 2, 2.0, 3.0)
FOLD_NEAR = 0.04
"""A wrong number within 4 % of one of these multiples of the truth is a fold: a harmonic taken for the rate, or the reverse."""


def folded(found: Array, true: Array) -> int:
    """How many of found (n,) are wrong by being a simple multiple or part of true (n,); NaN is neither."""
    wrong = np.abs(found - true) > NEAR_PER_MIN
    return int(sum(int((wrong & (np.abs(found - k * true) <= FOLD_NEAR * k * true)).sum()) for k in FOLDS))
