"""Rates and their quality from the student's two waves: ridge over time, fundamental, rate.

The analysed range is wider than any profile's band on purpose: a rhythm outside the band is read where it is and
refused by the gate, never folded into the band. Rates are hertz in here, per minute in `Estimate`. Pure functions;
the wavelet transform is edge/scalogram.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge.records import Estimate, Waveform
from edge.scalogram import (
    BINS_PER_OCTAVE,
    TOUCHED,
    Bank,
    Bools,
    Floats,
    Search,
    Transformed,
    VitalsError,
    ridge,
    transformed,
)

__all__ = ["BREATH", "PROFILES", "PULSE", "Profile", "Track", "VitalsError", "analyse", "estimate"]


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

COVERED = 0.84  # an instant counts if this part of its wavelet lies on valid samples: one sigma inside the edge
OCTAVE_SUPPORT = 0.5  # part of its 2nd harmonic's power (at most its own) that speaks for a fundamental while following
OCTAVE_POWER = 0.15  # a followed 2nd harmonic gives way to a fundamental of at least this part of its power ...
OCTAVE_LOCK = 0.9  # ... whose phase it keeps to this steadily; independent rhythms reach it once in 30 windows
ALIVE = 0.25  # newest ridge power over its recent mean, from which a rhythm goes on: bodies halve it, not quarter it
LEAST_INSTANTS = 3  # ridge points outside the cone of influence without which there is no rate
EDGE = 0.01  # weight of a ridge point at the cone's edge, where inside it is up to 0.16
NEWEST = 3  # ridge points (1.6 s) that say where the rhythm is now
MOVES = 0.25  # half widths (2.4 /min of a pulse) between the plain mean and the weighted one, from which the rate moves
HARMONICS = (2, 3)  # beyond the third, pulse and breath are below a camera's noise

# Pulse: 0.2 Hz sees a slow breath's leak, 9 Hz the 2nd harmonic of 250 /min. Sigma 1 s: beat variability still moves
# the ridge, and 9.5 /min of half width parts neighbours (1.3 s reads real variability no better). 4 s holds four beats
# of the slowest newborn heart. White noise explains up to 0.2, a pulse as strong as all else between 0 and 6 Hz 0.5.
PULSE = Search(0.2, 9.0, 6.0, 6.0, 1.0, 2.5, 4.0, 4.0, 3.0, (0.15, 0.6), 0.5, 1.5, 2.0)
# Breath: 0.05 Hz sees drift, 6 Hz sees vibration (5 Hz) as what it is. Newborns breathe unevenly (intervals vary by 10
# to 30 % within 16 s), so sigma is as short as the pulse's and wander counts less; what noise gains by that, explained
# takes back. Two and a half breaths are the least that differ from drift: 17 s read from 9 /min up, slower needs more.
BREATH = Search(0.05, 6.0, 3.0, 6.0, 1.0, 7.0, 9.0, 2.5, 6.0, (0.4, 0.8), 1.0, 3.0, 0.0)

# Breathing that leaks into the pulse wave is strongest at the breathing rate itself. What stands at k times that rate
# is taken for leak up to LEAK_MARGIN (6 dB) times what the breath's own harmonics, at least 1 / k^2, would carry there.
LEAK_HARMONICS = (1, 2, 3, 4)
LEAK_MARGIN = 4.0
LEAK_BREATH_QUALITY = 0.1  # a breathing ridge poorer than this says nothing about leak
LEAK_KEPT = 0.5  # a pulse ridge that loses more than half of its power to the leak's share is leak
SAME_RHYTHM_HZ = 0.05  # 3 /min: closer than this the pulse and the breathing ridge are one rhythm seen twice
SAME_RHYTHM_LEAD = 0.1  # by this the breathing wave's belief must exceed the pulse wave's to keep a shared rhythm


# The student's belief from which it no longer lowers the quality. Its waves part rhythm from none by themselves (ridge
# quality 0.9 against 0.1 on validation scenes); belief has to take away what imitates a rhythm, where it stays under 0.3.
PULSE_BELIEVED, BREATH_BELIEVED = 0.5, 0.35


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
    hr_hz, hr_quality = _told(pulse, min(1.0, waveform.pulse_presence / PULSE_BELIEVED))
    rr_hz, rr_quality = _told(breath, min(1.0, waveform.resp_presence / BREATH_BELIEVED))
    return Estimate(hr_hz and 60.0 * hr_hz, hr_quality, rr_hz and 60.0 * rr_hz, rr_quality, waveform.t_end_ns)


def _told(track: Track | None, belief: float) -> tuple[float | None, float]:
    if track is None or track.rate_hz is None or not track.enough:
        return None, 0.0
    return track.rate_hz, track.quality * belief


def analyse(waveform: Waveform, profile: Profile) -> tuple[Track | None, Track | None]:
    """Pulse and breathing tracks; None where a wave is flat or has too few valid samples.

    Pulse and breath at one rate are one rhythm seen twice. The pulse is then always refused, and the breath too
    where a heart may beat that fast, unless its own wave makes clearly the better case.
    """
    w = waveform
    breath_wave = transformed(w.resp, w.valid, w.fs_hz, BREATH)
    pulse_wave = transformed(w.pulse, w.valid, w.fs_hz, PULSE)
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


def _follow(wave: Transformed, averaging_s: float, breath: Track | None = None) -> Track:
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
    past = 1.0  # what is left of the quality where the mean is no longer where the rhythm is
    if search.late:
        seen = recent & (covered >= TOUCHED)
        moved = _moved(np.where(weight > 0, turning_hz, np.nan), track.ridge_hz, seen, search.trim * width_hz)
        rate_hz = moved if abs(moved - rate_hz) > MOVES * width_hz else rate_hz
        late_hz = abs(float(track.ridge_hz[seen][-NEWEST:].mean()) - rate_hz)
        past = 1.0 / (1.0 + (late_hz / width_hz / search.late) ** 4)
    kept = float(weight.sum() / power[rows, instants][weight > 0].sum())
    if kept < LEAK_KEPT or not bank.freqs_hz[0] < rate_hz < bank.freqs_hz[-1]:
        return track
    explained = _explained(wave, clean, rows, counted, averaging_s) * power.sum() / clean.sum()
    wander = float(np.average(np.abs(turning_hz - rate_hz), weights=weight)) / width_hz
    least, most = search.explained
    share = float(np.clip((explained - least) / (most - least), 0.0, 1.0))
    newest = clean[rows, instants][bank.times_s >= -search.alive_s].mean()
    alive = min(1.0, float(newest / clean[rows, instants][recent].mean()) / ALIVE)
    quality = past * share * min(kept, 1.0) * alive / (1.0 + (wander / search.wander) ** 2)
    enough &= rate_hz * float(wave.valid.sum()) / wave.fs_hz >= search.min_cycles
    return replace(track, rate_hz=rate_hz, quality=quality, enough=enough)


def _fundamental(wave: Transformed, power: Floats, clean: Floats) -> NDArray[np.intp]:
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


def _locked(wave: Transformed, rows: NDArray[np.intp], rows_up: NDArray[np.intp], k: int, counted: Bools) -> float:
    """How steadily (0-1) the phase in rows_up keeps to k times that in rows: 1 for a harmonic, about 0.4 by chance."""
    instants = np.flatnonzero(counted)
    low, high = wave.coefficients[rows[instants], instants], wave.coefficients[rows_up[instants], instants]
    size = np.abs(high).sum()
    turned = np.conj(low / np.maximum(np.abs(low), 1e-30)) ** k
    return float(np.abs((high * turned).sum()) / size) if size > 0 else 0.0


def _leak(power: Floats, bank: Bank, breath: Track) -> Floats:
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


def _turning(wave: Transformed, rows: NDArray[np.intp], counted: Bools) -> tuple[Floats, Floats]:
    """Frequency (T,) by which the ridge's phase turns up to the next instant; 1.0 where both of them count, else 0."""
    dt_s = wave.bank.step / wave.fs_hz
    instants = np.arange(len(rows) - 1)
    here, there = wave.coefficients[rows[:-1], instants], wave.coefficients[rows[:-1], instants + 1]
    turns = np.angle(there * np.conj(here)) / (2.0 * np.pi)
    whole = np.rint(wave.bank.freqs_hz[rows[:-1]] * dt_s - turns)
    return np.append((turns + whole) / dt_s, 0.0), np.append(counted[:-1] & counted[1:], False).astype(float)


def _explained(wave: Transformed, clean: Floats, rows: NDArray[np.intp], counted: Bools, averaging_s: float) -> float:
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


def _moved(turning_hz: Floats, row_hz: Floats, seen: Bools, within: float) -> float:
    """Mean rate of a rhythm that moves: every instant that was seen counts alike, also those at the edges and the weak ones.

    turning_hz is NaN where it does not count; there, and where the phase slipped off the row, the ridge's row stands.
    """
    sound = np.abs(turning_hz - row_hz) <= within
    return float(np.where(sound, turning_hz, row_hz)[seen].mean())


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
