"""Clips to be scored: pictures, and what is true of them, whether they were rendered or recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.baselines import SkinAt, followed_skin
from calibration.metrics import Array, band_passed, rate_by_fft
from calibration.phantom import Phantom
from calibration.rhythms import Rhythm
from edge.records import Frame
from edge.vitals import Profile

if TYPE_CHECKING:
    from calibration.datasets.record import ClipRecord

PAUSED_SHARE = 0.5
"""An averaging time of which more than this is pause, or unlabelled, has no true rate: what is shown there is not judged."""

LABELLED_SHARE = 0.9
"""A label wave with more holes than this leaves in an averaging time says nothing about it."""

TRUTH_POINTS = 161
LABEL_FS_HZ, FINE_NFFT = 60.0, 1 << 14
"""A label wave is read at this rate, and a spectrum's peak on bins of 0.1 to 0.2 /min."""


@dataclass(frozen=True)
class Truth:
    """mean_rate(t_s, averaging_s): true rate per minute over the averaging time that ends at t_s (frames' clock), or None
    where it has none. mean_rate None: the clip has no such rhythm, and every number is false."""

    mean_rate: Callable[[float, float], float | None] | None


NO_RHYTHM = Truth(None)


def bands_of(profile: Profile) -> dict[str, tuple[float, float]]:
    """Rates per minute that a profile may show, by vital."""
    return {"hr": profile.hr_band_per_min, "rr": profile.rr_band_per_min}


def truth_of_rate(rate_at: Callable[[Array], Array], began_s: float = 0.0) -> Truth:
    """From a rate over time; 0 is a pause and NaN a hole in the labels. The mean is that of the time with a rhythm."""

    def mean_rate(t_s: float, averaging_s: float) -> float | None:
        rates = rate_at(np.linspace(max(began_s, t_s - averaging_s), t_s, TRUTH_POINTS))
        going = np.isfinite(rates) & (rates > 0)
        return float(rates[going].mean()) if going.mean() >= PAUSED_SHARE else None

    return Truth(mean_rate)


def truth_of_breaths(breath: Rhythm) -> Truth:
    """From a rendered breath's own peaks, as one counts: breaths over the time that they took.

    The mean of a rhythm's interpolated rate lies above that where intervals differ (by the square of their relative spread,
    5 /min at 90 /min and 25 %). A pause, where the rhythm's rate is 0, has no rate here either.
    """
    rise = np.diff(breath.wave)
    top = np.flatnonzero((rise[:-1] > 0) & (rise[1:] <= 0)) + 1
    middle = np.median(breath.wave[top]) if top.size else 0.0
    top = top[breath.wave[top] > 0.5 * (middle + breath.wave.min())]
    if top.size < 2:
        return truth_of_rate(breath.rate_at)
    times_s = top / breath.fs_hz
    # an interval with a pause in it is no breath's length: its two ends keep the rhythm's own rate
    paused = np.minimum.reduceat(breath.rate_per_min, top)[:-1] <= 0
    counted_per_min = np.where(paused, np.nan, 60 / np.diff(times_s))

    def rate_at(t_s: Array) -> Array:
        place = np.searchsorted(times_s, t_s, side="right") - 1
        within = (place >= 0) & (place < counted_per_min.size)
        counted = np.where(within, counted_per_min[np.clip(place, 0, counted_per_min.size - 1)], np.nan)
        return np.where(np.isfinite(counted), counted, breath.rate_at(t_s))

    return truth_of_rate(rate_at)


def truth_of_wave(wave_at: Callable[[Array], Array], band_hz: tuple[float, float]) -> Truth:
    """From a contact sensor's wave, read as the toolbox reads a label: the highest line of its spectrum in the band."""

    def mean_rate(t_s: float, averaging_s: float) -> float | None:
        wave = wave_at(t_s - np.arange(round(averaging_s * LABEL_FS_HZ))[::-1] / LABEL_FS_HZ)
        known = np.isfinite(wave)
        if known.mean() < LABELLED_SHARE:
            return None
        whole = np.interp(np.arange(wave.size), np.flatnonzero(known), wave[known])
        return rate_by_fft(band_passed(whole - whole.mean(), LABEL_FS_HZ, band_hz), LABEL_FS_HZ, band_hz, FINE_NFFT)

    return Truth(mean_rate)


@dataclass(frozen=True)
class Source:
    """One clip to be scored.

    truth: by vital; a vital that is missing was not labelled and is not judged. pulse_amplitude: AC/DC as rendered, None
    where unknown. skin, skin_at: for the baselines, weights (H, W) of the skin at rest and in each frame, None where not
    known. facts: kept as they are.
    """

    suite: str
    domain: str
    name: str
    subject: str
    width: int
    height: int
    frames: Iterable[Frame]
    truth: Mapping[str, Truth]
    pulse_amplitude: float | None = None
    skin: NDArray[np.float32] | None = None
    skin_at: SkinAt | None = None
    facts: Mapping[str, str | float | int] = field(default_factory=dict)


def source_of_phantom(suite: str, domain: str, phantom: Phantom) -> Source:
    """A rendered clip. Its subject is the recording that drives it, else itself."""
    scene = phantom.scene
    rhythms = {"hr": phantom.pulse, "rr": phantom.breath}
    counted = {"hr": lambda pulse: truth_of_rate(pulse.rate_at), "rr": truth_of_breaths}
    truth = {vital: NO_RHYTHM if rhythm is None else counted[vital](rhythm) for vital, rhythm in rhythms.items()}
    name, recording = f"{domain}-{scene.seed}", scene.recording
    facts: dict[str, str | float | int] = {"seed": scene.seed, "codec": scene.codec, "fps": scene.fps}
    return Source(suite, domain, name, recording or name, scene.width, scene.height, phantom, truth,
                  scene.pulse_amplitude if scene.has_pulse else None, phantom.pulse_map(), followed_skin(phantom),
                  facts | ({"recording": recording} if recording else {}))


def source_of_record(record: ClipRecord, profile: Profile) -> Source:
    """A recorded clip: a contact sensor's wave is the truth where there is one, else the rate that a device told.

    A rate that someone derived from another signal is no truth. Device rates lag by what the device averages.
    """
    truth = {}
    for vital, kind in (("hr", "pulse"), ("rr", "resp")):
        wave, rate = record.truth(kind), record.truth(vital)
        low, high = bands_of(profile)[vital]
        if wave is not None:
            truth[vital] = truth_of_wave(wave.at, (low / 60.0, high / 60.0))
        elif rate is not None:
            truth[vital] = truth_of_rate(rate.at)
    facts: dict[str, str | float | int] = dict(record.facts)
    return Source(record.dataset, record.domain, record.name, record.who, record.width, record.height, record.frames(), truth,
                  facts=facts | ({"flags": "; ".join(record.flags)} if record.flags else {}))
