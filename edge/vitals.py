"""Rates and their quality from the student's two waves: wavelet scalogram, ridge over time, fundamental, rate.

Own analytic Morlet transform instead of PyWavelets: it is twenty lines of FFT, saves a 28 MB import on the device, and
keeps the complex coefficients, whose phase turns between two instants at the rhythm's own frequency. So a rate is read
from the ridge's phase and is not bound to the grid of analysed frequencies. The grid is logarithmic, so that a harmonic
is a fixed number of rows up. Each wavelet's band is narrow, so its coefficients are taken at about 2 Hz, by folding the
spectrum before the inverse FFT. Sigma is bounded on both sides: a plain wavelet would be too short to part a fast pulse
from a breath's harmonic, and too long for a slow breath to leave the cone of influence.

The analysed range is wider than any profile's band on purpose: a rhythm outside the band is read where it is and
refused by the gate, never folded into the band. Rates are hertz in here, per minute in `Estimate`. Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge.records import Estimate, Waveform

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


class VitalsError(ValueError):
    """An array that cannot be analysed was passed in: the caller's bug, not signal trouble."""


@dataclass(frozen=True)
class Profile:
    """Whose rhythms are looked for. Bands are per minute, inclusive."""

    name: str
    hr_band_per_min: tuple[float, float]
    rr_band_per_min: tuple[float, float]
    hr_averaging_s: float
    rr_averaging_s: float


# Averaging: NICU oximeters average 8 s by default; breathing needs twice that to hold several breaths.
# Bands: a newborn's monitor alarms at 60 and 230 /min (PMC6906083, table 6); newborns breathe at 15-120 /min, and 5 is
# next to apnoea. Adults: bradycardia of the trained to maximal effort; breathing at rest and under effort.
PROFILES: dict[str, Profile] = {
    "neonate": Profile("neonate", (60.0, 250.0), (5.0, 120.0), 8.0, 16.0),
    "adult": Profile("adult", (40.0, 220.0), (4.0, 60.0), 8.0, 16.0),
}

BINS_PER_OCTAVE = 28  # 2.5 % a row: under the narrowest wavelet's half width up to 4 Hz; the 2nd harmonic is 28 rows up
INSTANTS_HZ = 1.8  # least rate of ridge points: above a wavelet's whole band (+-3.5 / (2 pi 1 s) = 1.1 Hz)
JUMP_ROWS = 5  # the ridge moves at most this many rows an instant (13 % in 0.53 s): faster is a different rhythm
JUMP_COST = 0.02  # per row squared, against a best salience of 1 an instant: a 13 % step costs half an instant
SPREAD_OF_WINDOW = 0.2  # longest sigma over the window: leaves three fifths of it outside the cone of influence
COVERED = 0.84  # an instant counts if this part of its wavelet lies on valid samples: one sigma inside the edge
TOUCHED = 0.3  # below this part there is nothing at all to see at that instant
OCTAVE_SUPPORT = 0.5  # part of its 2nd harmonic's power (at most its own) that speaks for a fundamental while following
OCTAVE_POWER = 0.15  # a followed 2nd harmonic gives way to a fundamental of at least this part of its power ...
OCTAVE_LOCK = 0.9  # ... whose phase it keeps to this steadily; independent rhythms reach it once in 30 windows
HEARD = 0.1  # least part of a wave's variance below heard_hz: with less it is hiss or vibration, not a rhythm of a body
ALIVE = 0.25  # newest ridge power over its recent mean, from which a rhythm goes on: bodies halve it, not quarter it
FLAT = 1e-5  # residual rms over largest value, below which a wave is a straight line and float32 rounding
EARLIEST_S = 4.0  # valid time under which nothing is looked for: four beats, two breaths of a newborn
LEAST_INSTANTS = 3  # ridge points outside the cone of influence without which there is no rate
EDGE = 0.01  # weight of a ridge point at the cone's edge, where inside it is up to 0.16
NEWEST_S = 1.0  # the newest valid sample must be this fresh: a rate describes now or is not given
HARMONICS = (2, 3)  # beyond the third, pulse and breath are below a camera's noise


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


# Pulse: 0.2 Hz sees a slow breath's leak, 9 Hz the 2nd harmonic of 250 /min. Sigma 1 s: beat variability still moves
# the ridge, and 9.5 /min of half width parts neighbours (1.3 s reads real variability no better). 5 s holds five beats
# of the slowest newborn heart. White noise explains up to 0.2, a pulse as strong as all else between 0 and 6 Hz 0.5.
PULSE = Search(0.2, 9.0, 6.0, 6.0, 1.0, 2.5, 5.0, 4.0, 3.0, (0.15, 0.6), 0.5, 1.5)
# Breath: 0.05 Hz sees drift, 6 Hz sees vibration (5 Hz) as what it is. Newborns breathe unevenly (intervals vary by 10
# to 30 % within 16 s), so sigma is as short as the pulse's and wander counts less; what noise gains by that, explained
# takes back. Two and a half breaths are the least that differ from drift: 17 s read from 9 /min up, slower needs more.
BREATH = Search(0.05, 6.0, 3.0, 6.0, 1.0, 7.0, 11.0, 2.5, 6.0, (0.4, 0.8), 1.0, 3.0)

