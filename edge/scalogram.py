"""Analytic Morlet transform of a wave with gaps, and the best path through its scalogram.

Own transform instead of PyWavelets: it is twenty lines of FFT, saves a 28 MB import on the device, and keeps the complex
coefficients, whose phase turns between two instants at the rhythm's own frequency. So a rate is read from the ridge's
phase and is not bound to the grid of analysed frequencies. The grid is logarithmic, so that a harmonic is a fixed number
of rows up. Each wavelet's band is narrow, so its coefficients are taken at about 2 Hz, by folding the spectrum before the
inverse FFT. Sigma is bounded on both sides: a plain wavelet would be too short to part a fast pulse from a breath's
harmonic, and too long for a slow breath to leave the cone of influence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

BINS_PER_OCTAVE = 28  # 2.5 % a row: under the narrowest wavelet's half width up to 4 Hz; the 2nd harmonic is 28 rows up
INSTANTS_HZ = 1.8  # least rate of ridge points: above a wavelet's whole band (+-3.5 / (2 pi 1 s) = 1.1 Hz)
JUMP_ROWS = 5  # the ridge moves at most this many rows an instant (13 % in 0.53 s): faster is a different rhythm
JUMP_COST = 0.02  # per row squared, against a best salience of 1 an instant: a 13 % step costs half an instant
SPREAD_OF_WINDOW = 0.2  # longest sigma over the window: leaves three fifths of it outside the cone of influence
TOUCHED = 0.3  # below this part there is nothing at all to see at that instant
HEARD = 0.1  # least part of a wave's variance below heard_hz: with less it is hiss or vibration, not a rhythm of a body
FLAT = 1e-5  # residual rms over largest value, below which a wave is a straight line and float32 rounding
EARLIEST_S = 4.0  # valid time under which nothing is looked for: four beats, two breaths of a newborn
NEWEST_S = 1.0  # the newest valid sample must be this fresh: a rate describes now or is not given


class VitalsError(ValueError):
    """An array that cannot be analysed was passed in: the caller's bug, not signal trouble."""


@dataclass(frozen=True)
class Search:
    """How one rhythm is looked for.

    lo_hz, hi_hz: analysed range. heard_hz: noise counts up to here.
    cycles: wavelet's omega * sigma, until sigma reaches spread_min_s or spread_max_s.
    min_span_s, min_cycles: valid time and rhythm that the averaging window must hold.
    alive_s: newest part of the window in which the rhythm must still go on.
    explained: share of the wave's variance that the ridge explains, from which quality counts 0 and up to which 1.
    wander: ridge's mean deviation in units of the wavelet's own half width at which quality has halved.
    trim: ridge points further than this many half widths from the median are phase slips and do not count in the rate.
    late: half widths between the newest ridge and the mean rate at which quality has halved, for the mean is past; 0 = never.
    """

    lo_hz: float
    hi_hz: float
    heard_hz: float
    cycles: float
    spread_min_s: float
    spread_max_s: float
    min_span_s: float
    min_cycles: float
    alive_s: float
    explained: tuple[float, float]
    wander: float
    trim: float
    late: float


def scalogram(x: Floats, fs_hz: float, freqs_hz: Floats, spread_s: Floats) -> Floats:
    """Power (F, n) of x (n,): the squared amplitude that a tone at each frequency would have.

    spread_s (F,): sigma of each frequency's Gaussian g, of unit area; zeros are assumed outside of x.
    W(f, t) = 2 * integral x(u) g(u - t) exp(-2 pi i f (u - t)) du. Raises VitalsError where x is not finite.
    """
    filters = _filters(_fft_length(len(x), fs_hz, float(np.max(spread_s))), fs_hz, freqs_hz, spread_s)
    return np.abs(_coefficients(_finite(x), filters, 1)) ** 2


def ridge(salience: Floats) -> NDArray[np.intp]:
    """Row of the best path (T,) through salience (F, T): most salience, less JUMP_COST per squared row of each step."""
    rows, instants = salience.shape
    moves = np.arange(-JUMP_ROWS, JUMP_ROWS + 1)
    cost = (JUMP_COST * moves**2).astype(salience.dtype)
    came_from = np.zeros((instants, rows), dtype=np.intp)
    reach = np.full(rows + 2 * JUMP_ROWS, -np.inf, dtype=salience.dtype)
    reachable = np.lib.stride_tricks.sliding_window_view(reach, len(moves))  # a view: each row sees its neighbours
    every = np.arange(rows)
    best = salience[:, 0]
    for j in range(1, instants):
        reach[JUMP_ROWS:-JUMP_ROWS] = best
        options = reachable - cost
        chosen = options.argmax(axis=1)
        came_from[j] = every + moves[chosen]
        best = options[every, chosen] + salience[:, j]
    path = np.empty(instants, dtype=np.intp)
    path[-1] = int(best.argmax())
    for j in range(instants - 1, 0, -1):
        path[j - 1] = came_from[j, path[j]]
    return path


@dataclass(frozen=True)
class Bank:
    """Everything about a search that depends on length and rate alone. step: samples between two instants."""

    search: Search
    freqs_hz: Floats
    spread_s: Floats
    filters: Floats
    step: int
    times_s: Floats


@dataclass(frozen=True)
class Transformed:
    """A transformed wave, scaled. heard (n,): up to heard_hz, with the straight line that coefficients (F, T) lack."""

    heard: Floats
    valid: Bools
    fs_hz: float
    bank: Bank
    coefficients: NDArray[np.complexfloating]
    coverage: Floats


