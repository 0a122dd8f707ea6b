"""Scenarios folded through the gate with an injected clock: hops of one second, times computed, names are the spec."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edge.gate import BLOCK, DOUBT, FAULT, STALE_S, VALID_QUALITY, Gate, GateError
from edge.records import Estimate, Reading, Reason, State, VitalReading, Waveform
from edge.vitals import PROFILES

S = 1_000_000_000
NEONATE = PROFILES["neonate"]
FS_HZ, WINDOW = 30.0, 512


def waveform(end_s: float, valid_s: float = 100.0, gap: tuple[float, float] | None = None) -> Waveform:
    """valid_s: how much of the window's end is filled; gap: seconds before the end that are missing."""
    before_s = np.arange(WINDOW)[::-1] / FS_HZ
    valid = before_s < valid_s
    if gap is not None:
        valid &= ~((before_s >= gap[0]) & (before_s < gap[1]))
    zeros = np.zeros(WINDOW, np.float32)
    return Waveform(zeros, zeros, valid, 1.0, 1.0, np.full((2, 2, 2), 0.25, np.float32), FS_HZ, round(end_s * S))


class Bedside:
    """A gate under a clock that starts at 100 s, one hop a second unless told otherwise."""

    def __init__(self, profile: str = "neonate") -> None:
        self.gate = Gate(PROFILES[profile])
        self.now_s = 100.0

    def hop(self, hr: float | None = 140.0, rr: float | None = 45.0, quality: float = 0.9, *,
            rr_quality: float | None = None, conditions: Sequence[Reason] = (), hr_conditions: Sequence[Reason] = (),
            rr_conditions: Sequence[Reason] = (), late_s: float = 0.1, step_s: float = 1.0, valid_s: float = 100.0,
            gap: tuple[float, float] | None = None) -> Reading:
        self.now_s += step_s
        wave = waveform(self.now_s - late_s, valid_s, gap)
        self.found = Estimate(hr, 0.0 if hr is None else quality, rr,
                              0.0 if rr is None else quality if rr_quality is None else rr_quality, wave.t_end_ns)
        self.wave = wave
        return self.gate.update(self.found, wave, frozenset(conditions), round(self.now_s * S),
                                hr_conditions=frozenset(hr_conditions), rr_conditions=frozenset(rr_conditions))

    def again(self, later_s: float) -> Reading:
        self.now_s += later_s
        return self.gate.update(self.found, self.wave, frozenset(), round(self.now_s * S))

    def hops(self, count: int, **how: float) -> list[Reading]:
        return [self.hop(**how) for _ in range(count)]  # type: ignore[arg-type]


@pytest.fixture
def bed() -> Bedside:
    return Bedside()


def tells(vital: VitalReading) -> tuple[float | None, State, Reason]:
    return vital.value_per_min, vital.state, vital.reason


def values(readings: list[Reading]) -> list[float | None]:
    return [each.hr.value_per_min for each in readings]


# ---- first numbers, agreement


def test_a_clear_number_is_shown_at_the_third_hop_that_agrees(bed):
    first, second, third = bed.hops(3)
    assert tells(first.hr) == tells(second.hr) == (None, State.SEARCHING, Reason.UNSTABLE)
    assert tells(third.hr) == (140.0, State.VALID, Reason.NONE) and tells(third.rr) == (45.0, State.VALID, Reason.NONE)
    assert third.t_ns == round((bed.now_s - 0.1) * S)


def test_a_doubtful_number_needs_six_hops(bed):
    assert values(bed.hops(7, quality=0.65)) == [None] * 5 + [140.0] * 2


def test_with_hops_of_a_tenth_of_a_second_agreement_still_takes_a_second_and_a_half(bed):
    shown = [bed.hop(step_s=0.1, late_s=0.0).hr.value_per_min is not None for _ in range(25)]
    assert shown.index(True) in (15, 16)


def test_estimates_that_scatter_are_never_shown(bed):
    for hr in (90.0, 150.0, 110.0, 200.0, 70.0, 160.0, 100.0, 130.0, 240.0, 155.0):
        assert tells(bed.hop(hr).hr) == (None, State.SEARCHING, Reason.UNSTABLE)


def test_estimates_that_creep_are_not_agreement(bed):
    assert values([bed.hop(100.0 + 8 * k) for k in range(8)]) == [None] * 8


def test_a_number_is_the_newest_estimate_not_an_average(bed):
    bed.hops(3)
    assert [bed.hop(140.0 + 3 * k).hr.value_per_min for k in range(1, 6)] == [143.0, 146.0, 149.0, 152.0, 155.0]