# Breathing that leaks into the pulse wave is strongest at the breathing rate itself. What stands at k times that rate
# is taken for leak up to LEAK_MARGIN (6 dB) times what the breath's own harmonics, at least 1 / k^2, would carry there.
LEAK_HARMONICS = (1, 2, 3, 4)
LEAK_MARGIN = 4.0
LEAK_BREATH_QUALITY = 0.1  # a breathing ridge poorer than this says nothing about leak
LEAK_KEPT = 0.5  # a pulse ridge that loses more than half of its power to the leak's share is leak
SAME_RHYTHM_HZ = 0.05  # 3 /min: closer than this the pulse and the breathing ridge are one rhythm seen twice
SAME_RHYTHM_LEAD = 0.1  # by this the breathing wave's belief must exceed the pulse wave's to keep a shared rhythm


@dataclass(frozen=True)
class Track:
    """One rhythm followed through a window; also what a plot needs.

    freqs_hz (F,); times_s (T,) before the window's last sample; power (F, T), a tone's amplitude squared;
    ridge_hz (T,); usable bool (T,), outside the cone of influence of edges and gaps.
    rate_hz: None where no ridge stands out. quality: 0-1, without the student's belief.
    enough: the valid time holds enough of the rhythm; else the rate is a first guess, good for excluding leak alone.
    """

    freqs_hz: Floats
    times_s: Floats
    power: Floats
    ridge_hz: Floats
    usable: Bools
    rate_hz: float | None = None
    quality: float = 0.0
    enough: bool = False


def estimate(waveform: Waveform, profile: Profile) -> Estimate:
    """Rates over the profile's averaging windows that end at the waveform's end.

    None: no rhythm stands out, or too little is valid. Raises VitalsError for a rate too low to analyse.
    """
    pulse, breath = analyse(waveform, profile)
    hr_hz, hr_quality = _told(pulse, waveform.pulse_presence)
    rr_hz, rr_quality = _told(breath, waveform.resp_presence)
    return Estimate(hr_hz and 60.0 * hr_hz, hr_quality, rr_hz and 60.0 * rr_hz, rr_quality, waveform.t_end_ns)


def _told(track: Track | None, presence: float) -> tuple[float | None, float]:
    if track is None or track.rate_hz is None or not track.enough:
        return None, 0.0
    return track.rate_hz, track.quality * presence


def analyse(waveform: Waveform, profile: Profile) -> tuple[Track | None, Track | None]:
    """Pulse and breathing tracks; None where a wave is flat or has too few valid samples.

    Pulse and breath at one rate are one rhythm seen twice. The pulse is then always refused, and the breath too
    where a heart may beat that fast, unless its own wave makes clearly the better case.
    """
    w = waveform
    breath_wave = _transformed(w.resp, w.valid, w.fs_hz, BREATH)
    pulse_wave = _transformed(w.pulse, w.valid, w.fs_hz, PULSE)
    breath = _follow(breath_wave, profile.rr_averaging_s) if breath_wave else None
    if pulse_wave is None:
        return None, breath
    if breath is None or breath.rate_hz is None or breath.quality < LEAK_BREATH_QUALITY:
        return _follow(pulse_wave, profile.hr_averaging_s), breath
    pulse = _follow(pulse_wave, profile.hr_averaging_s, breath)
    if pulse.quality < LEAK_BREATH_QUALITY and 60.0 * breath.rate_hz >= profile.hr_band_per_min[0]:
        alone = _follow(pulse_wave, profile.hr_averaging_s)
        same = alone.rate_hz is not None and abs(alone.rate_hz - breath.rate_hz) < SAME_RHYTHM_HZ
        lead = breath.quality * w.resp_presence - alone.quality * w.pulse_presence
        if same and lead < SAME_RHYTHM_LEAD:
            breath = replace(breath, rate_hz=None, quality=0.0)
    return pulse, breath


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
class _Bank:
    """Everything about a search that depends on length and rate alone. step: samples between two instants."""

    search: Search
    freqs_hz: Floats
    spread_s: Floats
    filters: Floats
    step: int
    times_s: Floats


