"""One clip through the runtime's own pipeline and gate, every reading held against the truth.

A clip is a `Source`: frames, what is true of both vitals, and where it comes from; whether it was rendered or recorded
makes no difference here. What is kept is not an average but every reading, so that figures can be made anew from a file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.baselines import METHODS, ORACLES, Baseline, SkinColour
from calibration.metrics import Array, detrended, prepared, rate_by_fft, snr_db
from calibration.source import FINE_NFFT, Source, Truth, bands_of
from edge.gate import CONFIRMATIONS
from edge.pipeline import HOP_S, Engine, Pipeline
from edge.records import Estimate, Frame, Reason, VitalReading
from edge.vitals import BREATH, PULSE, Profile

STUDENT = "student"
VITALS = ("hr", "rr")

VISIBLE_AMPLITUDE = 0.002
"""A pulse of at least this share of the light is visible: where it is, the student owes a reading."""

STARTUP_S = {"hr": PULSE.min_span_s + (CONFIRMATIONS[0][0] - 1) * HOP_S,
             "rr": BREATH.min_span_s + (CONFIRMATIONS[0][0] - 1) * HOP_S}
"""Video time before which no number can exist: the least valid span, then the hops that the gate wants in agreement."""

BREATH_LAMBDA, BREATH_NEAR_PER_MIN = 5000.0, 3.0
"""Breathing's own detrending (the band starts seven times lower than a pulse's, and lambda goes with the square) and the
half width of its harmonics."""


@dataclass(frozen=True)
class Series:
    """One vital of one clip as one method read it: a value per reading, NaN for none.

    shown: what the gate let through. estimate, quality: what it judged. peak: highest line of the wave's spectrum in the
    band, which is what a method without any gate would say. snr_db: of the wave, at the true rate.
    """

    shown: Array
    estimate: Array
    quality: Array
    peak: Array
    snr_db: Array


@dataclass(frozen=True)
class ClipScore:
    """One clip's readings, those of every method at the same times.

    truth: by vital, NaN where there is none to judge by. labels: by vital, `rate`, `absent` (no such rhythm: every number
    is false) or `unlabelled`. bands: rates per minute that the profile may show. visible: a pulse of at least
    VISIBLE_AMPLITUDE, None where unknown.
    """

    suite: str
    domain: str
    name: str
    subject: str
    video_s: float
    pulse_amplitude: float | None
    visible: bool | None
    facts: Mapping[str, str | float | int]
    labels: Mapping[str, str]
    bands: Mapping[str, tuple[float, float]]
    t_s: Array
    truth: Mapping[str, Array]
    methods: Mapping[str, Mapping[str, Series]]

    @property
    def readings(self) -> int:
        return int(self.t_s.size)

    def errors(self, vital: str, method: str = STUDENT) -> tuple[float, ...]:
        """|shown - true| of every reading that showed a number and has a truth."""
        off = np.abs(self.methods[method][vital].shown - self.truth[vital])
        return tuple(off[np.isfinite(off)].tolist())

    def false_numbers(self, vital: str, method: str = STUDENT) -> int:
        """Numbers shown of a rhythm that the clip does not have."""
        shown = int(np.isfinite(self.methods[method][vital].shown).sum())
        return shown if self.labels[vital] == "absent" else 0

    def first_s(self, vital: str, method: str = STUDENT) -> float | None:
        """Seconds of video before the first number."""
        shown = np.flatnonzero(np.isfinite(self.methods[method][vital].shown))
        return float(self.t_s[shown[0]]) if shown.size else None

    @property
    def hr_errors(self) -> tuple[float, ...]:
        return self.errors("hr")

    @property
    def rr_errors(self) -> tuple[float, ...]:
        return self.errors("rr")

    @property
    def hr_false(self) -> int:
        return self.false_numbers("hr")

    @property
    def rr_false(self) -> int:
        return self.false_numbers("rr")

    @property
    def hr_first_s(self) -> float | None:
        return self.first_s("hr")

    @property
    def rr_first_s(self) -> float | None:
        return self.first_s("rr")

    def as_json(self) -> dict[str, Any]:
        """Plain lists, null for NaN, three decimals."""
        plain = {name: getattr(self, name) for name in ("suite", "domain", "name", "subject", "pulse_amplitude", "visible")}
        return plain | {
            "video_s": round(self.video_s, 3), "facts": dict(self.facts), "labels": dict(self.labels),
            "bands": {vital: list(band) for vital, band in self.bands.items()}, "t_s": _listed(self.t_s),
            "truth": {vital: _listed(values) for vital, values in self.truth.items()},
            "methods": {method: {vital: {name: _listed(values) for name, values in vars(series).items()}
                                 for vital, series in vitals.items()} for method, vitals in self.methods.items()}}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> ClipScore:
        """The inverse of as_json. Raises KeyError or TypeError for what is none."""
        methods = {method: {vital: Series(**{name: _array(values) for name, values in series.items()})
                            for vital, series in vitals.items()} for method, vitals in content["methods"].items()}
        given = dict(content) | {"t_s": _array(content["t_s"]), "methods": methods,
                                 "bands": {vital: tuple(band) for vital, band in content["bands"].items()},
                                 "truth": {vital: _array(values) for vital, values in content["truth"].items()}}
        return ClipScore(**given)


def _listed(values: Array) -> list[float | None]:
    return [round(v, 3) if np.isfinite(v) else None for v in values.tolist()]


def _array(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if v is None else v for v in values], np.float64)


def score(source: Source, engine: Engine, profile: Profile, roi: str = "auto",
          baselines: Sequence[str] = tuple(METHODS)) -> ClipScore:
    """Every reading of a clip. roi: auto or full, as the runtime has it. Raises the engine's error."""
    cv2.setNumThreads(1)
    pipeline = Pipeline(engine, profile, source.width, source.height, None, roi == "auto")
    student, others = _Rows(VITALS, profile, engine.spec.fs_hz), _Others(source, engine, profile, baselines)
    times_ns: list[int] = []
    truths: dict[str, list[float]] = {vital: [] for vital in VITALS}
    began_ns = newest_ns = None
    for frame in source.frames:
        began_ns, newest_ns = frame.t_ns if began_ns is None else began_ns, frame.t_ns
        others.push(frame)
        for hop in pipeline.push(frame, frame.t_ns):
            wave = hop.waveform
            times_ns.append(wave.t_end_ns)
            for vital, samples in (("hr", wave.pulse), ("rr", wave.resp)):
                reading = getattr(hop.reading, vital)
                true = _true(source.truth.get(vital), wave.t_end_ns / 1e9, reading.averaging_s)
                truths[vital].append(true)
                student.add(vital, reading, hop.estimate, samples, wave.valid, true)
            others.read(wave.t_end_ns, frame.t_ns, hop.conditions, truths["hr"][-1])
    amplitude = source.pulse_amplitude
    return ClipScore(
        source.suite, source.domain, source.name, source.subject, ((newest_ns or 0) - (began_ns or 0)) / 1e9, amplitude,
        None if amplitude is None else amplitude >= VISIBLE_AMPLITUDE, source.facts,
        {vital: _label(source.truth.get(vital)) for vital in VITALS}, bands_of(profile),
        (np.array(times_ns, np.float64) - (began_ns or 0)) / 1e9,
        {vital: np.array(values) for vital, values in truths.items()},
        {STUDENT: student.series()} | others.series())


