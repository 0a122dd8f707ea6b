"""Rendered clips: what they claim to be is what is in the pixels."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from calibration.phantom import Phantom
from calibration.record import RecordingError, record
from calibration.rhythms import breath_shape, breathing, from_times, heartbeat, pulse_shape
from calibration.scene import KINDS, Scene
from calibration.scenes import (
    NEWBORN_SEED0,
    PULSE_FREE,
    TRAINING_MIX,
    TRAINING_SEED0,
    VALIDATION_SEED0,
    demo_scene,
    newborn_scene,
    pulse_free_scene,
    training_scene,
)

SMALL = {"width": 64, "height": 48}
STILL = {"motion_frac": 0.0, "drift_amplitude": 0.0, "noise_counts": 0.0, "burst_per_min": 0.0}


def scene(kind="newborn", seed=3, seconds=0.3, **changed):
    return Scene(kind, seed, duration_s=seconds, **(SMALL | changed))


def pixels(made):
    return np.stack([frame.bgr for frame in Phantom(made)])


def test_one_seed_is_one_clip():
    np.testing.assert_array_equal(pixels(scene()), pixels(scene()))
    assert (pixels(scene()) != pixels(scene(seed=4))).mean() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_renders(kind):
    frames = list(Phantom(scene(kind)))
    assert [frame.seq for frame in frames] == list(range(9))
    assert all(frame.bgr.shape == (48, 64, 3) and frame.bgr.dtype == np.uint8 for frame in frames)
    phantom = Phantom(scene(kind))
    assert (phantom.pulse is not None) == (kind in ("newborn", "face", "patch"))
    assert (phantom.breath is not None) == (kind in ("newborn", "face", "chest"))
    assert (phantom.pulse_map() > 0).any() == (phantom.pulse is not None)


@pytest.mark.parametrize("codec", ["raw", "mjpeg:80", "h264:12", "h264:12:4", "mpeg4:3:4"])
def test_codecs_keep_size_and_number_of_frames(codec):
    if codec.startswith(("h264", "mpeg4")):
        pytest.importorskip("av", reason="PyAV encodes H.264; it is in the extras `lab` and `test`")
    compressed = pixels(scene("face", codec=codec))
    assert compressed.shape == (9, 48, 64, 3)
    difference = np.abs(compressed.astype(int) - pixels(scene("face")).astype(int)).mean()
    assert (difference == 0) == (codec == "raw") and difference < 10


def test_key_frames_beat_at_their_own_rate():
    """What makes a restraint clip of a still doll: every 12th picture is coded anew and differs from the one before."""
    pytest.importorskip("av", reason="PyAV encodes MPEG-4; it is in the extras `lab` and `test`")
    clip = pixels(scene("doll", seconds=2.4, codec="mpeg4:8:12", fps=25.0, motion_frac=0.0005, noise_counts=1.0)).astype(int)
    change = np.abs(np.diff(clip, axis=0)).mean(axis=(1, 2, 3))
    key = np.arange(1, 60) % 12 == 0
    assert change[key].min() > 2 * np.median(change[~key])


@pytest.mark.parametrize(("changed", "message"), [
    ({"kind": "cat"}, "newborn"), ({"codec": "vp9:3"}, "mjpeg:QUALITY"), ({"codec": "mjpeg"}, "mjpeg:QUALITY"),
    ({"codec": "h264:good"}, "h264:CRF"), ({"codec": "mpeg4:5"}, "mpeg4:QUANTISER:GOP"),
    ({"width": 0}, "holds no clip"), ({"fps": 0.0}, "holds no clip"),
    ({"seconds": 0.0}, "holds no clip")])
def test_a_scene_that_cannot_be_is_refused_where_it_is_made(changed, message):
    with pytest.raises(ValueError, match=message):
        scene(**changed)


@pytest.mark.parametrize("changed", [{}, {"jitter_ms": 12.0}, {"drop_fraction": 0.3}, {"jitter_ms": 30.0, "fps": 60.0}])
def test_frame_times_rise_strictly(changed):
    phantom = Phantom(scene("black", seconds=8.0, **changed))
    times_ns = np.array([round(t * 1e9) for t in phantom.frame_times_s])
    assert (np.diff(times_ns) > 0).all() and times_ns[0] >= 0
    kept = times_ns.size / (8 * changed.get("fps", 30.0))
    assert kept == pytest.approx(1 - changed.get("drop_fraction", 0.0), abs=0.08)


def peak_per_min(wave, fs_hz):
    spectrum = np.abs(np.fft.rfft((wave - wave.mean()) * np.hanning(wave.size), 8 * wave.size))
    return 60 * float(np.fft.rfftfreq(8 * wave.size, 1 / fs_hz)[spectrum.argmax()])


@pytest.mark.parametrize("rate", [60.0, 148.0, 240.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_true_heart_rate_is_the_rate_of_the_wave(rate, seed):
    beat = heartbeat(np.random.default_rng(seed), rate, 30.0, None, wander=0.0)
    assert peak_per_min(beat.wave, beat.fs_hz) == pytest.approx(beat.rate_per_min.mean(), abs=0.015 * rate)
    assert beat.rate_per_min.mean() == pytest.approx(rate, rel=0.03)
    assert beat.wave.std() == pytest.approx(1) and abs(beat.wave.mean()) < 1e-9


@pytest.mark.parametrize("rate", [12.0, 47.0, 100.0])
def test_the_true_breathing_rate_is_the_rate_of_the_wave(rate):
    breath = breathing(np.random.default_rng(5), rate, 60.0, wander=0.0)
    assert peak_per_min(breath.wave, breath.fs_hz) == pytest.approx(rate, abs=1.0)
    assert breath.rate_per_min == pytest.approx(rate)


def test_a_wandering_rate_stays_the_derivative_of_the_phase():
    """Beats counted between two moments are what the true rate adds up to."""
    beat = heartbeat(np.random.default_rng(8), 120.0, 30.0, None, wander=0.04)
    rising = np.flatnonzero((beat.wave[:-1] < 0.8) & (beat.wave[1:] >= 0.8))
    beats = rising[np.insert(np.diff(rising) > 0.25 * beat.fs_hz, 0, True)]
    for first, last in ((2, 20), (20, 50)):
        span = slice(beats[first], beats[last])
        counted_per_min = 60 * beat.fs_hz * (last - first) / (beats[last] - beats[first])
        assert beat.rate_per_min[span].mean() == pytest.approx(counted_per_min, abs=1.5)


@pytest.mark.parametrize("seed", range(4))
def test_given_beat_times_are_the_peaks_of_the_wave(seed):
    rng = np.random.default_rng(seed)
    times = 0.3 + np.cumsum(0.4 * rng.uniform(0.8, 1.25, 60))
    beat = from_times(times, 20.0, pulse_shape(rng))
    peaks = np.flatnonzero((beat.wave[1:-1] >= beat.wave[:-2]) & (beat.wave[1:-1] > beat.wave[2:])
                           & (beat.wave[1:-1] > 0.95 * beat.wave.max())) + 1
    seen = times[(times > 0.1) & (times < 19.9)]
    assert abs(peaks.size - seen.size) <= 2
    assert all(np.abs(peaks / beat.fs_hz - t).min() <= 0.010 for t in seen)
    between = (seen[1:] + seen[:-1]) / 2
    assert beat.rate_at(between) == pytest.approx(60 / np.diff(seen), rel=0.02)


def test_a_long_gap_between_breaths_is_a_pause_at_rate_zero():
    times = np.concatenate([np.arange(0.5, 8, 1.0), np.arange(15.5, 25, 1.0)])
    breath = from_times(times, 24.0, breath_shape(np.random.default_rng(1)), longest_s=2.5)
    assert (breath.rate_at(np.arange(9.0, 14.5, 0.1)) == 0).all() and np.ptp(breath.at(np.arange(9.0, 14.5, 0.1))) < 0.02
    for t_s in (4.0, 18.0):
        assert breath.rate_at(np.array([t_s]))[0] == pytest.approx(60)
    assert (from_times(times, 24.0, breath_shape(np.random.default_rng(1))).rate_per_min > 0).all()


@pytest.mark.parametrize("times", [[], [1.0], [1.0, 1.0, 2.0], [2.0, 1.0]])
def test_times_that_do_not_rise_are_refused(times):
    with pytest.raises(ValueError, match="strictly rising"):
        from_times(np.array(times), 10.0, pulse_shape(np.random.default_rng(1)))


@pytest.mark.parametrize("variability", [0.005, 0.03, 0.07])
def test_a_variable_heart_keeps_its_mean_rate_and_varies_as_told(variability):
    made = [heartbeat(np.random.default_rng(seed), 150.0, 60.0, None, wander=0.0, variability=variability) for seed in range(6)]
    assert np.mean([beat.rate_per_min.mean() for beat in made]) == pytest.approx(150, rel=0.02)
    spread = np.mean([(beat.rate_per_min / beat.rate_per_min.mean()).std() for beat in made])
    assert 0.5 * variability < spread < 1.6 * variability + 0.01


def test_breath_intervals_vary_as_told():
    breath = breathing(np.random.default_rng(3), 50.0, 120.0, wander=0.0, spread=0.25)
    assert 0.1 < breath.rate_per_min.std() / breath.rate_per_min.mean() < 0.4
    assert breath.rate_per_min.min() > 20


def test_the_pulse_is_in_the_skin_and_nowhere_else():
    made = scene("face", seconds=2.0, pulse_amplitude=0.3, breath_frac=0.0, **STILL)
    phantom = Phantom(made)
    light = np.stack([frame.bgr for frame in phantom]).astype(float)[..., 1]
    wave = phantom.pulse.at(phantom.frame_times_s)
    skin = phantom.pulse_map()
    assert (light.std(axis=0)[skin == 0] == 0).all() and (skin == 0).mean() > 0.1
    strong = skin > 0.5 * skin.max()
    follows = [np.corrcoef(wave, series)[0, 1] for series in light[:, strong].T]
    assert np.median(follows) < -0.95, "more blood darkens the skin"
    # AC/DC in light, gamma 2.2, and a wave whose peak to peak is about 3.5 standard deviations
    per_unit = np.median(light[:, strong].std(axis=0) / light[:, strong].mean(axis=0)) / wave.std()
    assert 0.2 < per_unit / (0.3 / 2.2 / 3.5) < 2


def test_amplitude_zero_is_the_picture_without_a_pulse():
    off = scene("newborn", pulse_amplitude=0.0)
    np.testing.assert_array_equal(pixels(off), pixels(replace(off, hr_per_min=None)))
    assert Phantom(off).pulse is None and not Phantom(off).pulse_map().any()


def test_breathing_moves_the_torso_and_not_the_cot():
    made = scene("chest", seconds=3.0, breath_frac=0.05, rr_per_min=60.0, subject_frac=0.5, **STILL)
    phantom = Phantom(made)
    moved = np.stack([frame.bgr for frame in phantom]).astype(float).mean(axis=3)
    changes = moved.std(axis=0)
    assert 0.02 < (changes > 1).mean() < 0.8 and (changes == 0).mean() > 0.1
    series = moved[:, changes > 3]
    wave = phantom.breath.at(phantom.frame_times_s)
    assert np.median([abs(np.corrcoef(wave, s)[0, 1]) for s in series.T]) > 0.8
    assert not pixels(replace(made, rr_per_min=None)).std(axis=0).any()


@pytest.mark.parametrize("size", [(64, 48), (1600, 900)])
def test_sensor_noise_is_new_in_every_frame(size):
    phantom = Phantom(Scene("noise", 1, *size, duration_s=0.1))
    one, other = (frame.bgr[:48].astype(float) for frame, _ in zip(phantom, range(2), strict=False))
    assert one.std() > 20 and abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1


# --- suites


def test_no_judged_clip_was_ever_trained_on():
    n = 5000
    training = range(TRAINING_SEED0, TRAINING_SEED0 + 20 * n)
    first = {"validation": training_scene(VALIDATION_SEED0).seed, "newborn": newborn_scene(NEWBORN_SEED0).seed}
    suites = {name: [seed + i for i in range(n)] for name, seed in first.items()} | {"demo": [demo_scene().seed]}
    from calibration.evaluate import scene_of

    for what in PULSE_FREE:
        suites[what] = [scene_of(what, i).seed for i in (0, 1, 999)]
    suites["newborn"] += [scene_of("newborn", 199).seed]
    seeds = [seed for suite in suites.values() for seed in set(suite)]
    assert not any(seed in training for seed in seeds)
    assert len(seeds) == len(set(seeds))


def test_the_headline_suite_is_what_it_says():
    scenes = [newborn_scene(NEWBORN_SEED0 + i) for i in range(60)]
    assert all(100 <= s.hr_per_min <= 220 and 25 <= s.rr_per_min <= 90 and s.has_pulse and s.has_breathing for s in scenes)
    assert max(s.hr_per_min for s in scenes) > 200 and min(s.hr_per_min for s in scenes) < 120


@pytest.mark.parametrize("what", PULSE_FREE)
def test_a_pulse_free_scene_has_no_rhythm_of_a_body(what):
    made = pulse_free_scene(7, what, **SMALL, duration_s=0.2)
    phantom = Phantom(made)
    assert phantom.pulse is None and phantom.breath is None and len(list(phantom)) == 6


def test_an_unknown_suite_is_refused():
    with pytest.raises(ValueError, match="static"):
        pulse_free_scene(1, "sleeping")


def test_training_sees_every_kind_with_and_without_rhythms():
    scenes = [training_scene(TRAINING_SEED0 + i) for i in range(300)]
    assert {s.kind for s in scenes} == set(TRAINING_MIX)
    assert 0.2 < np.mean([not s.has_pulse for s in scenes]) < 0.7
    assert any(s.has_pulse and not s.has_breathing for s in scenes) and any(s.has_breathing and not s.has_pulse for s in scenes)
    assert training_scene(5) == training_scene(5)


# --- as a file


def test_a_recorded_clip_loses_nothing_and_carries_its_truth(tmp_path):
    made = scene("newborn", seconds=0.5)
    record(Phantom(made), tmp_path / "clip.avi", "test")
    video = cv2.VideoCapture(str(tmp_path / "clip.avi"), cv2.CAP_FFMPEG)
    for expected in pixels(made):
        ok, picture = video.read()
        assert ok
        np.testing.assert_array_equal(picture, expected)
    truth = json.loads((tmp_path / "clip.json").read_text())
    assert truth["scene"]["seed"] == 3 and len(truth["hr_per_min"]) == len(truth["rr_wave"]) == 15
    assert np.mean(truth["hr_per_min"]) == pytest.approx(150, rel=0.1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.avi", "clip.json"]


@pytest.mark.parametrize(("name", "changed", "message"), [
    ("clip.mp4", {}, "avi or .mkv"), ("none/clip.avi", {}, "folder"), ("clip.avi", {"jitter_ms": 2.0}, "jitter_ms"),
    ("clip.avi", {"drop_fraction": 0.1}, "drop_fraction")])
def test_what_cannot_be_recorded_is_refused(tmp_path, name, changed, message):
    with pytest.raises(RecordingError, match=message):
        record(Phantom(scene("black", **changed)), tmp_path / name, "test")
    assert list(tmp_path.iterdir()) == []