@dataclass(frozen=True)
class _Wave:
    """A transformed wave, scaled. heard (n,): up to heard_hz, with the straight line that coefficients (F, T) lack."""

    heard: Floats
    valid: Bools
    fs_hz: float
    bank: _Bank
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
def _bank(search: Search, n: int, fs_hz: float) -> _Bank:
    top = min(search.hi_hz, 0.45 * fs_hz)
    if top < 4.0 * search.lo_hz:
        raise VitalsError(f"expected at least {9.0 * search.lo_hz:.1f} samples a second, got {fs_hz}")
    rows = int(np.log2(top / search.lo_hz) * BINS_PER_OCTAVE) + 1
    freqs = search.lo_hz * 2.0 ** (np.arange(rows) / BINS_PER_OCTAVE)
    spread = _spread_s(search, freqs, n / fs_hz)
    filters = _filters(_fft_length(n, fs_hz, float(spread.max())), fs_hz, freqs, spread)
    step = 1 << max(0, int(np.log2(fs_hz / INSTANTS_HZ)))
    times = (np.arange(-(-n // step)) * step - (n - 1)) / fs_hz
    return _Bank(search, freqs, spread, filters, step, times)


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


def _transformed(x: Floats, valid: Bools, fs_hz: float, search: Search) -> _Wave | None:
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
    return _Wave((heard + line[1] * t) / scale, valid, fs_hz, bank, coefficients, coverage)


def _below(x: Floats, top_hz: float, fs_hz: float) -> Floats:
    """x without what lies above top_hz."""
    spectrum = np.fft.rfft(x)
    spectrum[np.fft.rfftfreq(len(x), 1.0 / fs_hz) > top_hz] = 0.0
    return np.fft.irfft(spectrum, len(x))


def _follow(wave: _Wave, averaging_s: float, breath: Track | None = None) -> Track:
    """The rhythm of one wave, with what `breath` may have leaked into it taken away first."""
    bank, search = wave.bank, wave.bank.search
    power = np.abs(wave.coefficients) ** 2
    clean = power if breath is None else np.maximum(power - _leak(power, bank, breath), 0.0)
    rows = _fundamental(wave, power, clean)
    instants = np.arange(len(rows))
    recent = bank.times_s >= -averaging_s
    covered = wave.coverage[rows, instants]
    usable = covered >= COVERED
    span_s = float(wave.valid[-round(averaging_s * wave.fs_hz):].sum()) / wave.fs_hz
    enough = span_s >= search.min_span_s and int((usable & recent).sum()) >= LEAST_INSTANTS
    least_covered = COVERED if enough else TOUCHED
    counted = recent & (covered >= least_covered)
    track = Track(bank.freqs_hz, bank.times_s, power, bank.freqs_hz[rows], usable)
    turning_hz, weight = _turning(wave, rows, counted)
    weight *= clean[rows, instants]
    if weight.sum() <= 0.0:
        return track
    width_hz = 1.0 / (2.0 * np.pi * float(np.average(bank.spread_s[rows], weights=weight)))
    rate_hz = _typical(turning_hz, np.sqrt(weight) * (covered - least_covered + EDGE), search.trim * width_hz)
    kept = float(weight.sum() / power[rows, instants][weight > 0].sum())
    if kept < LEAK_KEPT or not bank.freqs_hz[0] < rate_hz < bank.freqs_hz[-1]:
        return track
    explained = _explained(wave, clean, rows, counted, averaging_s) * power.sum() / clean.sum()
    wander = float(np.average(np.abs(turning_hz - rate_hz), weights=weight)) / width_hz
    least, most = search.explained
    share = float(np.clip((explained - least) / (most - least), 0.0, 1.0))
    newest = clean[rows, instants][bank.times_s >= -search.alive_s].mean()
    alive = min(1.0, float(newest / clean[rows, instants][recent].mean()) / ALIVE)
    quality = share * min(kept, 1.0) * alive / (1.0 + (wander / search.wander) ** 2)
    enough &= rate_hz * float(wave.valid.sum()) / wave.fs_hz >= search.min_cycles
    return replace(track, rate_hz=rate_hz, quality=quality, enough=enough)


def _fundamental(wave: _Wave, power: Floats, clean: Floats) -> NDArray[np.intp]:
    """Ridge rows (T,) in the clean power, an octave down where what was followed proves to be the 2nd harmonic.

    Judged in the power before the leak was taken away: a fundamental that the leak hides is refused, not doubled.
    """
    octave_up = np.zeros_like(clean)
    octave_up[:-BINS_PER_OCTAVE] = clean[BINS_PER_OCTAVE:]
    salience = (clean + OCTAVE_SUPPORT * np.minimum(octave_up, clean)) * wave.coverage**2
    best = salience.max(axis=0)
    rows = ridge(salience / np.where(best > 0, best, 1.0))
    lower = rows - BINS_PER_OCTAVE
    if lower.min() < 0:
        return rows
    instants = np.arange(len(rows))
    counted = wave.coverage[lower, instants] >= COVERED
    strong = power[lower, instants][counted].sum() > OCTAVE_POWER * power[rows, instants][counted].sum()
    return lower if strong and _locked(wave, lower, rows, 2, counted) > OCTAVE_LOCK else rows


def _locked(wave: _Wave, rows: NDArray[np.intp], rows_up: NDArray[np.intp], k: int, counted: Bools) -> float:
    """How steadily (0-1) the phase in rows_up keeps to k times that in rows: 1 for a harmonic, about 0.4 by chance."""
    instants = np.flatnonzero(counted)
    low, high = wave.coefficients[rows[instants], instants], wave.coefficients[rows_up[instants], instants]
    size = np.abs(high).sum()
    turned = np.conj(low / np.maximum(np.abs(low), 1e-30)) ** k
    return float(np.abs((high * turned).sum()) / size) if size > 0 else 0.0


def _leak(power: Floats, bank: _Bank, breath: Track) -> Floats:
    """Most power (F, T) that breathing may have brought into a wave of this power."""
    breath_hz = np.interp(bank.times_s, breath.times_s, breath.ridge_hz)
    at_breath = _at(power, bank.freqs_hz, breath_hz)
    own = _at(breath.power, breath.freqs_hz, breath.ridge_hz).sum()
    leak = np.zeros_like(power)
    for k in LEAK_HARMONICS:
        harmonic = _at(breath.power, breath.freqs_hz, k * breath.ridge_hz).sum() / own
        carried = LEAK_MARGIN * float(np.clip(harmonic, 1.0 / k**2, 1.0)) * at_breath
        off_sigma = 2.0 * np.pi * (bank.freqs_hz[:, None] - k * breath_hz[None, :]) * bank.spread_s[:, None]
        leak = np.maximum(leak, carried[None, :] * np.exp(-(off_sigma**2)))
    return leak


def _at(power: Floats, freqs_hz: Floats, at_hz: Floats) -> Floats:
    """Power (T,) in the rows nearest to at_hz (T,); zero outside the analysed range."""
    rows = np.rint(np.log2(at_hz / freqs_hz[0]) * BINS_PER_OCTAVE).astype(int)
    inside = (rows >= 0) & (rows < len(freqs_hz))
    return np.where(inside, power[np.clip(rows, 0, len(freqs_hz) - 1), np.arange(len(at_hz))], 0.0)


def _turning(wave: _Wave, rows: NDArray[np.intp], counted: Bools) -> tuple[Floats, Floats]:
    """Frequency (T,) by which the ridge's phase turns up to the next instant; 1.0 where both of them count, else 0."""
    dt_s = wave.bank.step / wave.fs_hz
    instants = np.arange(len(rows) - 1)
    here, there = wave.coefficients[rows[:-1], instants], wave.coefficients[rows[:-1], instants + 1]
    turns = np.angle(there * np.conj(here)) / (2.0 * np.pi)
    whole = np.rint(wave.bank.freqs_hz[rows[:-1]] * dt_s - turns)
    return np.append((turns + whole) / dt_s, 0.0), np.append(counted[:-1] & counted[1:], False).astype(float)


def _explained(wave: _Wave, clean: Floats, rows: NDArray[np.intp], counted: Bools, averaging_s: float) -> float:
    """Share of the recent wave's variance that the ridge and the harmonics locked to it carry."""
    instants = np.flatnonzero(counted)
    carried = clean[rows[instants], instants].mean()
    for k in HARMONICS:
        up = rows + round(BINS_PER_OCTAVE * np.log2(k))
        if up.max() < len(clean):
            carried += clean[up[instants], instants].mean() * _locked(wave, rows, up, k, counted) ** 2
    recent = np.arange(len(wave.heard)) >= len(wave.heard) - averaging_s * wave.fs_hz
    total = wave.heard[recent & wave.valid].var()
    return float(carried / 2.0 / total) if total > 0.0 else 0.0


def _typical(values: Floats, weights: Floats, within: float) -> float:
    """Weighted mean of the values that lie within `within` of the weighted median.

    The mean counts the turns of the ridge, so it is the mean rate also where the rate varies with the breath, which the
    median is not; the trim keeps out the phase slips of weak moments.
    """
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    median = values[order][np.searchsorted(reached, reached[-1] / 2.0)]
    kept = np.where(np.abs(values - median) <= within, weights, 0.0)
    return float((values * kept).sum() / kept.sum())
