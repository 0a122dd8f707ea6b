"""What beats by moving is no pulse; what breathes everywhere alike, or beats so and in every colour, is the lamp."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.phantom import Phantom, Scene
from edge.clip import CHANNELS, Region, normalise_clip
from edge.motion import camera_sways, lamp_beats, lamp_swells, rhythm_moves, sway_rate
from edge.pipeline import Stages, View
from edge.records import Estimate, Reason, Waveform
from tests.fake_engine import FakeEngine

OBJECT = Scene(kind="object", seed=5, width=160, height=120, duration_s=12.0, hr_per_min=None, rr_per_min=None,
               motion_frac=0.0005, drift_amplitude=0.0, noise_counts=1.0)
NEWBORN = Scene(kind="newborn", seed=3, width=160, height=120, duration_s=12.0, hr_per_min=150.0, rr_per_min=40.0,
                pulse_amplitude=0.015, motion_frac=0.0005, subject_frac=0.8, noise_counts=1.0)


def cells(scene: Scene, light=None):
    """light: factor of each colour by time."""
    frames = (frame if light is None else replace(frame, bgr=lit(frame, light)) for frame in Phantom(scene))
    clip = normalise_clip(frames, None, 30.0, 48)
    means = clip.frames.reshape(-1, CHANNELS, 6, 8, 6, 8).mean((3, 5)).reshape(-1, CHANNELS, 36).transpose(0, 2, 1)
    return means, clip.valid.astype("float32")


def lit(frame, light):
    dither = np.random.default_rng(frame.seq).uniform(0, 1, frame.bgr.shape)
    return np.floor(frame.bgr * np.asarray(light(frame.t_ns / 1e9)) + dither).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("sway_hz", [1.5, 2.5, 3.85])
@pytest.mark.parametrize("sway_frac", [0.005, 0.03])
def test_a_rocking_thing_moves(sway_hz: float, sway_frac: float) -> None:
    assert rhythm_moves(*cells(replace(OBJECT, sway_hz=sway_hz, sway_frac=sway_frac)), sway_hz, 30.0)


@pytest.mark.parametrize("seed", range(3, 9))
@pytest.mark.parametrize("hr", [110.0, 200.0])
def test_a_newborns_pulse_does_not(seed: int, hr: float) -> None:
    assert not rhythm_moves(*cells(replace(NEWBORN, seed=seed, hr_per_min=hr)), hr / 60, 30.0)


def test_nothing_at_all_does_not_move() -> None:
    means, valid = cells(OBJECT)
    assert not rhythm_moves(means * 0, valid, 2.0, 30.0) and not rhythm_moves(means, valid * 0, 2.0, 30.0)
    assert not rhythm_moves(means, valid, 2.0, 30.0)


@pytest.mark.parametrize("kind", ["doll", "empty_cot", "newborn"])
def test_a_lamp_that_swells_is_no_breath(kind: str) -> None:
    scene = replace(NEWBORN, kind=kind, rr_per_min=None, lamp_hz=0.5, lamp_amplitude=0.02)
    assert lamp_swells(*cells(scene), 0.5, 30.0)


@pytest.mark.parametrize("kind", ["doll", "empty_cot", "newborn"])
def test_a_white_balance_that_hunts_is_no_breath(kind: str) -> None:
    def light(t):
        swell = 0.03 * np.sin(2 * np.pi * 0.5 * t)
        return 1 + swell, 1, 1 - swell
    assert lamp_swells(*cells(replace(NEWBORN, kind=kind, rr_per_min=None), light), 0.5, 30.0)


@pytest.mark.parametrize("seed", range(3, 9))
def test_a_breath_is_not_the_lamp(seed: int) -> None:
    assert not lamp_swells(*cells(replace(NEWBORN, seed=seed)), 40 / 60, 30.0)


@pytest.mark.parametrize("shake_hz", [0.4, 0.8, 1.5])
@pytest.mark.parametrize(("seed", "shake_frac"), [(3, 0.005), (5, 0.002), (8, 0.005)])
def test_a_camera_that_sways_is_no_breath(seed: int, shake_frac: float, shake_hz: float) -> None:
    scene = replace(NEWBORN, seed=seed, subject_frac=0.6, shake_hz=shake_hz, shake_frac=shake_frac)
    seen = cells(scene)
    assert camera_sways(*seen, shake_hz, 30.0, sway_rate(*seen, 30.0))


@pytest.mark.parametrize("kind", ["doll", "empty_cot"])
def test_the_overtones_of_a_camera_that_sways_are_told(kind: str) -> None:
    seen = cells(replace(NEWBORN, kind=kind, hr_per_min=None, rr_per_min=None, shake_hz=0.8, shake_frac=0.005))
    sway_hz = sway_rate(*seen, 30.0)
    told = [rate for rate in range(60, 200, 6) if camera_sways(*seen, rate / 60, 30.0, sway_hz, times=range(2, 7))]
    assert told == [96, 144, 192]


@pytest.mark.parametrize(("kind", "seed"), [*(("newborn", seed) for seed in range(3, 9)), ("chest", 4), ("chest", 5)])
def test_a_breath_is_not_the_camera(kind: str, seed: int) -> None:
    seen = cells(replace(NEWBORN, kind=kind, seed=seed, breath_frac=0.01))
    sway_hz = sway_rate(*seen, 30.0)
    assert not any(camera_sways(*seen, 40 * times / 60, 30.0, sway_hz, times=range(1, 7)) for times in range(1, 5))


@pytest.mark.parametrize("lamp_hz", [1.2, 2.0, 3.6])
@pytest.mark.parametrize(("kind", "glare"), [("doll", 0.0), ("doll", 0.6), ("empty_cot", 0.6)])
def test_a_lamp_that_beats_is_no_pulse_through_glare_either(kind: str, glare: float, lamp_hz: float) -> None:
    scene = replace(NEWBORN, kind=kind, hr_per_min=None, rr_per_min=None, lamp_hz=lamp_hz, lamp_amplitude=0.01, glare=glare)
    assert lamp_beats(*cells(scene), lamp_hz, 30.0)


@pytest.mark.parametrize("kind", ["patch", "newborn", "face"])
@pytest.mark.parametrize(("seed", "infrared"), [(3, False), (4, False), (5, False), (4, True)])
def test_a_pulse_is_not_the_lamp_not_even_where_skin_fills_the_picture(kind: str, seed: int, infrared: bool) -> None:
    scene = replace(NEWBORN, kind=kind, seed=seed, infrared=infrared, rr_per_min=None, pulse_amplitude=0.02)
    assert not lamp_beats(*cells(scene), 150 / 60, 30.0)


def test_nothing_at_all_is_no_lamp() -> None:
    means, valid = cells(OBJECT)
    assert not lamp_beats(means * 0, valid, 2.0, 30.0) and not lamp_swells(means * 0, valid, 0.5, 30.0)
    for still in (means * 0, means):
        assert not camera_sways(still, valid, 0.5, 30.0, sway_rate(still, valid, 30.0))


@pytest.mark.parametrize(("changed", "belief", "why"), [
    ({"kind": "object", "sway_hz": 2.5, "sway_frac": 0.02, "hr_per_min": None}, 0.5, {Reason.MOTION}),
    ({"kind": "object", "sway_hz": 2.5, "sway_frac": 0.02, "hr_per_min": None}, 0.97, set()),
    ({"kind": "doll", "lamp_hz": 2.5, "lamp_amplitude": 0.01, "hr_per_min": None}, 0.9, {Reason.LIGHT_FLICKER}),
    ({"bcg_frac": 0.003}, 0.97, set())])
def test_what_moves_is_a_pulse_only_to_a_student_that_is_sure(changed: dict, belief: float, why: set[Reason]) -> None:
    """Each beat kicks a newborn's head a little; a lamp is never a pulse, whatever the student believes."""
    scene = replace(NEWBORN, rr_per_min=None, **changed)
    view = View(Region(0, 0, scene.width, scene.height), FakeEngine(), Stages())
    view._features, view._mask = cells(scene)
    n = view._mask.size
    wave = Waveform(np.zeros(n, np.float32), np.zeros(n, np.float32), np.ones(n, bool), belief, 0.0,
                    np.full((2, 6, 6), 1 / 36, np.float32), 30.0, 0)
    assert view.imitated(Estimate(150.0, 0.9, None, 0.0, 0), wave)[0] == why


@pytest.mark.parametrize(("changed", "pulse", "breath"), [
    ({"shake_hz": 40 / 60, "shake_frac": 0.005}, {Reason.MOTION}, {Reason.CAMERA_SHAKE}),
    ({"lamp_hz": 40 / 60, "lamp_amplitude": 0.02}, set(), {Reason.LIGHT_FLICKER}), ({"rr_per_min": 40.0}, set(), set())])
def test_what_imitates_a_breath_is_told_from_one(changed: dict, pulse: set[Reason], breath: set[Reason]) -> None:
    """At 120 /min there is an overtone of it, and no pulse."""
    scene = replace(NEWBORN, subject_frac=0.6, hr_per_min=None, **{"rr_per_min": None, **changed})
    view = View(Region(0, 0, scene.width, scene.height), FakeEngine(), Stages())
    view._features, view._mask = cells(scene)
    n = view._mask.size
    wave = Waveform(np.zeros(n, np.float32), np.zeros(n, np.float32), np.ones(n, bool), 0.97, 0.97,
                    np.full((2, 6, 6), 1 / 36, np.float32), 30.0, 0)
    assert view.imitated(Estimate(120.0, 0.9, 40.0, 0.9, 0), wave) == (pulse, breath)