def _finite(x: Floats) -> Floats:
    if x.ndim != 1 or not np.isfinite(x).all():
        raise VitalsError(f"expected a finite one-dimensional wave, got shape {x.shape} with "
                          f"{int((~np.isfinite(x)).sum())} values not finite: mark gaps in `valid`, do not pass NaN")
    return x


def _spread_s(search: Search, freqs_hz: Floats, window_s: float) -> Floats:
    """Sigma (F,) of each frequency's Gaussian."""
    longest_s = max(search.spread_min_s, min(search.spread_max_s, SPREAD_OF_WINDOW * window_s))
    return np.clip(search.cycles / (2.0 * np.pi * np.asarray(freqs_hz)), search.spread_min_s, longest_s)


def _fft_length(n: int, fs_hz: float, spread_max_s: float) -> int:
    """Power of two that leaves four sigma of zeros, so that the end does not wrap round to the start."""
    return 1 << int(np.ceil(np.log2(n + 4.0 * spread_max_s * fs_hz)))


def _filters(n_fft: int, fs_hz: float, freqs_hz: Floats, spread_s: Floats) -> Floats:
    nu = np.arange(n_fft // 2) * (fs_hz / n_fft)
    turns = 2.0 * np.pi * (nu[None, :] - np.asarray(freqs_hz)[:, None]) * np.asarray(spread_s)[:, None]
    filters = 2.0 * np.exp(-0.5 * turns**2)
    filters[:, 0] = 0.0
    return filters.astype(np.float32)


def _coefficients(x: Floats, filters: Floats, step: int) -> NDArray[np.complexfloating]:
    """Analytic coefficients (F, ceil(n / step)); the spectrum is folded, which is exact for bands under fs / step."""
    half = filters.shape[1]
    spectrum = filters * np.fft.fft(x.astype(np.float32), 2 * half)[:half].astype(np.complex64)
    if step > 1:
        spectrum = spectrum.reshape(len(filters), step // 2, -1).sum(axis=1) / step
    return np.fft.ifft(spectrum, 2 * half // step)[:, : -(-len(x) // step)]


@lru_cache(maxsize=8)
def _bank(search: Search, n: int, fs_hz: float) -> Bank:
    top = min(search.hi_hz, 0.45 * fs_hz)
    if top < 4.0 * search.lo_hz:
        raise VitalsError(f"expected at least {9.0 * search.lo_hz:.1f} samples a second, got {fs_hz}")
    rows = int(np.log2(top / search.lo_hz) * BINS_PER_OCTAVE) + 1
    freqs = search.lo_hz * 2.0 ** (np.arange(rows) / BINS_PER_OCTAVE)
    spread = _spread_s(search, freqs, n / fs_hz)
    filters = _filters(_fft_length(n, fs_hz, float(spread.max())), fs_hz, freqs, spread)
    step = 1 << max(0, int(np.log2(fs_hz / INSTANTS_HZ)))
    times = (np.arange(-(-n // step)) * step - (n - 1)) / fs_hz
    return Bank(search, freqs, spread, filters, step, times)


@lru_cache(maxsize=16)
def _coverage(bank_key: tuple[Search, int, float], valid: bytes) -> Floats:
    """Part (F, T) of each wavelet's Gaussian that lies on valid samples."""
    bank = _bank(*bank_key)
    mask = np.frombuffer(valid, dtype=np.bool_).astype(np.float64)
    n_fft = 2 * bank.filters.shape[1]
    spreads, row = np.unique(bank.spread_s, return_inverse=True)
    turns = 2.0 * np.pi * np.fft.rfftfreq(n_fft, 1.0 / bank_key[2])[None, :] * spreads[:, None]
    covered = np.fft.irfft(np.fft.rfft(mask, n_fft) * np.exp(-0.5 * turns**2), n_fft)
    return np.clip(covered[:, : len(mask) : bank.step], 0.0, 1.0)[row].astype(np.float32)


def transformed(x: Floats, valid: Bools, fs_hz: float, search: Search) -> Transformed | None:
    """None: flat, a straight line, or too few valid samples."""
    x = _finite(x).astype(np.float64)
    count = int(valid.sum())
    if count < EARLIEST_S * fs_hz or float(np.argmax(valid[::-1])) > NEWEST_S * fs_hz:
        return None
    t = np.linspace(-1.0, 1.0, len(x))
    line = np.polynomial.polynomial.polyfit(t[valid], x[valid], 1)
    rest = np.where(valid, x - line[0] - line[1] * t, 0.0)
    if np.sqrt((rest**2).sum() / count) <= FLAT * np.abs(x[valid]).max():
        return None
    scale = np.abs(rest).max()
    key = (search, len(x), float(fs_hz))
    bank, coverage = _bank(*key), _coverage(key, valid.tobytes())
    seen = coverage >= TOUCHED
    coefficients = _coefficients(rest / scale, bank.filters, bank.step)
    coefficients = np.where(seen, coefficients / np.where(seen, coverage, 1.0), 0.0)
    heard = _below(rest, search.heard_hz, fs_hz)
    if heard.var() < HEARD * rest.var():
        return None
    return Transformed((heard + line[1] * t) / scale, valid, fs_hz, bank, coefficients, coverage)


def _below(x: Floats, top_hz: float, fs_hz: float) -> Floats:
    """x without what lies above top_hz."""
    spectrum = np.fft.rfft(x)
    spectrum[np.fft.rfftfreq(len(x), 1.0 / fs_hz) > top_hz] = 0.0
    return np.fft.irfft(spectrum, len(x))
