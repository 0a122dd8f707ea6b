"""Rendered domains and ward scenes: each is what its name says, and nothing judged is ever trained on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from calibration.domains import (
    DOMAIN_TEST_SEED0,
    DOMAINS,
    MIXED_SEED0,
    MIXED_VALIDATION_SEED0,
    NICU,
    RECOMPRESSED_SEED0,
    SYNTHETIC_ONLY,
    domain_test_scene,
    mixed_domain,
    mixed_scene,
    recompressed_scene,
)
from calibration.phantom import Phantom
from calibration.recordings import (
    RECORDINGS_ENV,
    TEST_RECORDINGS,
    BrokenRecordingError,
    MissingRecordingError,
    Recordings,
    half_of,
)
from calibration.scenes import PULSE_FREE, RESTRAINT_SEED0, pulse_free_scene, restraint_scene

ALL = DOMAINS | NICU
SMALL = {"width": 64, "height": 48}


def pixels(made, seconds=0.3):
    return np.stack([frame.bgr for frame in Phantom(replace(made, duration_s=seconds))])


def rates(rhythm, scene):
    return rhythm.rate_at(np.linspace(0, scene.duration_s, 400))


@pytest.fixture
def folder(tmp_path):
    """Recordings of both halves: two newborns with breaths, two adults without, and one without beat times."""
    rng = np.random.default_rng(1)
    for name, hr, rr in (("pics_preterm_infant1_seg0", 150, 60), ("pics_preterm_infant1_seg1", 155, 55),
                         ("welltory_01", 60, None), ("welltory_02", 75, None), ("neurokit_resting_8min", None, None)):
        truth = {"ecg": {"fs": 100, "values": [0.0]}}
        for field, rate in (("beats_s", hr), ("breaths_s", rr)):
            if rate is not None:
                truth[field] = np.cumsum(60 / rate * rng.uniform(0.92, 1.08, round(1.5 * rate))).round(3).tolist()
        (tmp_path / name).mkdir()
        (tmp_path / name / "truth.json").write_text(json.dumps(truth))
    return tmp_path


# --- every scene


@pytest.mark.parametrize("name", ALL)
def test_one_seed_is_one_clip(name):
    made, other = (domain_test_scene(name, i, **SMALL) for i in (0, 1))
    assert made == domain_test_scene(name, 0, **SMALL) and made.seed != other.seed
    if made.codec.startswith("h264"):
        pytest.importorskip("av", reason="PyAV encodes H.264; it is in the extras `lab` and `test`")
    np.testing.assert_array_equal(pixels(made), pixels(made))
    assert (pixels(made)[:4] != pixels(replace(made, seed=made.seed + 1))[:4]).mean() > 0.3


@pytest.mark.parametrize("name", ALL)
def test_truth_is_there_wherever_somebody_is(name):
    for i in range(8):
        made = domain_test_scene(name, i, **SMALL, duration_s=2.0)
        phantom = Phantom(made)
        somebody = name != "empty_cot"
        assert (phantom.pulse is not None) == (phantom.breath is not None) == somebody
        assert (phantom.pulse_map() > 0).any() == somebody
        assert not somebody or made.pulse_amplitude >= 0.002, "below what must be found"


@pytest.mark.parametrize("name", [name for name in ALL if name != "empty_cot"])
def test_no_domain_tells_the_rate(name):
    scenes = [ALL[name](seed) for seed in range(200)]
    hr = np.array([s.hr_per_min * (1 + s.hr_episode) for s in scenes])
    if name in ("bradycardia", "tachycardia"):
        assert hr.std() > 8
        return
    assert (hr > 150).mean() > 0.1 and (hr < 130).mean() > 0.1 and hr.max() > 225
    assert max(s.rr_per_min for s in scenes) > (85 if name != "periodic_breathing" else 70)
    if name in DOMAINS and name != "ward":
        assert hr.min() < 60 and min(s.rr_per_min for s in scenes) < 12


# --- what names a scene


def test_phototherapy_is_blue_and_covers_the_eyes():
    for i in range(6):
        made = domain_test_scene("phototherapy", i, **SMALL)
        blue, green, red = pixels(made, 0.1).mean(axis=(0, 1, 2))
        assert blue > 1.5 * green > 0 and blue > 2 * red and made.eye_mask


def test_infrared_is_dim_and_without_colour():
    pictures = [pixels(replace(domain_test_scene("dim_infrared", i, **SMALL), codec="raw"), 0.5).mean(axis=0) for i in range(6)]
    assert all(np.abs(p - p.mean(axis=-1, keepdims=True)).mean() < 2 for p in pictures)
    assert 14 < np.median([p.mean() for p in pictures]) < 110


@pytest.mark.parametrize(("name", "field"), [("bonnet", "bonnet"), ("cpap_tape", "tube"), ("cpap_tape", "tape"),
                                             ("swaddle", "blanket"), ("sideways_face", "sideways"), ("plexiglass", "glare"),
                                             ("phototherapy", "eye_mask")])
def test_what_covers_the_body_hides_some_of_the_pulse_or_the_picture(name, field):
    changes = []
    for i in range(5):
        made = replace(domain_test_scene(name, i, **SMALL), bare_chest=True)
        bare = replace(made, **{field: False if field != "glare" else 0.0})
        changes.append(1 - Phantom(made).pulse_map().sum() / Phantom(bare).pulse_map().sum())
    assert np.median(changes) > 0.003


def test_a_swaddled_chest_still_moves_its_cloth():
    made = replace(domain_test_scene("swaddle", 1, **SMALL), motion_frac=0.0, drift_amplitude=0.0, noise_counts=0.0,
                   burst_per_min=0.0, pulse_amplitude=0.0, bcg_frac=0.0, breath_frac=0.02, codec="raw")
    assert Phantom(made).shows_chest
    moved = pixels(made, 3.0).astype(float).std(axis=0).mean()
    assert moved > 0.02 and pixels(replace(made, rr_per_min=None), 3.0).std(axis=0).max() == 0


@pytest.mark.parametrize("name", ["staff_hand", "empty_cot"])
def test_an_arm_comes_and_goes(name):
    made = next(s for s in (domain_test_scene(name, i, **SMALL) for i in range(20)) if s.hand_s)
    still = replace(made, motion_frac=0.0, drift_amplitude=0.0, burst_per_min=0.0, hr_per_min=None, rr_per_min=None,
                    codec="raw", jitter_ms=0.0, drop_fraction=0.0, fps=5.0, glare=0.0)
    phantom = Phantom(still)
    light = np.stack([frame.bgr for frame in phantom]).astype(float)
    difference = np.abs(light - np.median(light, axis=0)).mean(axis=(1, 2, 3))
    away, there = phantom.hand == 0, phantom.hand > 0.9
    assert away.any() and there.any() and 3 <= made.hand_s <= 9
    assert difference[there].mean() > 2 * difference[away].mean()


def test_ventilation_shakes_the_tube():
    for i in range(10):
        made = domain_test_scene("ventilator", i)
        assert 3 <= made.shake_hz <= 15 and made.tube and made.tube_frac > 0 and made.shake_frac > 0


def test_periodic_breathing_pauses_and_the_rate_is_zero_then():
    shares = []
    for i in range(10):
        made = domain_test_scene("periodic_breathing", i, **SMALL)
        breath = Phantom(replace(made, fps=5.0)).breath
        paused = breath.rate_per_min == 0
        edges = np.flatnonzero(np.diff(np.concatenate([[0], paused.astype(int), [0]])))
        lengths_s = (edges[1::2] - edges[::2]) / breath.fs_hz
        assert lengths_s.max() > 3.0 and lengths_s.max() < 15, "a pause at the clip's edge may be cut"
        assert np.ptp(breath.wave[paused]) < 0.5 * np.ptp(breath.wave[~paused])
        breathes = breath.rate_per_min[~paused]
        assert np.median(breathes) == pytest.approx(made.rr_per_min, rel=0.25)
        shares.append(paused.mean())
    assert 0.2 < np.mean(shares) < 0.6


def test_bradycardia_dips_and_recovers():
    for i in range(10):
        made = domain_test_scene("bradycardia", i, **SMALL)
        hr = rates(Phantom(replace(made, fps=5.0)).pulse, made)
        assert 0.55 < hr.min() / made.hr_per_min < 0.87
        assert np.quantile(hr, 0.9) == pytest.approx(made.hr_per_min, rel=0.1)


def test_tachycardia_reaches_two_hundred_and_comes_back():
    for i in range(10):
        made = domain_test_scene("tachycardia", i, **SMALL)
        hr = rates(Phantom(replace(made, fps=5.0)).pulse, made)
        assert 190 < hr.max() < 260 and np.quantile(hr, 0.1) < 190


def test_dim_light_is_noisy():
    made = [domain_test_scene("lux", i, **SMALL) for i in range(40)]
    dark, bright = min(made, key=lambda s: s.brightness), max(made, key=lambda s: s.brightness)
    assert dark.brightness < 0.4 < bright.brightness and dark.shot_counts > 2 * bright.shot_counts
    still = {"pulse_amplitude": 0.0, "motion_frac": 0.0, "drift_amplitude": 0.0, "denoise": 0.0, "breath_frac": 0.0}
    noise = [pixels(replace(s, **still)).astype(float).std(axis=0).mean() / pixels(s).mean() for s in (dark, bright)]
    assert noise[0] > 2 * noise[1]


# --- pulse-free


@pytest.mark.parametrize("what", PULSE_FREE)
def test_nothing_pulse_free_has_a_rhythm_anywhere(what):
    made = pulse_free_scene(5, what, **SMALL, duration_s=1.0)
    phantom = Phantom(made)
    assert not phantom.pulse_map().any() and made.hand_hr_per_min is None
    assert phantom.pulse is None and phantom.breath is None


def test_restraint_knows_every_trouble():
    made = [restraint_scene(RESTRAINT_SEED0 + i) for i in range(400)]
    for field in ("talk", "turn_deg", "hand_s", "glare", "phototherapy", "blanket", "lamp_hz", "sway_hz", "shake_hz"):
        assert sum(bool(getattr(s, field)) for s in made) > 5, field
    assert 0.15 < np.mean([s.has_pulse for s in made]) < 0.45


# --- the training draw


def test_the_mix_has_its_shares_and_every_domain():
    names = [mixed_domain(MIXED_SEED0 + i) for i in range(3000)]
    assert set(names) == {"broad", *ALL}
    assert np.mean([n == "broad" for n in names]) == pytest.approx(0.45, abs=0.03)
    assert np.mean([n in DOMAINS for n in names]) == pytest.approx(0.30, abs=0.03)


def test_the_mix_reaches_the_extremes_and_keeps_clips_without_a_body():
    made = [mixed_scene(MIXED_SEED0 + i) for i in range(1500)]
    hr = [s.hr_per_min for s in made if s.has_pulse]
    rr = [s.rr_per_min for s in made if s.has_breathing]
    assert np.mean(np.array(hr) > 215) > 0.04 and max(hr) > 240 and min(hr) < 55
    assert np.mean(np.array(rr) > 80) > 0.04 and max(rr) > 100 and min(rr) < 10
    assert 0.15 < np.mean([not s.has_pulse for s in made]) < 0.4


def test_a_held_out_domain_is_never_trained_on_and_moves_no_other_seed():
    holdout = frozenset({"motion", "phototherapy"})
    for i in range(600):
        seed = MIXED_SEED0 + i
        name = mixed_domain(seed, holdout)
        assert name not in holdout
        if mixed_domain(seed) not in holdout:
            assert mixed_scene(seed, holdout) == mixed_scene(seed)
    assert mixed_domain(MIXED_SEED0, frozenset(ALL)) == "broad"
    with pytest.raises(ValueError, match="moon"):
        mixed_domain(1, frozenset({"moon"}))


def test_judged_and_trained_seeds_never_meet():
    judged = {domain_test_scene(name, i).seed for name in ALL for i in (0, 9_999)}
    assert len(judged) == 2 * len(ALL) and min(judged) >= DOMAIN_TEST_SEED0
    assert MIXED_SEED0 + 900_000 < MIXED_VALIDATION_SEED0 < MIXED_VALIDATION_SEED0 + 900_000 < DOMAIN_TEST_SEED0
    with pytest.raises(ValueError, match="studio"):
        domain_test_scene("moon", 1)


# --- recordings


def test_the_halves_of_known_recordings_are_fixed():
    assert half_of("pics_preterm_infant1_seg0") == "train" and half_of("pics_preterm_infant1_seg1") == "test"
    assert half_of("welltory_03") == "train" and half_of("welltory_04") == "test"
    unknown = [half_of(f"infant_{i}") for i in range(300)]
    assert 0.2 < np.mean([half == "test" for half in unknown]) < 0.5


def test_a_held_out_recording_never_drives_a_training_clip(folder):
    train, test = Recordings(folder, "train"), Recordings(folder, "test")
    assert train.names == ("pics_preterm_infant1_seg0", "welltory_01")
    assert test.names == ("pics_preterm_infant1_seg1", "welltory_02")
    used = [mixed_scene(MIXED_SEED0 + i, recordings=train).recording for i in range(400)]
    assert {"", *train.names} == set(used) and not set(used) & set(TEST_RECORDINGS)
    with pytest.raises(ValueError, match="train half"):
        mixed_scene(1, recordings=test)
    with pytest.raises(ValueError, match="test half"):
        domain_test_scene("studio", 2, train)


def test_a_third_of_the_judged_clips_follows_a_recording(folder, monkeypatch):
    test = Recordings(folder, "test")
    monkeypatch.setenv(RECORDINGS_ENV, str(folder))
    for name in ALL:
        made = [domain_test_scene(name, i, test, **SMALL) for i in range(9)]
        share = np.mean([bool(s.recording) for s in made])
        assert share == (0 if name in SYNTHETIC_ONLY else pytest.approx(1 / 3))
        assert all(s.recording == "pics_preterm_infant1_seg1" for s in made if s.recording and s.kind == "newborn")
    made = domain_test_scene("ward", 2, test, **SMALL)
    phantom = Phantom(replace(made, fps=5.0))
    recorded = json.loads((folder / made.recording / "truth.json").read_text())
    for rhythm, times, rate in ((phantom.pulse, recorded["beats_s"], made.hr_per_min),
                                (phantom.breath, recorded["breaths_s"], made.rr_per_min)):
        inside = np.array(times) - made.recording_start_s
        inside = inside[(inside > 1) & (inside < 39)]
        assert rates(rhythm, made).mean() == pytest.approx(rate, rel=0.06)
        assert rhythm.rate_at((inside[1:] + inside[:-1]) / 2) == pytest.approx(60 / np.diff(inside), rel=0.01)


def test_a_faster_recording_beats_faster(folder):
    made = next(s for s in (mixed_scene(MIXED_SEED0 + i, recordings=Recordings(folder, "train"), **SMALL) for i in range(400))
                if s.recording and s.recording_speed > 1.2)
    hr = rates(Phantom(made, folder).pulse, made).mean()
    assert hr == pytest.approx(made.hr_per_min, rel=0.03)


def test_a_missing_recording_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.delenv(RECORDINGS_ENV, raising=False)
    made = replace(domain_test_scene("ward", 0, **SMALL), recording="infant9")
    with pytest.raises(MissingRecordingError, match=f"infant9.*{RECORDINGS_ENV}"):
        Phantom(made)
    with pytest.raises(MissingRecordingError, match="infant9/truth.json"):
        Phantom(made, folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MissingRecordingError, match="empty"):
        Recordings(empty, "train")


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ('{"beats_s": [1, 0.5]}', "beats_s"),
                                               ('{"beats_s": "all"}', "beats_s")])
def test_a_broken_recording_is_named(tmp_path, text, message):
    (tmp_path / "infant_3").mkdir()
    (tmp_path / "infant_3" / "truth.json").write_text(text)
    with pytest.raises(BrokenRecordingError, match=f"infant_3.*{message}"):
        Recordings(tmp_path, half_of("infant_3"))


def test_a_missed_beat_never_gets_into_an_excerpt(tmp_path):
    beats = np.delete(np.arange(0, 60, 0.4), 70)
    (tmp_path / "welltory_01").mkdir()
    (tmp_path / "welltory_01" / "truth.json").write_text(json.dumps({"beats_s": beats.tolist()}))
    recordings = Recordings(tmp_path, "train")
    drawn = [recordings.draw(np.random.default_rng(i), 15.0) for i in range(60)]
    gap_s = beats[69]
    assert any(drawn) and all(not (e.start_s < gap_s < e.start_s + 15) for e in drawn if e is not None)


def test_real_preterm_recordings_fall_into_different_halves(clips):
    root = clips / "waveforms"
    assert "pics_preterm_infant1_seg0" in Recordings(root, "train").names
    excerpt = Recordings(root, "test").draw(np.random.default_rng(1), 40.0, 90.0)
    assert excerpt.name == "pics_preterm_infant1_seg1"
    assert 130 < excerpt.hr_per_min < 175 and 45 < excerpt.rr_per_min < 90


def test_recompressed_scenes_have_key_frames_every_few_pictures():
    scenes = [recompressed_scene(RECOMPRESSED_SEED0 + i) for i in range(40)]
    assert scenes[3] == recompressed_scene(RECOMPRESSED_SEED0 + 3)
    assert all(s.codec.split(":")[0] in ("h264", "mpeg4") and 8 <= int(s.codec.split(":")[2]) <= 30 for s in scenes)
    assert 10 <= sum(s.has_pulse for s in scenes) <= 25 and any(s.has_breathing for s in scenes)
