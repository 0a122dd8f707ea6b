"""The shipped weights through the whole chain: a few rendered clips, and real ones where they are at hand.

The full suites with their limits are `physvlm-lab evaluate`; these are the smallest that would show a broken release.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calibration.evaluate import score_scene
from calibration.phantom import Scene
from calibration.scenes import NEWBORN_SEED0, PULSE_FREE_SEED0, newborn_scene, pulse_free_scene
from edge.__main__ import main

WIDTH, HEIGHT = 192, 144
"""The size of the clips that it was taught on; larger ones read alike and take twice as long to render."""


@pytest.mark.parametrize("index", [1, 5])
def test_a_newborn_never_trained_on_is_read(index: int) -> None:
    scene = newborn_scene(NEWBORN_SEED0 + index, width=WIDTH, height=HEIGHT, duration_s=20.0)
    shown = score_scene("newborn", scene, "full")
    assert len(shown.hr_errors) >= 10 and len(shown.rr_errors) >= 5
    assert max(shown.hr_errors) <= 5 and max(shown.rr_errors) <= 5
    assert shown.hr_first_s is not None and shown.hr_first_s <= 10
    assert shown.rr_first_s is not None and shown.rr_first_s <= 20


@pytest.mark.parametrize("what", ["static", "amplitude_0", "lamp", "noise", "vibration", "drift"])
def test_a_picture_without_a_pulse_shows_no_number(what: str) -> None:
    scene = pulse_free_scene(PULSE_FREE_SEED0 + 77, what, width=WIDTH, height=HEIGHT, duration_s=22.0)
    shown = score_scene(what, scene, "full")
    assert shown.readings >= 20
    assert shown.hr_false == 0
    # what sways at a breath's rate and size is what no camera can tell from breathing: docs/student.md
    assert shown.rr_false == 0 or what == "amplitude_0"


@pytest.mark.parametrize("hr", [190.0, 200.0, 205.0, 230.0])
def test_fast_newborn_hearts_are_not_folded(hr: float) -> None:
    scene = Scene(kind="newborn", seed=9, width=WIDTH, height=HEIGHT, duration_s=16.0, hr_per_min=hr, rr_per_min=60.0,
                  pulse_amplitude=0.015, subject_frac=0.8, motion_frac=0.0005)
    shown = score_scene("fast", scene, "full")
    assert len(shown.hr_errors) >= 4 and max(shown.hr_errors) <= 5


def replayed(video: Path, tmp_path: Path, *flags: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    assert main(["replay", str(video), "--json", str(out), *flags]) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_a_real_chest_shows_its_breathing_and_no_pulse(clips: Path, tmp_path: Path) -> None:
    result = replayed(clips / "resp_shawn_test3" / "shawn_test3.mp4", tmp_path)
    shown = [r["rr"] for r in result["readings"] if r["rr"] is not None]
    assert len(shown) > len(result["readings"]) / 2 and all(abs(rr - 15.1) <= 1.5 for rr in shown)
    assert result["summary"]["hr_shown_fraction"] == 0


def test_real_skin_whose_pulse_was_compressed_away_shows_no_heart_rate(clips: Path, tmp_path: Path) -> None:
    readings = shown = 0
    for video in sorted((clips / "no_pulse").glob("*/*.avi")):
        result = replayed(video, tmp_path)
        readings += len(result["readings"])
        shown += sum(r["hr"] is not None for r in result["readings"])
    assert readings > 300 and shown <= 0.01 * readings
