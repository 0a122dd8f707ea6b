"""Policy: which estimate may be shown, and why not. vitals.py reads, this decides; nothing here looks at samples.

A number is shown only while the newest estimate itself deserves it: nothing is held over from an earlier one. History
only makes it stricter (agreement of successive estimates, hysteresis) and never fills in. No clock is read here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from edge.records import Estimate, Reading, Reason, State, VitalReading, Waveform
from edge.scalogram import NEWEST_S
from edge.vitals import BREATH, PULSE, Profile

NS_PER_S = 1e9
Refusal = tuple[State, Reason]

# Quality thresholds: white, pink and brown noise pass SHOWN and the agreement below in under 1 % of readings
# (tests/test_vitals.py sweeps it). To be set again on the student's own output.
VALID_QUALITY = 0.6  # from here a number is plain
SHOWN_QUALITY = 0.4  # from here it is shown as questionable ("?", the middle of the three tiers of a bedside monitor)
QUALITY_HYSTERESIS = 0.05  # a better state needs this much more than staying in it: a state that flickers is not read

# A display blanks 3 s after its last good frame; a link's frame period and its lag take one of them.
STALE_S = 2.0
# A first number, or one after a jump, needs (estimates, seconds, least quality): so many in a row that agree, over at
# least this time. A clear signal is shown at the third hop, a doubtful one at the sixth.
CONFIRMATIONS = ((3, 1.5, 0.75), (6, 4.0, SHOWN_QUALITY))
CHAIN = 64  # estimates kept: 4 s of them even at 16 a second
HOP_LOST_S = 2.5  # two estimates further apart than this do not vouch for each other
# Fewer beats than this to a breath is one rhythm seen twice: term newborns have 1.5 at the extremes (HR 87, RR 57).
MIN_BEATS_PER_BREATH = 1.2
# Beside a lamp that swells at a breath's rate, a pulse this near (per minute) to one of these times it is an overtone:
# saturated pictures and edges that pass make them, up to the sixth on rendered newborns, also where a camera sways.
OVERTONES, OVERTONE_REACH = range(2, 7), 2.5
# What imitated a breath stays in the pulse's averaging time so long, also while no breath can be read beside it.
IMITATION_S = 8.0

# World trouble, worst first: the first that holds is the reason. FAULT and BLOCK show no number, DOUBT one with ?.
FAULT = {Reason.NO_CAMERA: State.FAULT, Reason.MODEL_FAULT: State.FAULT, Reason.FRAMES_STALLED: State.STALE}
# aliasing; nobody there; noise above the pulse; what beats moves instead of changing colour; the lamp breathes
BLOCK = (Reason.LOW_FPS, Reason.SUBJECT_LOST, Reason.TOO_DARK, Reason.MOTION, Reason.LIGHT_FLICKER)
DOUBT = (Reason.OVEREXPOSED, Reason.CAMERA_SHAKE, Reason.GAP)  # the wave's own quality decides

NOTHING_FOUND: Refusal = (State.INVALID, Reason.LOW_SIGNAL)


class GateError(ValueError):
    """Time ran backwards or a waveform ends in the future: the caller's bug, not signal trouble."""


@dataclass(frozen=True)
class Limits:
    """What is required of one vital. Rates per minute.

    agree: most that the confirming estimates may differ. slew_per_s: most that the averaged rate moves beyond that.
    min_span_s: valid video before which a missing number is only STARTING.
    """

    band: tuple[float, float]
    averaging_s: float
    agree: float
    slew_per_s: float
    min_span_s: float


def limits(profile: Profile) -> tuple[Limits, Limits]:
    """HR and RR limits.

    agree: 5 /min is the accuracy asked of heart rate meters (EC13); breathing varies by 11-28 % within a minute, so 4.
    slew: a jump by 100 /min moves an 8 s average by 12 /min each second, one by 60 /min a 16 s average by 4.
    """
    hr = Limits(profile.hr_band_per_min, profile.hr_averaging_s, 5.0, 100.0 / profile.hr_averaging_s, PULSE.min_span_s)
    rr = Limits(profile.rr_band_per_min, profile.rr_averaging_s, 4.0, 60.0 / profile.rr_averaging_s, BREATH.min_span_s)
    return hr, rr


