"""Jumps of the whole picture's light, told from bodies, hands, lamps and noise."""

from __future__ import annotations

import numpy as np
import pytest

from edge.light_steps import LightSteps

CELLS = np.random.default_rng(3).uniform(60, 180, (16, 16, 3))


def steps(light, cells=CELLS, fps=30.0, seconds=8.0, change=None, times_s=None, noise=0.15):
    """Times (s) of the frames at which a step was told. light: factor by time, of one or three channels."""
    watch, rng, told = LightSteps(), np.random.default_rng(5), []
    for t in np.arange(round(seconds * fps)) / fps if times_s is None else times_s:
        means = cells * light(t) if change is None else change(t, cells * light(t))
        means = np.clip(means + rng.normal(0, noise, cells.shape), 0, 255).astype(np.float32)
        if watch.push(round(t * 1e9), means):
            told.append(float(t))
    return told


def even(t):
    return 1.0


def at_four_seconds(factor):
    return lambda t: np.where(t < 4.0 - 1e-9, 1.0, factor)


@pytest.mark.parametrize("factor", [1.016, 0.984, 1.05, 0.8])
def test_an_exposure_step_is_told_once_two_frames_late(factor):
    assert steps(at_four_seconds(factor)) == pytest.approx([4.0 + 2 / 30])


def test_a_white_balance_step_changes_one_channel_and_is_told():
    assert len(steps(lambda t: np.array([1.0, 1.0, 1.03 if t >= 4 else 1.0]))) == 1


def test_a_steps_size_is_the_change_of_the_level():
    watch = LightSteps()
    told = [watch.push(i * 33_000_000, (CELLS * (1.05 if i > 20 else 1.0)).astype(np.float32)) for i in range(40)]
    assert [i for i, size in enumerate(told) if size] == [23]
    assert max(told) == pytest.approx(np.log(1.05), rel=0.1)


@pytest.mark.parametrize("hr", [60, 120, 170, 220])
@pytest.mark.parametrize("fps", [30.0, 25.0, 20.0, 15.0])
def test_the_strongest_pulse_over_the_whole_picture_is_none(hr, fps):
    # 2.5 % in green, rising within 0.12 s
    def light(t):
        phase, top = t * hr / 60 % 1, 0.12 * hr / 60
        rise = phase / top if phase < top else (1 - phase) / (1 - top)
        return 1 - 0.025 * np.array([0.62, 1.0, 0.38]) * rise
    assert steps(light, fps=fps) == []


@pytest.mark.parametrize("hz", [0.3, 1.3, 4.0, 9.7, 14.3])
def test_a_lamp_that_swells_or_flickers_is_none(hz):
    assert steps(lambda t: 1 + 0.01 * np.sin(2 * np.pi * hz * t)) == []


def test_a_flash_that_goes_again_is_none():
    assert steps(lambda t: 1.1 if 4.0 <= t < 4.05 else 1.0) == []


def test_a_lost_frame_makes_no_step_of_a_slope():
    times = np.delete(np.arange(240) / 60, [60, 90, 91, 150])  # 33 ms between two frames of 60 a second
    assert steps(lambda t: np.exp(0.0055 * (abs(t % 2 - 1)) * 60), times_s=times) == []


def test_what_covers_or_crosses_the_picture_is_none():
    def hand(t, now):
        edge = int(np.clip((t - 3) * 40, 0, 16))
        now[:, :edge] = 150
        return now

    def jerk(t, now):
        return np.roll(now, int(t * 3), axis=0)

    assert steps(even, change=hand) == [] and steps(even, change=jerk) == []


def test_noise_and_darkness_are_none():
    assert steps(even, noise=20.0) == []
    assert steps(at_four_seconds(2.0), cells=CELLS * 0.02) == []
    assert steps(even, cells=CELLS + 200) == []
    few = CELLS * 0.02
    few[3, :10] = 120  # a lamp on a black wall is not the whole picture
    assert steps(lambda t: np.where(t < 4, 1.0, 1.3), cells=few) == []


def test_frames_far_apart_are_not_compared():
    assert steps(at_four_seconds(1.1), fps=15.0) == []


def test_after_forget_another_region_is_no_step():
    watch, rng = LightSteps(), np.random.default_rng(1)
    for i in range(60):
        if i == 30:
            watch.forget()
        means = (CELLS * (1.0 if i < 30 else 1.3) + rng.normal(0, 0.15, CELLS.shape)).astype(np.float32)
        assert not watch.push(i * 33_000_000, means)
