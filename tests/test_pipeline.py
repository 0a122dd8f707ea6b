"""Frames in, readings out: the whole chain but for camera, port and the student's weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edge import pipeline as pipeline_module
from edge.clip import Region, RegionError, normalise_clip
from edge.pipeline import ModelMismatch, Pipeline, View, check_normalisation, normalisation
from edge.records import Frame, Reason, RecordError, State
from edge.vitals import PROFILES
from engines.errors import EngineError
from tests.fake_engine import FakeEngine, at_fps, frames, picture, textured

NEONATE = PROFILES["neonate"]


def make(engine=None, roi=None, search=False, size=(64, 48), profile=NEONATE):
    return Pipeline(engine or FakeEngine(), profile, *size, roi, search)


def fed(pipeline, source):
    return [hop for frame in source for hop in pipeline.push(frame, frame.t_ns)]


def times_s(hops):
    return [hop.reading.t_ns / 1e9 for hop in hops]


@pytest.fixture(scope="module")
def steady():
    """A pipeline that has seen 24 s of 150 and 45 /min, to be looked at only, and its hops."""
    pipeline = make()
    return pipeline, fed(pipeline, frames(at_fps(30, 24), hr=150, rr=45))


def test_both_rates_are_read_and_shown(steady):
    _, hops = steady
    last = hops[-1].reading
    assert last.hr.state == last.rr.state == State.VALID
    assert last.hr.value_per_min == pytest.approx(150, abs=1) and last.rr.value_per_min == pytest.approx(45, abs=1)
    first_hr = next(hop for hop in hops if hop.reading.hr.value_per_min)
    first_rr = next(hop for hop in hops if hop.reading.rr.value_per_min)
    assert first_hr.reading.t_ns <= 10e9 and first_rr.reading.t_ns <= 20e9


def test_every_grid_frame_goes_through_the_stem_once_whatever_the_windows_overlap():
    engine, source = FakeEngine(window=120), list(frames(at_fps(28.6, 8)))
    hops = fed(make(engine), source)
    whole = normalise_clip(iter(source), None, 30.0, engine.spec.size)
    assert len(engine.seen) == 30 * len(hops) and len(whole.frames) - len(engine.seen) < 30
    np.testing.assert_array_equal(np.stack(engine.seen), whole.frames[:len(engine.seen)])
    assert engine.stem_calls == len(hops)


def test_a_reading_comes_every_second_of_video(steady):
    np.testing.assert_allclose(times_s(steady[1]), np.arange(24) + 29 / 30, atol=1e-6)
    assert fed(make(), frames(at_fps(30, 0.9))) == []


def test_the_mask_fills_from_the_newest_end(steady):
    valid = steady[1][2].waveform.valid
    assert valid[-90:].all() and not valid[:-90].any()


def test_a_fixed_region_is_what_is_looked_at():
    still = textured(96, 128)
    where = (slice(0, 48), slice(64, 128))
    source = [Frame(i, round(t * 1e9), picture(still, t, 150, 45, where)) for i, t in enumerate(at_fps(30, 12))]
    inside = fed(make(roi=Region(64, 0, 64, 48), size=(128, 96)), source)
    outside = fed(make(roi=Region(0, 48, 64, 48), size=(128, 96)), source)
    assert inside[-1].reading.hr.value_per_min == pytest.approx(150, abs=1)
    assert all(hop.reading.hr.value_per_min is None for hop in outside)


def test_a_region_outside_the_frame_refuses_to_start():
    with pytest.raises(RegionError, match="64x48"):
        make(roi=Region(60, 0, 20, 20))


@pytest.mark.parametrize("name", sorted(normalisation()))
def test_weights_of_another_preprocessing_refuse_to_start(name):
    spec = FakeEngine().spec
    with pytest.raises(ModelMismatch, match=name):
        make(FakeEngine(normalisation=spec.normalisation | {name: spec.normalisation[name] * 1.01}))
    with pytest.raises(ModelMismatch, match=f"{name} = None"):
        check_normalisation(replace(spec, normalisation={k: v for k, v in spec.normalisation.items() if k != name}))


# --- what the pictures themselves tell


def black(_, bgr):
    return (bgr * 0.05).astype(np.uint8)


def white(_, bgr):
    return np.maximum(bgr, 252)


def frozen_after(t_s):
    def change(t, bgr, kept={}):  # noqa: B006  a dictionary that lives as long as the function is the point
        return bgr if t < t_s else kept.setdefault("picture", bgr)
    return change


@pytest.mark.parametrize(("change", "reason"), [
    (black, Reason.TOO_DARK), (white, Reason.OVEREXPOSED), (frozen_after(0.0), Reason.FRAMES_STALLED)])
def test_pictures_that_hold_nothing_show_nothing_and_say_why(change, reason):
    hops = fed(make(), frames(at_fps(30, 14), change=change))
    assert all(reason in hop.conditions for hop in hops[2:])
    assert all(hop.reading.hr.value_per_min is None and hop.reading.rr.value_per_min is None for hop in hops)
    if reason != Reason.OVEREXPOSED:  # light that is only near the limit may still be read, so the wave decides
        assert hops[-1].reading.hr.reason == reason


def test_a_source_that_freezes_takes_its_number_away_within_three_seconds():
    hops = fed(make(), frames(at_fps(30, 14), change=frozen_after(9.0)))
    assert hops[8].reading.hr.value_per_min is not None
    late = [hop for hop in hops if hop.reading.t_ns > 11.1e9]
    assert late and all(hop.reading.hr.value_per_min is None for hop in late)
    assert {hop.reading.hr.reason for hop in late} == {Reason.FRAMES_STALLED}


def test_five_frames_a_second_hold_breathing_but_no_pulse():
    hops = fed(make(), frames(at_fps(5, 30), hr=70, rr=40))
    assert all(hop.reading.hr.value_per_min is None for hop in hops)
    assert hops[-1].reading.hr.reason == Reason.LOW_FPS
    assert hops[-1].reading.rr.value_per_min == pytest.approx(40, abs=2)


def test_repeated_pictures_are_no_samples():
    """A 30 fps file whose picture changes five times a second folds 200 /min to 100: withheld like 5 fps."""
    pictures = list(frames(at_fps(30, 14), hr=200))
    repeated = [replace(frame, bgr=pictures[i - i % 6].bgr) for i, frame in enumerate(pictures)]
    hops = fed(make(), repeated)
    assert all(hop.reading.hr.value_per_min is None for hop in hops)
    assert hops[-1].reading.hr.reason == Reason.LOW_FPS
    assert any(hop.reading.hr.value_per_min for hop in fed(make(), pictures))


def test_long_steps_among_short_ones_count():
    times = np.sort(np.concatenate([np.arange(0, 20, 0.3), np.arange(0.01, 20, 0.3)]))
    assert all(hop.reading.hr.value_per_min is None for hop in fed(make(), frames(times, hr=200)))


def test_three_frames_a_second_hold_nothing():
    hops = fed(make(), frames(at_fps(3.5, 30), hr=70, rr=40))
    assert all(hop.reading.hr.value_per_min is None and hop.reading.rr.value_per_min is None for hop in hops)


def test_a_rate_that_falls_withholds_the_pulse_within_its_averaging_time():
    fast, slow = at_fps(30, 9), at_fps(6, 17, start_s=9.0)
    hops = fed(make(), frames(np.concatenate([fast, slow]), hr=150, rr=40))
    assert hops[8].reading.hr.value_per_min is not None
    late = [hop.reading.hr for hop in hops if hop.reading.t_ns > 16e9]
    assert len(late) > 8 and {vital.reason for vital in late} == {Reason.LOW_FPS}


def test_jitter_and_drops_change_no_rate():
    rng = np.random.default_rng(6)
    uneven = np.sort(at_fps(30, 24) + rng.uniform(-0.006, 0.006, 720))
    uneven = uneven[(rng.random(720) > 0.05) & (uneven >= 0)]
    last = fed(make(), frames(uneven, hr=171, rr=52))[-1].reading
    assert last.hr.value_per_min == pytest.approx(171, abs=1) and last.rr.value_per_min == pytest.approx(52, abs=1)


def test_a_gap_is_said_and_never_makes_a_plain_number():
    holed = np.concatenate([at_fps(30, 9), at_fps(30, 9, start_s=10.5)])
    hops = fed(make(), frames(holed))
    assert hops[8].reading.hr.state == State.VALID
    after = [hop for hop in hops if hop.reading.t_ns > 9.5e9]
    assert len(after) > 8 and all(Reason.GAP in hop.conditions for hop in after)
    assert all(hop.reading.hr.state != State.VALID for hop in after)
    np.testing.assert_allclose(np.diff(times_s(hops)), 1.0, atol=1e-6)


def test_a_hole_longer_than_the_window_leaves_nothing_of_what_was():
    holed = np.concatenate([at_fps(30, 9), at_fps(30, 3, start_s=34.0)])
    hops = fed(make(), frames(holed))
    assert hops[8].reading.hr.value_per_min is not None
    after = [hop for hop in hops if hop.reading.t_ns > 30e9]
    assert after and all(hop.reading.hr.value_per_min is None and not hop.waveform.valid[:400].any() for hop in after)


def test_a_hole_of_hours_costs_no_time_and_the_clock_goes_on():
    engine = FakeEngine()
    holed = np.concatenate([at_fps(30, 3), at_fps(30, 3, start_s=7200.0)])
    hops = fed(make(engine), frames(holed))
    assert engine.stem_calls == 6 and [hop.reading.t_ns > 7200e9 for hop in hops] == [False] * 3 + [True] * 3


def brighter_after(*times_s, by=1.04):
    """The whole picture becomes brighter or darker in turn, as an exposure that moves makes it."""
    def change(t, bgr):
        factor = by if sum(t >= at for at in times_s) % 2 else 1.0
        dither = np.random.default_rng(round(t * 1e6)).uniform(0, 1, bgr.shape)
        return np.floor(bgr * factor + dither).clip(0, 255).astype(np.uint8)
    return change


def test_one_jump_of_the_light_makes_what_is_shown_questionable_for_the_averaging_time():
    pipeline = make()
    hops = fed(pipeline, frames(at_fps(30, 22), change=brighter_after(8.0)))
    assert pipeline.seen["light_steps"] == 1 and hops[7].reading.hr.state == State.VALID
    jumped = [hop for hop in hops if 8.5e9 < hop.reading.t_ns < 16e9]
    assert jumped and all(Reason.LIGHT_FLICKER in hop.conditions for hop in jumped)
    assert {hop.reading.hr.state for hop in jumped} <= {State.QUESTIONABLE, State.INVALID, State.SEARCHING}
    assert {hop.reading.hr.reason for hop in jumped} <= {Reason.LIGHT_FLICKER, Reason.UNSTABLE}
    assert Reason.LIGHT_FLICKER not in hops[-1].conditions and hops[-1].reading.hr.state == State.VALID
    between = pipeline.reading(hops[-1].reading.t_ns + 10**8, frozenset())
    assert between.hr.state == State.VALID


def test_a_light_that_goes_on_jumping_shows_nothing():
    hops = fed(make(), frames(at_fps(30, 19), change=brighter_after(*np.arange(8.0, 19.0, 2.0))))
    assert hops[7].reading.hr.value_per_min is not None
    late = [hop.reading for hop in hops if 12.5e9 < hop.reading.t_ns < 19e9]
    assert len(late) == 7 and all(reading.hr.value_per_min is None and reading.rr.value_per_min is None for reading in late)
    assert {reading.hr.reason for reading in late} == {Reason.LIGHT_FLICKER}


def test_small_jumps_only_make_it_questionable_however_many_they_are():
    """Each at a crest of the pulse, where nothing hides it, and the pulse all over the picture, or it would be a lamp's as
    well."""
    pipeline, crests, everywhere = make(), np.arange(8.1, 19.0, 2.0), (slice(None), slice(None))
    hops = fed(pipeline, frames(at_fps(30, 19), change=brighter_after(*crests, by=1.025), where=everywhere))
    assert pipeline.seen["light_steps"] >= 5
    late = [hop.reading.hr for hop in hops if 12.5e9 < hop.reading.t_ns < 19e9]
    assert {vital.state for vital in late} <= {State.QUESTIONABLE, State.SEARCHING} and late[-1].value_per_min is not None


def test_between_hops_a_jump_goes_on_being_doubted():
    pipeline = make()
    hops = fed(pipeline, frames(at_fps(30, 12), change=brighter_after(9.5)))
    assert hops[8].reading.hr.state == State.VALID
    assert pipeline.reading(12 * 10**9 + 10**8, frozenset()).hr.state != State.VALID


def test_steady_pictures_have_neither_jumps_nor_stalls_nor_repeats():
    rng = np.random.default_rng(6)
    uneven = np.sort(at_fps(30, 15) + rng.uniform(-0.006, 0.006, 450))
    uneven = uneven[(np.arange(450) % 25 > 0) & (uneven >= 0)]  # single frames are lost
    pipeline = make()
    hops = fed(pipeline, frames(uneven))
    assert pipeline.seen == {"duplicates": 0, "stalls": 0, "light_steps": 0}
    assert all(not hop.conditions for hop in hops[1:])


def test_a_stall_is_told_in_the_reading_after_it_and_only_there():
    stalled = np.delete(at_fps(30, 18), [305, 306, 307])  # 133 ms without a picture, which are still bridged
    pipeline = make()
    hops = fed(pipeline, frames(stalled))
    assert pipeline.seen["stalls"] == 1
    assert [round(hop.reading.t_ns / 1e9) for hop in hops if Reason.GAP in hop.conditions] == [11]
    assert {hop.reading.hr.state for hop in hops if Reason.GAP in hop.conditions} == {State.QUESTIONABLE}
    assert hops[-1].reading.hr.state == State.VALID


def test_a_source_that_repeats_its_picture_stalls_though_its_times_go_on():
    pictures = list(frames(at_fps(30, 12)))
    held = [replace(frame, bgr=pictures[270].bgr) if 270 < i < 276 else frame for i, frame in enumerate(pictures)]
    pipeline = make()
    hops = fed(pipeline, held)
    assert pipeline.seen["duplicates"] == 5 and pipeline.seen["stalls"] == 1
    assert any(Reason.GAP in hop.conditions for hop in hops)


def test_looking_at_another_region_is_no_jump_of_the_light(monkeypatch):
    box = Region(96, 0, 96, 96)
    monkeypatch.setattr(pipeline_module, "RegionSearch", lambda whole: SimpleNamespace(
        propose=lambda *_: box, judge=lambda *_: True))
    pipeline = make(size=(192, 192), search=True)
    dark = textured(192, 192)
    dark[:96, 96:] *= 0.6
    fed(pipeline, (Frame(i, round(t * 1e9), picture(dark, t, 150, 45)) for i, t in enumerate(at_fps(30, 6))))
    assert pipeline.seen["light_steps"] == 0


# --- what stands between hops, and after a failure


def test_between_hops_the_reading_ages_and_goes_stale():
    pipeline = make()
    fed(pipeline, frames(at_fps(30, 9)))
    end_ns = round((9 - 1 / 30) * 1e9)
    young = pipeline.reading(end_ns + 400_000_000, frozenset())
    assert young.hr.value_per_min is not None and young.hr.age_s == pytest.approx(0.4, abs=0.01)
    old = pipeline.reading(end_ns + 2_600_000_000, frozenset())
    assert old.hr.value_per_min is None and old.hr.state == State.STALE


def test_world_trouble_hides_the_number():
    pipeline = make()
    fed(pipeline, frames(at_fps(30, 9)))
    now_ns = 9_100_000_000
    assert pipeline.reading(now_ns, frozenset()).hr.value_per_min is not None
    lost = pipeline.reading(now_ns, frozenset({Reason.NO_CAMERA}))
    assert lost.hr.value_per_min is None and lost.rr.reason == Reason.NO_CAMERA


def test_before_the_first_hop_it_is_starting():
    vital = make().reading(1, frozenset()).hr
    assert (vital.state, vital.reason) == (State.SEARCHING, Reason.STARTING)


def test_a_driver_that_stamps_frames_a_little_ahead_breaks_nothing():
    pipeline = make()
    for frame in frames(at_fps(30, 12)):
        now_ns = max(0, frame.t_ns - 60_000_000)
        pipeline.push(frame, now_ns)
        pipeline.reading(now_ns, frozenset())
    assert pipeline.reading(12 * 10**9, frozenset()).hr.value_per_min == pytest.approx(150, abs=1)


def test_a_failed_inference_gives_no_reading_and_what_was_seen_is_forgotten():
    engine = FakeEngine(fail_at=[10])
    pipeline = make(engine)
    source = list(frames(at_fps(30, 20)))
    fed(pipeline, source[:270])
    assert pipeline.reading(9_100_000_000, frozenset()).hr.value_per_min is not None
    with pytest.raises(EngineError):
        fed(pipeline, source[270:310])
    pipeline.forget()
    assert pipeline.reading(10_400_000_000, frozenset()).hr.value_per_min is None
    later = fed(pipeline, source[310:])
    assert later[0].reading.hr.value_per_min is None
    assert later[0].waveform.valid.sum() == 30
    assert later[-1].reading.hr.value_per_min == pytest.approx(150, abs=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_wave_that_is_not_finite_is_never_made(bad):
    class Broken(FakeEngine):
        def head(self, features, mask):
            waves, presence, attention = super().head(features, mask)
            waves[1, 100] = bad
            return waves, presence, attention

    with pytest.raises(RecordError, match="not finite"):
        fed(make(Broken()), frames(at_fps(30, 2)))


def test_time_is_kept_by_stage(steady):
    pipeline, _ = steady
    assert set(pipeline.stages.seconds) == {"preprocess", "stem", "head", "vitals", "gate"}
    assert all(seconds >= 0 for seconds in pipeline.stages.seconds.values())


# --- finding the region


SIDE_PX = 128
CORNER = (slice(0, SIDE_PX // 4), slice(SIDE_PX * 3 // 4, SIDE_PX))
WHOLE = Region(0, 0, SIDE_PX, SIDE_PX)


def corner_frames(until_s, quiet_from_s=np.inf):
    still = textured(SIDE_PX, SIDE_PX)
    for i, t in enumerate(at_fps(30, until_s)):
        rates = (150, 45) if t < quiet_from_s else (None, None)
        yield Frame(i, round(t * 1e9), picture(still, t, *rates, CORNER))


@pytest.fixture(scope="module")
def searched():
    """The rhythm is in one corner, and is gone after 28 s: the hops, and how often a candidate began."""
    begun = []

    class Counted(View):
        def __init__(self, region, *rest):
            begun.append(region)
            super().__init__(region, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_module, "View", Counted)
        hops = fed(make(size=(SIDE_PX, SIDE_PX), search=True), corner_frames(56, quiet_from_s=28.0))
    return hops, begun


def test_auto_zooms_into_the_corner_that_beats(searched):
    hops, begun = searched
    region = hops[27].region
    assert region == begun[1] != begun[0] == WHOLE
    assert region.x_px <= 96 and region.x_px + region.w_px == SIDE_PX and region.y_px == 0 and region.h_px >= 32
    assert region.w_px * region.h_px < 0.3 * SIDE_PX**2


def test_taking_over_waits_for_a_full_trial_and_interrupts_no_number(searched):
    hops, _ = searched
    taken = next(i for i, hop in enumerate(hops) if hop.region != WHOLE)
    assert taken >= 8 + 12
    first = next(i for i, hop in enumerate(hops) if hop.reading.hr.value_per_min)
    assert all(hop.reading.hr.value_per_min == pytest.approx(150, abs=2) for hop in hops[first:28])
    assert all(hop.reading.rr.value_per_min == pytest.approx(45, abs=2) for hop in hops[taken - 2:28])


def test_when_the_rhythm_is_lost_the_whole_frame_is_looked_at_again(searched):
    hops, _ = searched
    assert hops[-1].region == WHOLE
    assert all(hop.reading.hr.value_per_min is None for hop in hops[46:])


@pytest.mark.parametrize(("verdict", "moves"), [(None, False), (False, False), (True, True)])
def test_a_candidate_is_looked_through_only_once_it_has_won(monkeypatch, verdict, moves):
    box = Region(64, 0, 64, 64)
    monkeypatch.setattr(pipeline_module, "RegionSearch", lambda whole: SimpleNamespace(
        propose=lambda *_: box, judge=lambda *_: verdict))
    hops = fed(make(size=(SIDE_PX, SIDE_PX), search=True), corner_frames(4))
    assert {hop.region == box for hop in hops} == {False, moves}


def test_full_never_moves():
    hops = fed(make(size=(SIDE_PX, SIDE_PX)), corner_frames(12))
    assert {hop.region for hop in hops} == {WHOLE}