class Gate:
    """Folds estimates into readings."""

    def __init__(self, profile: Profile) -> None:
        self._hr, self._rr = (_Vital(each) for each in limits(profile))
        self._began_ns: int | None = None
        self._now_ns: int | None = None
        self._end_ns: int | None = None
        self._imitation: tuple[int, float | None, frozenset[Reason]] | None = None

    def update(self, estimate: Estimate, waveform: Waveform, conditions: Collection[Reason], now_ns: int,
               hr_conditions: Collection[Reason] = frozenset(),
               rr_conditions: Collection[Reason] = frozenset(), doubts: Collection[Reason] = frozenset()) -> Reading:
        """The reading for the newest estimate and its waveform. Giving the same pair again only ages it.

        conditions: world and signal trouble seen upstream, hr_conditions and rr_conditions what troubles one alone.
        doubts: what makes a number questionable and no more, whatever it would do among the conditions.
        now_ns: same clock as the waveform's t_end_ns.
        """
        end_ns = waveform.t_end_ns
        if estimate.t_end_ns != end_ns:
            raise GateError(f"estimate ends at {estimate.t_end_ns} ns, its waveform at {end_ns} ns: pass the pair")
        if end_ns > now_ns:
            raise GateError(f"waveform ends at {end_ns} ns, now is {now_ns} ns: use one monotonic clock")
        self._advance(now_ns)
        self._end_ns = end_ns
        age_s = (now_ns - end_ns) / NS_PER_S
        one_rhythm = self._one_rhythm(estimate)
        hr_trouble = {*conditions, *hr_conditions}
        if imitating := frozenset(rr_conditions) & frozenset(BLOCK):
            self._imitation = end_ns, estimate.rr_per_min, imitating
        if estimate.hr_per_min is not None:
            hr_trouble |= self._overtone_or_breath(estimate.hr_per_min, end_ns)

        def judged(vital: _Vital, rate: float | None, quality: float, trouble: Collection[Reason]) -> VitalReading:
            doubt = next((reason for reason in DOUBT if reason in trouble), next(iter(sorted(doubts)), None))
            refusal = _forbidden(trouble)
            if refusal is None and age_s > STALE_S:
                refusal = State.STALE, Reason.FRAMES_STALLED
            if refusal is None:
                refusal = vital.refusal(rate, quality, waveform, doubt)
            if refusal is None and one_rhythm:
                refusal = NOTHING_FOUND
            if refusal is not None or rate is None:
                return vital.withhold(*(refusal or NOTHING_FOUND), quality, age_s)
            return vital.offer(rate, quality, end_ns, age_s, doubt)

        return Reading(judged(self._hr, estimate.hr_per_min, estimate.hr_quality, hr_trouble),
                       judged(self._rr, estimate.rr_per_min, estimate.rr_quality, {*conditions, *rr_conditions}), end_ns)

    def no_estimate(self, now_ns: int, conditions: Collection[Reason]) -> Reading:
        """The reading while no waveform comes, before the first or after what was seen was forgotten: never a number.

        Without trouble it is STARTING: that frames do not come is trouble, which the caller sees.
        """
        began_ns = self._advance(now_ns)
        since_ns = began_ns if self._end_ns is None else self._end_ns
        refusal = _forbidden(conditions) or (State.SEARCHING, Reason.STARTING)
        age_s = (now_ns - since_ns) / NS_PER_S
        return Reading(self._hr.withhold(*refusal, 0.0, age_s), self._rr.withhold(*refusal, 0.0, age_s), since_ns)

    def _advance(self, now_ns: int) -> int:
        """Takes the time in; returns that of the first call."""
        if self._now_ns is not None and now_ns < self._now_ns:
            raise GateError(f"now is {now_ns} ns, the last call was at {self._now_ns} ns: use one monotonic clock")
        self._now_ns = now_ns
        if self._began_ns is None:
            self._began_ns = now_ns
        return self._began_ns

    def _one_rhythm(self, estimate: Estimate) -> bool:
        """Both rates could be shown but are too near to be two rhythms: one is wrong at least, and none knows which."""
        hr, rr = estimate.hr_per_min, estimate.rr_per_min
        if hr is None or rr is None or min(estimate.hr_quality, estimate.rr_quality) < SHOWN_QUALITY:
            return False
        return self._hr.in_band(hr) and self._rr.in_band(rr) and hr < MIN_BEATS_PER_BREATH * rr


    def _overtone_or_breath(self, hr: float, end_ns: int) -> frozenset[Reason]:
        """What imitates a breath, or lately did, where this pulse may be an overtone of it, or the breath that it hides."""
        if self._imitation is None or not 0 <= end_ns - self._imitation[0] <= IMITATION_S * NS_PER_S:
            return frozenset()
        _, rate, reasons = self._imitation
        overtone = rate is not None and any(abs(hr - times * rate) < OVERTONE_REACH for times in OVERTONES)
        return reasons if overtone or self._rr.in_band(hr) else frozenset()


