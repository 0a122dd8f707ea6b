"""POS and CHROM as opponents: they read a pulse that is there, and light that changes is none to them."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.baselines import METHODS, ORACLES, Baseline, SkinColour, chrom, followed_skin, in_band, pos, skin_mask
from calibration.metrics import rate_by_fft
from calibration.phantom import Phantom
from calibration.scene import Scene
from edge.records import Frame, Reason
from edge.vitals import PROFILES
from tests.fake_engine import at_fps, frames

signal = pytest.importorskip("scipy.signal")

FS_HZ = 30.0
NEONATE = PROFILES["neonate"]
SKIN_BGR = np.array([95.0, 120.0, 180.0])
PULSE_BGR = np.array([0.5, 1.0, 0.3])


def colours(rate_per_min: float | None, light: np.ndarray | None = None) -> np.ndarray:
    """17 s of mean skin colour with a pulse of 1 %."""
    t = np.arange(510) / FS_HZ
    pulse = np.zeros(t.size) if rate_per_min is None else 0.01 * np.sin(2 * np.pi * rate_per_min / 60 * t)
    return SKIN_BGR * (1 - PULSE_BGR * pulse[:, None]) * (np.ones(t.size) if light is None else light)[:, None]


def read_rate(method, of: np.ndarray) -> float | None:
    wave = in_band(method(of, np.ones(len(of), bool), FS_HZ), np.ones(len(of), bool), FS_HZ, (1.0, 250 / 60))
    return rate_by_fft(wave, FS_HZ, (1.0, 250 / 60), 8192)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("hr", [118.0, 205.0])
def test_a_clean_rendered_pulse_is_shown_within_2_per_min(name, hr):
    phantom = Phantom(Scene("newborn", 3, 96, 72, duration_s=11.0, hr_per_min=hr, rr_per_min=44.0, pulse_amplitude=0.02,
                            subject_frac=0.8, motion_frac=0.0002, noise_counts=1.0))
    skin = SkinColour(followed_skin(phantom) if name in ORACLES else phantom.pulse_map(), FS_HZ)
    baseline, shown = Baseline(name, NEONATE, FS_HZ), []
    for frame in phantom:
        skin.push(frame)
        if frame.seq % 30 == 29:
            seen, valid = skin.window(frame.t_ns, 512)
            value = baseline.read(seen, valid, frame.t_ns, frame.t_ns, ()).reading.hr.value_per_min
            if value is not None:
                averaged = np.linspace(max(0, frame.t_ns / 1e9 - 8), frame.t_ns / 1e9, 50)
                shown.append(value - phantom.pulse.rate_at(averaged).mean())
    assert len(shown) >= 5 and np.abs(shown).max() <= 2.0


@pytest.mark.parametrize("method", [pos, chrom])
def test_a_change_of_light_alone_is_projected_away(method):
    t = np.arange(510) / FS_HZ
    light = 1 + 0.2 * np.sin(2 * np.pi * 2.4 * t) + 0.1 * np.sin(2 * np.pi * 0.7 * t)
    valid = np.ones(t.size, bool)
    of_pulse, of_light = method(colours(150.0), valid, FS_HZ), method(colours(None, light=light), valid, FS_HZ)
    assert of_light.std() < 1e-3 * of_pulse.std()
    assert of_pulse.std() > 1e-3


@pytest.mark.parametrize("method", [pos, chrom])
def test_a_pulse_is_read_beside_light_five_times_its_size(method):
    t = np.arange(510) / FS_HZ
    both = colours(186.0, light=1 + 0.05 * np.sin(2 * np.pi * 1.6 * t))
    assert rate_by_fft(both[:, 1] - both[:, 1].mean(), FS_HZ, (1.0, 250 / 60), 8192) == pytest.approx(96, abs=1)
    assert read_rate(method, both) == pytest.approx(186, abs=1.5)


def by_the_paper(of: np.ndarray, method: str) -> np.ndarray:
    """POS or CHROM window by window, in the papers' own symbols; each sample over the weights that it was given."""
    n, length = len(of), 48
    step, shape = (1, np.ones(length)) if method == "pos" else (24, np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2)
    wave, given = np.zeros(n), np.zeros(n)
    b, a = signal.butter(2, [40 / 60 / 15, 240 / 60 / 15], "bandpass")
    for start in range((n - length) % step, n - length + 1, step):
        blue, green, red = (of[start:start + length] / of[start:start + length].mean(axis=0)).T
        if method == "pos":
            s1, s2 = np.array([[0, 1, -1], [-2, 1, 1]]) @ np.array([red, green, blue])
            h = s1 + s1.std() / s2.std() * s2
        else:
            x, y = (signal.filtfilt(b, a, each) for each in (3 * red - 2 * green, 1.5 * red + green - 1.5 * blue))
            h = x - x.std() / y.std() * y
        wave[start:start + length] += shape * (h - h.mean())
        given[start:start + length] += shape
    return wave / np.where(given > 0, given, 1.0)


@pytest.mark.parametrize(("method", "name"), [(pos, "pos"), (chrom, "chrom")])
def test_the_wave_is_the_papers(method, name):
    rng = np.random.default_rng(2)
    of = colours(140.0, 1 + 0.05 * np.cumsum(rng.normal(0, 0.1, 510))) * (1 + 0.003 * rng.standard_normal((510, 3)))
    np.testing.assert_allclose(method(of, np.ones(510, bool), FS_HZ), by_the_paper(of, name), atol=1e-12)