def test_hops_that_are_missing_break_agreement(bed):
    bed.hops(3)
    assert bed.hop(step_s=2.4).hr.value_per_min == 140.0
    assert bed.hop(step_s=2.6).hr.value_per_min is None


def test_the_same_estimate_again_is_not_agreement(bed):
    bed.hop()
    assert [bed.again(0.3).hr.value_per_min for _ in range(6)] == [None] * 6


def test_each_vital_stands_for_itself(bed):
    bed.hops(2, rr=None)
    reading = bed.hop(rr=None)
    assert tells(reading.hr) == (140.0, State.VALID, Reason.NONE)
    assert tells(reading.rr) == (None, State.INVALID, Reason.LOW_SIGNAL)


# ---- jumps


@pytest.mark.parametrize("new", [80.0, 200.0, 105.0, 175.0])
def test_a_jump_beyond_what_an_average_can_do_is_withheld_until_it_is_confirmed(bed, new):
    bed.hops(5)
    assert values([bed.hop(new) for _ in range(4)]) == [None, None, new, new]


def test_a_single_outlier_is_never_shown_and_costs_two_more_hops(bed):
    bed.hops(5)
    assert values([bed.hop(hr) for hr in (70.0, 140.0, 140.0, 140.0)]) == [None, None, None, 140.0]


def test_a_real_bradycardia_at_the_averages_own_pace_is_followed_without_a_gap(bed):
    bed.hops(3)
    fall = [140.0 - 10.0 * k for k in range(1, 8)]
    assert values([bed.hop(hr) for hr in fall]) == fall


# ---- loss


@pytest.mark.parametrize("how", [{"hr": None}, {"quality": 0.1}, {"hr": 300.0}, {"conditions": [Reason.TOO_DARK]}])
def test_a_number_is_gone_with_the_first_estimate_that_does_not_deserve_it(bed, how):
    bed.hops(5)
    assert bed.hop(**how).hr.value_per_min is None
    assert values([bed.hop() for _ in range(3)]) == [None, None, 140.0]


def test_without_an_estimate_there_is_no_number_at_once(bed):
    bed.hops(5)
    reading = bed.gate.no_estimate(round((bed.now_s + 0.2) * S), frozenset({Reason.NO_CAMERA}))
    assert tells(reading.hr) == tells(reading.rr) == (None, State.FAULT, Reason.NO_CAMERA)
    assert reading.hr.age_s == pytest.approx(0.3)
    assert bed.hop().hr.value_per_min is None


def test_before_the_first_waveform_it_is_starting(bed):
    gate = bed.gate
    assert tells(gate.no_estimate(5 * S, frozenset()).hr) == (None, State.SEARCHING, Reason.STARTING)
    reading = gate.no_estimate(8 * S, frozenset())
    assert reading.rr.age_s == 3.0 and reading.rr.state == State.SEARCHING


def test_after_what_was_seen_is_forgotten_it_is_starting_again(bed):
    bed.hops(5)
    lost = bed.gate.no_estimate(round((bed.now_s + 1) * S), frozenset({Reason.NO_CAMERA}))
    assert tells(lost.hr) == (None, State.FAULT, Reason.NO_CAMERA)
    back = bed.gate.no_estimate(round((bed.now_s + 2) * S), frozenset())
    assert tells(back.hr) == tells(back.rr) == (None, State.SEARCHING, Reason.STARTING)
    assert back.hr.age_s == pytest.approx(2.1), "still of the newest frame behind it"
    stalled = bed.gate.no_estimate(round((bed.now_s + 4) * S), frozenset({Reason.FRAMES_STALLED}))
    assert tells(stalled.hr) == (None, State.STALE, Reason.FRAMES_STALLED)
    bed.now_s += 4
    assert values(bed.hops(3)) == [None, None, 140.0]


# ---- staleness


def test_a_reading_ages_and_is_stale_after_two_seconds(bed):
    bed.hops(3)
    for later_s in (0.5, 0.5, 0.5):
        reading = bed.again(later_s)
        assert tells(reading.hr) == (140.0, State.VALID, Reason.NONE)
    assert reading.hr.age_s == pytest.approx(1.6) and reading.hr.averaging_s == 8.0 and reading.rr.averaging_s == 16.0
    stale = bed.again(0.5)
    assert stale.hr.age_s == pytest.approx(2.1) and stale.hr.age_s > STALE_S
    assert tells(stale.hr) == tells(stale.rr) == (None, State.STALE, Reason.FRAMES_STALLED)


