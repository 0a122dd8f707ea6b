"""Every rate that a profile may show, one after the other: where a reader folds to a sub-multiple, it shows here."""

from __future__ import annotations

from dataclasses import replace

from calibration.phantom import Scene
from calibration.scenes import newborn_scene

SWEEP_HR_PER_MIN = tuple(range(60, 250, 10))
SWEEP_RR_PER_MIN = tuple(range(20, 110, 10))

SWEEP_SEED0 = 8_000_000

RR_STRIDE = 4
"""Neighbouring heart rates meet breathing rates far apart; with 9 of these, every pair comes up in turn."""


def sweep_scene(index: int, *, duration_s: float = 30.0) -> Scene:
    """A plain newborn whose rates are the index's place in the sweep: 19 clips see every heart rate, 171 every pair."""
    return replace(newborn_scene(SWEEP_SEED0 + index, width=256, height=192, duration_s=duration_s),
                   hr_per_min=float(SWEEP_HR_PER_MIN[index % len(SWEEP_HR_PER_MIN)]),
                   rr_per_min=float(SWEEP_RR_PER_MIN[RR_STRIDE * index % len(SWEEP_RR_PER_MIN)]))