@pytest.mark.parametrize("method", [pos, chrom])
def test_the_ends_of_a_wave_do_not_fade(method):
    wave = method(colours(150.0), np.ones(510, bool), FS_HZ)
    assert wave[-48:].std() > 0.6 * wave[200:300].std()


@pytest.mark.parametrize("method", [pos, chrom])
def test_a_hole_is_left_out_and_the_rest_still_read(method):
    valid = np.ones(510, bool)
    valid[:90] = valid[250:310] = False
    of = np.where(valid[:, None], colours(150.0), 0.0)
    wave = method(of, valid, FS_HZ)
    assert np.isfinite(wave).all() and not wave[:90].any() and not wave[252:308].any()
    ready = in_band(wave, valid, FS_HZ, (1.0, 250 / 60))
    assert rate_by_fft(ready[310:], FS_HZ, (1.0, 250 / 60), 8192) == pytest.approx(150, abs=2)
    assert not method(of, np.zeros(510, bool), FS_HZ).any()
    assert not in_band(wave, np.arange(510) > 480, FS_HZ, (1.0, 250 / 60)).any()


def test_colour_without_a_pulse_shows_no_number():
    rng = np.random.default_rng(0)
    for name in METHODS:
        baseline = Baseline(name, NEONATE, FS_HZ)
        for second in range(1, 20):
            of = SKIN_BGR * (1 + 0.001 * rng.standard_normal((512, 3)))
            read = baseline.read(of, np.ones(512, bool), second * 10**9, second * 10**9, ())
            assert read.reading.hr.value_per_min is None, name
        flat = baseline.read(np.tile(SKIN_BGR, (512, 1)), np.ones(512, bool), 20 * 10**9, 20 * 10**9, ())
        assert flat.reading.hr.value_per_min is None and flat.estimate.hr_per_min is None and not flat.waveform.resp.any()


def test_the_gate_hears_of_the_picture_and_not_of_the_student():
    t = np.arange(512) / FS_HZ
    steady = SKIN_BGR * (1 - 0.01 * PULSE_BGR * np.sin(2 * np.pi * 2.5 * t)[:, None])
    shown_under = {Reason.MOTION: True, Reason.LIGHT_FLICKER: True, Reason.CAMERA_SHAKE: True, Reason.LOW_FPS: False,
                   Reason.TOO_DARK: False}
    for condition, shown in shown_under.items():
        baseline = Baseline("pos", NEONATE, FS_HZ)
        values = [baseline.read(steady, np.ones(512, bool), s * 10**9, s * 10**9, {condition}).reading.hr.value_per_min
                  for s in range(1, 8)]
        assert (values[-1] is not None) == shown, condition


# --- skin


def test_skin_colour_is_the_weighted_mean_on_the_grid():
    weights = np.zeros((6, 8), np.float32)
    weights[2, 3], weights[4, 5], weights[0, 0] = 3.0, 1.0, 0.01  # the last is under 5 % of the strongest: no skin
    skin = SkinColour(weights, FS_HZ)
    bgr = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    for i in range(40):
        skin.push(Frame(i, round(i * 1e9 / 30), bgr))
    seen, valid = skin.window(10**9, 512)
    assert valid.sum() == 31 and not valid[:-31].any()
    np.testing.assert_allclose(seen[-1], (3.0 * bgr[2, 3] + bgr[4, 5]) / 4, rtol=1e-5)
    assert skin.window(10**9, 512)[1].sum() == 31, "what is later is kept for the next window"


def test_a_gap_in_the_frames_is_not_bridged():
    skin = SkinColour(None, FS_HZ)
    for frame in frames([*at_fps(30, 1.0), *at_fps(30, 1.0, 2.0)]):
        skin.push(frame)
    _, valid = skin.window(3 * 10**9, 90)
    assert 25 <= (~valid).sum() <= 32


def test_the_oracle_follows_the_skin_and_the_still_mask_does_not():
    still = Scene("newborn", 5, 96, 72, duration_s=2.0, motion_frac=0.0, breath_frac=0.0, subject_frac=0.6)
    phantom = Phantom(still)
    first = next(iter(phantom))
    np.testing.assert_allclose(followed_skin(phantom)(first), phantom.pulse_map(), atol=0.02 * phantom.pulse_map().max())
    moving = Phantom(Scene("newborn", 5, 96, 72, duration_s=2.0, motion_frac=0.0, sway_hz=0.5, sway_frac=0.1, subject_frac=0.6))
    at, x = followed_skin(moving), np.arange(96)
    places = [float((at(frame).sum(0) * x).sum() / at(frame).sum()) for frame in moving if frame.seq % 10 == 0]
    assert np.ptp(places) > 3


def test_skin_is_found_by_its_colour_or_the_whole_picture_is_taken():
    picture = np.full((60, 80, 3), (120, 60, 40), np.uint8)
    picture[20:40, 30:50] = (120, 145, 200)
    mask = skin_mask(picture)
    assert mask[20:40, 30:50].all() and mask.sum() == 400
    assert skin_mask(np.full((60, 80, 3), (120, 60, 40), np.uint8)).all()