def test_a_waveform_that_arrives_late_is_never_shown(bed):
    assert all(each.hr.state == State.STALE for each in bed.hops(10, late_s=2.5))


def test_a_backlog_of_old_waveforms_does_not_confirm_a_number(bed):
    bed.hops(5)
    assert all(each.hr.value_per_min is None for each in bed.hops(5, late_s=4.0, step_s=0.01))


def test_time_that_runs_backwards_is_a_bug(bed):
    bed.hop()
    with pytest.raises(GateError, match="monotonic"):
        bed.gate.no_estimate(round((bed.now_s - 1) * S), frozenset())
    with pytest.raises(GateError, match="monotonic"):
        bed.hop(late_s=-0.5)


def test_an_estimate_of_another_waveform_is_a_bug(bed):
    bed.hop()
    other = waveform(bed.now_s - 0.5)
    with pytest.raises(GateError, match="pass the pair"):
        bed.gate.update(bed.found, other, frozenset(), round(bed.now_s * S))


def test_a_waveform_that_ends_before_the_last_one_starts_agreement_anew(bed):
    """Another region's grid may lie a fraction of a second behind."""
    bed.hops(5)
    assert bed.hop(step_s=0.01, late_s=0.2).hr.value_per_min is None


# ---- bands


@pytest.mark.parametrize(("hr", "inside"), [(59.9, False), (60.0, True), (250.0, True), (250.1, False), (30.0, False)])
def test_a_heart_rate_out_of_band_says_so_and_is_never_shown(bed, hr, inside):
    reading = [bed.hop(hr, None) for _ in range(5)][-1]
    assert tells(reading.hr) == ((hr, State.VALID, Reason.NONE) if inside
                                 else (None, State.OUT_OF_RANGE, Reason.OUT_OF_BAND))


@pytest.mark.parametrize(("rr", "inside"), [(4.9, False), (5.0, True), (120.0, True), (120.1, False)])
def test_a_breathing_rate_out_of_band_says_so_and_is_never_shown(bed, rr, inside):
    reading = [bed.hop(240.0, rr) for _ in range(5)][-1]
    assert tells(reading.rr) == ((rr, State.VALID, Reason.NONE) if inside
                                 else (None, State.OUT_OF_RANGE, Reason.OUT_OF_BAND))


def test_an_adult_s_slow_heart_is_in_the_adult_s_band_alone():
    last = [Bedside(name).hops(5, hr=48.0, rr=12.0)[-1] for name in ("adult", "neonate")]
    assert values(last) == [48.0, None]


def test_a_poor_rhythm_out_of_band_is_low_signal_not_a_rate(bed):
    assert tells(bed.hop(300.0, quality=0.2).hr) == (None, State.INVALID, Reason.LOW_SIGNAL)


def test_a_heart_no_faster_than_the_breath_shows_neither(bed):
    for reading in bed.hops(5, hr=80.0, rr=75.0):
        assert tells(reading.hr) == tells(reading.rr) == (None, State.INVALID, Reason.LOW_SIGNAL)
    assert bed.hops(5, hr=120.0, rr=75.0)[-1].rr.value_per_min == 75.0


def test_a_breath_too_poor_to_show_does_not_take_the_heart_along(bed):
    assert [bed.hop(80.0, 75.0, rr_quality=0.2) for _ in range(3)][-1].hr.value_per_min == 80.0


@pytest.mark.parametrize(("hr", "imitated", "shown"), [
    (61.0, 18.0, False), (120.0, 18.0, False),  # the breath that is hidden may be so fast
    (132.0, 66.0, False), (135.0, 45.5, False), (144.4, 24.1, False),  # overtones
    (121.0, 18.0, True), (150.0, 34.0, True)])
def test_beside_what_imitates_a_breath_a_pulse_must_be_neither_it_nor_the_breath(bed, hr, imitated, shown):
    reason = Reason.LIGHT_FLICKER
    bed.hops(5, hr=hr, rr=40.0)
    readings = [bed.hop(hr, imitated, rr_conditions=[reason]) for _ in range(5)]
    assert {tells(each.rr) for each in readings} == {(None, State.INVALID, reason)}
    assert {tells(each.hr) for each in readings} == {(hr, State.VALID, Reason.NONE) if shown else (None, State.INVALID, reason)}


def test_an_overtone_is_still_one_when_what_made_it_cannot_be_read_any_more(bed):
    bed.hop(144.4, 24.1, rr_conditions=[Reason.LIGHT_FLICKER])
    later = bed.hops(12, hr=144.4, rr=None)
    assert values(later) == [None] * 10 + [144.4] * 2  # eight seconds, and then two hops that agree with a third
    assert {tells(each.hr) for each in later[:8]} == {(None, State.INVALID, Reason.LIGHT_FLICKER)}