def _label(truth: Truth | None) -> str:
    return "unlabelled" if truth is None else "absent" if truth.mean_rate is None else "rate"


def _true(truth: Truth | None, t_s: float, averaging_s: float) -> float:
    """True rate over the averaging time that ends at t_s, or NaN."""
    rate = None if truth is None or truth.mean_rate is None else truth.mean_rate(t_s, averaging_s)
    return np.nan if rate is None else rate


class _Others:
    """The baselines on the same frames, read when the student is."""

    def __init__(self, source: Source, engine: Engine, profile: Profile, names: Sequence[str]) -> None:
        self._window = engine.spec.window
        known = [name for name in names if source.skin_at is not None or name not in ORACLES]
        self._methods = {name: Baseline(name, profile, engine.spec.fs_hz) for name in known}
        self._rows = {name: _Rows(("hr",), profile, engine.spec.fs_hz) for name in known}
        self._skins = {oracle: SkinColour(source.skin_at if oracle else source.skin, engine.spec.fs_hz)
                       for oracle in {name in ORACLES for name in known}}

    def push(self, frame: Frame) -> None:
        for skin in self._skins.values():
            skin.push(frame)

    def read(self, end_ns: int, now_ns: int, conditions: Collection[Reason], true: float) -> None:
        windows = {oracle: skin.window(end_ns, self._window) for oracle, skin in self._skins.items()}
        for name, method in self._methods.items():
            colours, valid = windows[name in ORACLES]
            read = method.read(colours, valid, end_ns, max(now_ns, end_ns), conditions)
            self._rows[name].add("hr", read.reading.hr, read.estimate, read.waveform.pulse, valid, true)

    def series(self) -> dict[str, dict[str, Series]]:
        return {name: rows.series() for name, rows in self._rows.items()}


class _Rows:
    """Collects one method's readings."""

    def __init__(self, vitals: Sequence[str], profile: Profile, fs_hz: float) -> None:
        self._fs_hz = fs_hz
        self._bands_hz = {vital: (low / 60.0, high / 60.0) for vital, (low, high) in bands_of(profile).items()}
        self._rows: dict[str, list[tuple[float, ...]]] = {vital: [] for vital in vitals}

    def add(self, vital: str, reading: VitalReading, found: Estimate, wave: NDArray[np.float32], valid: NDArray[np.bool_],
            true: float) -> None:
        peak, snr = self._spectrum(vital, wave, valid, reading.averaging_s, true)
        row = (reading.value_per_min, getattr(found, f"{vital}_per_min"), getattr(found, f"{vital}_quality"), peak, snr)
        self._rows[vital].append(tuple(np.nan if value is None else float(value) for value in row))

    def _spectrum(self, vital: str, wave: NDArray[np.float32], valid: NDArray[np.bool_], averaging_s: float,
                  true: float) -> tuple[float | None, float | None]:
        """(highest line, SNR) of the valid end of the averaging time; None while it is less than half filled."""
        n = round(averaging_s * self._fs_hz)
        recent = np.flatnonzero(valid[-n:])
        if recent.size < n / 2:
            return None, None
        whole = np.interp(np.arange(recent[0], min(n, valid.size)), recent, wave[-n:][recent].astype(np.float64))
        band_hz = self._bands_hz[vital]
        if vital == "hr":
            ready, near = prepared(whole, self._fs_hz, band_hz), 6.0
        else:
            ready, near = detrended(whole, BREATH_LAMBDA), BREATH_NEAR_PER_MIN
        peak = rate_by_fft(ready, self._fs_hz, band_hz, FINE_NFFT)
        return peak, snr_db(ready, true, self._fs_hz, band_hz, near) if np.isfinite(true) else None

    def series(self) -> dict[str, Series]:
        return {vital: Series(*np.array(rows, np.float64).reshape(-1, 5).T) for vital, rows in self._rows.items()}