class _Vital:
    """Agreement and hysteresis of one vital."""

    def __init__(self, required: Limits) -> None:
        self._required = required
        self._chain: list[tuple[int, float, float]] = []  # (end_ns, rate, quality) in a row, oldest first
        self._confirmed = False
        self._last = State.SEARCHING

    def in_band(self, rate: float) -> bool:
        return self._required.band[0] <= rate <= self._required.band[1]

    def refusal(self, rate: float | None, quality: float, waveform: Waveform, doubt: Reason | None) -> Refusal | None:
        """Why this estimate alone may not be shown. None: it may, if others agree with it."""
        if rate is None:
            return self._too_short(waveform) or (State.INVALID, doubt or Reason.LOW_SIGNAL)
        if quality < SHOWN_QUALITY:
            return State.INVALID, doubt or Reason.LOW_SIGNAL
        return None if self.in_band(rate) else (State.OUT_OF_RANGE, Reason.OUT_OF_BAND)

    def _too_short(self, waveform: Waveform) -> Refusal | None:
        """STARTING while video is only beginning to fill the window, GAP where too much of it is missing."""
        valid, fs_hz = waveform.valid, waveform.fs_hz
        ends_late_s = float(valid[::-1].argmax()) / fs_hz
        if valid.sum() >= self._required.min_span_s * fs_hz and ends_late_s <= NEWEST_S:
            return None
        unbroken = bool(valid[int(valid.argmax()):].all())
        return (State.SEARCHING, Reason.STARTING) if unbroken else (State.INVALID, Reason.GAP)

    def offer(self, rate: float, quality: float, end_ns: int, age_s: float, doubt: Reason | None) -> VitalReading:
        """A rate in band and of enough quality to be shown, if the ones before it agree."""
        if not self._agreed(rate, quality, end_ns):
            return self._reading(None, State.SEARCHING, quality, age_s, Reason.UNSTABLE)
        needed = VALID_QUALITY + (0.0 if self._last == State.VALID else QUALITY_HYSTERESIS)
        needed_to_appear = SHOWN_QUALITY + (0.0 if self._last.shows_number else QUALITY_HYSTERESIS)
        if quality < needed_to_appear:
            return self._reading(None, State.INVALID, quality, age_s, doubt or Reason.LOW_SIGNAL)
        if doubt is not None or quality < needed:
            return self._reading(rate, State.QUESTIONABLE, quality, age_s, doubt or Reason.LOW_SIGNAL)
        return self._reading(rate, State.VALID, quality, age_s, Reason.NONE)

    def withhold(self, state: State, reason: Reason, quality: float, age_s: float) -> VitalReading:
        """No number, and whatever was agreed on before counts no more."""
        self._chain, self._confirmed = [], False
        return self._reading(None, state, quality, age_s, reason)

    def _reading(self, rate: float | None, state: State, quality: float, age_s: float, reason: Reason) -> VitalReading:
        self._last = state
        return VitalReading(rate, state, quality, age_s, self._required.averaging_s, reason)

    def _agreed(self, rate: float, quality: float, end_ns: int) -> bool:
        """Whether enough estimates in a row, this one included, speak for one rate, or for one that moves as it may."""
        chain, required = self._chain, self._required
        if chain and chain[-1][0] == end_ns:
            return self._confirmed
        if chain:
            since_s = (end_ns - chain[-1][0]) / NS_PER_S
            reach = required.agree + required.slew_per_s * since_s
            if not 0.0 < since_s <= HOP_LOST_S or abs(rate - chain[-1][1]) > reach:
                chain.clear()
                self._confirmed = False
        chain.append((end_ns, rate, quality))
        del chain[:-CHAIN]
        for hops, span_s, least in CONFIRMATIONS:
            reaching = [i for i, (t_ns, _, _) in enumerate(chain[: 1 - hops]) if end_ns - t_ns >= span_s * NS_PER_S]
            if reaching:
                latest = chain[reaching[-1]:]
                rates = [each for _, each, _ in latest]
                clear = min(each for _, _, each in latest) >= least
                self._confirmed |= clear and max(rates) - min(rates) <= required.agree
        return self._confirmed


def _forbidden(conditions: Collection[Reason]) -> Refusal | None:
    """The worst world trouble that forbids every number."""
    for reason, state in FAULT.items():
        if reason in conditions:
            return state, reason
    return next(((State.INVALID, reason) for reason in BLOCK if reason in conditions), None)