def test_a_breath_in_a_picture_that_moves_as_one_is_doubted_and_the_pulse_is_not(bed):
    """A chest that fills the picture moves so, too."""
    readings = [bed.hop(150.0, 50.0, rr_conditions=[Reason.CAMERA_SHAKE]) for _ in range(5)]
    assert tells(readings[-1].rr) == (50.0, State.QUESTIONABLE, Reason.CAMERA_SHAKE)
    assert tells(readings[-1].hr) == (150.0, State.VALID, Reason.NONE)


# ---- quality


def test_the_three_tiers(bed):
    for quality, state in ((0.9, State.VALID), (0.5, State.QUESTIONABLE), (0.3, State.INVALID)):
        bed = Bedside()
        reading = bed.hops(8, quality=quality)[-1]
        assert reading.hr.state == state and reading.hr.quality == quality
        assert reading.hr.reason == (Reason.NONE if state == State.VALID else Reason.LOW_SIGNAL)


def test_a_quality_that_hovers_at_a_threshold_does_not_flicker(bed):
    bed.hops(5)
    states = [bed.hop(quality=VALID_QUALITY + 0.02 * (-1) ** k).hr.state for k in range(20)]
    assert states == [State.VALID] + [State.QUESTIONABLE] * 19, "down once, and not up again"
    assert bed.hop(quality=VALID_QUALITY + 0.1).hr.state == State.VALID
    hidden = [bed.hop(quality=0.4 + 0.02 * (-1) ** k).hr.value_per_min for k in range(20)]
    assert hidden[1:] == [None] * 19


# ---- conditions


@pytest.mark.parametrize("reason", [*FAULT, *BLOCK])
def test_world_trouble_forbids_every_number_however_good_the_estimate(bed, reason):
    bed.hops(5)
    reading = bed.hop(quality=1.0, conditions=[reason])
    assert tells(reading.hr) == tells(reading.rr) == (None, FAULT.get(reason, State.INVALID), reason)


@pytest.mark.parametrize("reason", DOUBT)
def test_signal_trouble_makes_a_good_number_questionable_and_names_itself(bed, reason):
    bed.hops(5)
    assert tells(bed.hop(conditions=[reason]).hr) == (140.0, State.QUESTIONABLE, reason)
    assert tells(bed.hop(None, conditions=[reason]).hr) == (None, State.INVALID, reason)
    assert tells(bed.hop(quality=0.2, conditions=[reason]).hr) == (None, State.INVALID, reason)


def test_every_reason_that_can_come_from_outside_has_its_place():
    own = {Reason.NONE, Reason.STARTING, Reason.LOW_SIGNAL, Reason.UNSTABLE, Reason.OUT_OF_BAND}
    assert own | set(FAULT) | set(BLOCK) | set(DOUBT) == set(Reason)


def test_what_troubles_the_pulse_alone_leaves_the_breath(bed):
    bed.hops(5)
    reading = bed.hop(hr_conditions=[Reason.LOW_FPS])
    assert tells(reading.hr) == (None, State.INVALID, Reason.LOW_FPS)
    assert tells(reading.rr) == (45.0, State.VALID, Reason.NONE)


def test_the_worst_trouble_is_the_one_named(bed):
    reading = bed.hop(conditions=[Reason.MOTION, Reason.TOO_DARK, Reason.NO_CAMERA])
    assert tells(reading.hr) == (None, State.FAULT, Reason.NO_CAMERA)


# ---- start-up and gaps


def test_while_video_fills_the_window_it_is_starting_and_each_vital_has_its_own_time(bed):
    reading = bed.hop(None, None, valid_s=3.5)
    assert tells(reading.hr) == tells(reading.rr) == (None, State.SEARCHING, Reason.STARTING)
    reading = bed.hop(None, None, valid_s=7.0)
    assert tells(reading.hr) == (None, State.INVALID, Reason.LOW_SIGNAL)
    assert tells(reading.rr) == (None, State.SEARCHING, Reason.STARTING)


def test_a_rate_missing_because_video_is_missing_is_a_gap(bed):
    assert tells(bed.hop(None, None, valid_s=8.0, gap=(2.0, 7.0)).hr) == (None, State.INVALID, Reason.GAP)
    assert tells(bed.hop(None, None, gap=(0.0, 1.5)).rr) == (None, State.INVALID, Reason.GAP)
