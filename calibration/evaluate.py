"""What is shown against what is true, over suites of scenes: the evidence behind the figures in the README.

Every clip goes through the runtime's own pipeline and gate, frame by frame, so what is scored is what a clinician would
have seen.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from calibration.phantom import Phantom, Scene
from calibration.scenes import NEWBORN_SEED0, PULSE_FREE, PULSE_FREE_SEED0, newborn_scene, pulse_free_scene
from edge.config import CameraConfig, Config, VitalsConfig, parse_roi
from edge.pipeline import Pipeline
from edge.runtime import make_engine
from edge.vitals import PROFILES
from engines.sidecar import DEFAULT_WEIGHTS, load

HR_NEAR_PER_MIN, RR_NEAR_PER_MIN = 5.0, 5.0
"""A shown number further than this from the truth over its own averaging time is wrong."""

SUITES = ("newborn", *PULSE_FREE)


@dataclass(frozen=True)
class Shown:
    """One clip's score. errors: |shown - true| per minute for every reading that showed a number and had a truth.

    false_*: numbers shown for a rhythm that is not in the clip. first_*_s: video time of the first number, or None.
    """

    suite: str
    seed: int
    readings: int
    hr_errors: tuple[float, ...]
    rr_errors: tuple[float, ...]
    hr_false: int
    rr_false: int
    hr_first_s: float | None
    rr_first_s: float | None
    hr_true: float | None
    rr_true: float | None


def scene_of(suite: str, index: int) -> Scene:
    if suite == "newborn":
        return newborn_scene(NEWBORN_SEED0 + index)
    return pulse_free_scene(PULSE_FREE_SEED0 + 1000 * PULSE_FREE.index(suite) + index, suite)


def score_scene(suite: str, scene: Scene, roi: str, profile: str = "neonate", weights: str = "") -> Shown:
    """Render one clip, run it through the pipeline and compare what was shown with the truth."""
    cv2.setNumThreads(1)
    phantom = Phantom(scene)
    config = Config(camera=CameraConfig(roi=parse_roi(roi)), vitals=VitalsConfig(profile=profile))
    config = replace(config, model=replace(config.model, weights=weights))
    engine, _ = make_engine(config)
    pipeline = Pipeline(engine, PROFILES[profile], scene.width, scene.height, None, roi == "auto")
    errors: dict[str, list[float]] = {"hr": [], "rr": []}
    false = {"hr": 0, "rr": 0}
    first: dict[str, float | None] = {"hr": None, "rr": None}
    rhythms = {"hr": phantom.pulse, "rr": phantom.breath}
    readings = 0
    for frame in phantom:
        for hop in pipeline.push(frame, frame.t_ns):
            readings += 1
            t_s = hop.reading.t_ns / 1e9
            for name, rhythm in rhythms.items():
                vital = getattr(hop.reading, name)
                if vital.value_per_min is None:
                    continue
                if first[name] is None:
                    first[name] = t_s
                if rhythm is None:
                    false[name] += 1
                    continue
                span = np.linspace(max(0.0, t_s - vital.averaging_s), t_s, 50)
                errors[name].append(float(abs(vital.value_per_min - rhythm.rate_at(span).mean())))
    return Shown(suite, scene.seed, readings, tuple(errors["hr"]), tuple(errors["rr"]), false["hr"], false["rr"],
                 first["hr"], first["rr"], scene.hr_per_min if scene.has_pulse else None,
                 scene.rr_per_min if scene.has_breathing else None)


def summarise(clips: list[Shown]) -> dict[str, float | int | None]:
    """One suite's figures. Fractions are of all readings; *_near is of the shown ones."""
    readings = sum(c.readings for c in clips)
    out: dict[str, float | int | None] = {"clips": len(clips), "readings": readings}
    for name, near in (("hr", HR_NEAR_PER_MIN), ("rr", RR_NEAR_PER_MIN)):
        errors = np.concatenate([np.array(getattr(c, f"{name}_errors")) for c in clips])
        false = sum(getattr(c, f"{name}_false") for c in clips)
        first = [getattr(c, f"{name}_first_s") for c in clips if getattr(c, f"{name}_first_s") is not None]
        out[f"{name}_shown"] = (errors.size + false) / max(readings, 1)
        out[f"{name}_false"] = false / max(readings, 1)
        out[f"{name}_near"] = float((errors <= near).mean()) if errors.size else None
        out[f"{name}_mae"] = float(errors.mean()) if errors.size else None
        out[f"{name}_first_median_s"] = float(np.median(first)) if first else None
        out[f"{name}_first_p90_s"] = float(np.quantile(first, 0.9)) if first else None
    return out


def _job(job: tuple[str, int, str, str]) -> Shown:
    suite, index, roi, weights = job
    return score_scene(suite, scene_of(suite, index), roi, weights=weights)


def evaluate(suites: list[str], n: int, roi: str, workers: int, out: Path | None, weights: str = "") -> int:
    """Score n clips of each suite, print a table, write JSON; 1 when a limit of LIMITS is broken.

    Raises SidecarError for weights that cannot be used, before anything is rendered.
    """
    _, sidecar = load(Path(weights) / DEFAULT_WEIGHTS.name if weights else DEFAULT_WEIGHTS)
    jobs = [(suite, i, roi, weights) for suite in suites for i in range(n)]
    start, clips = time.monotonic(), []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, clip in enumerate(pool.imap_unordered(_job, jobs), 1):
            clips.append(clip)
            print(f"\r{done}/{len(jobs)} clips, {(time.monotonic() - start) / done:.1f} s each", end="",
                  file=sys.stderr, flush=True)
    print(file=sys.stderr)
    table = {suite: summarise([c for c in clips if c.suite == suite]) for suite in suites}
    print(f"{'suite':<14} {'clips':>5} {'reads':>6} | {'HR shown':>8} {'<=5':>6} {'MAE':>6} {'first':>6} | "
          f"{'RR shown':>8} {'<=5':>6} {'MAE':>6} {'first':>6} | limits")
    broken = False
    for suite, row in table.items():
        faults = [text for text, holds in LIMITS.get(suite, PULSE_FREE_LIMITS) if not holds(row)]
        broken = broken or bool(faults)
        print(f"{suite:<14} {row['clips']:>5} {row['readings']:>6} | {_cells(row, 'hr')} | {_cells(row, 'rr')} | "
              f"{'; '.join(faults) or 'kept'}")
    if out is not None:
        rows = [asdict(c) for c in sorted(clips, key=lambda c: (c.suite, c.seed))]
        out.write_text(json.dumps({"weights": sidecar["files"], "roi": roi, "suites": table, "clips": rows}, indent=1))
    return 1 if broken else 0


def _cells(row: dict[str, float | int | None], name: str) -> str:
    def cell(key: str, scale: float, unit: str) -> str:
        value = row[f"{name}_{key}"]
        return "-" if value is None else f"{scale * value:.{1 if scale > 1 else 2}f}{unit}"

    return (f"{cell('shown', 100, '%'):>8} {cell('near', 100, '%'):>6} {cell('mae', 1, ''):>6} "
            f"{cell('first_median_s', 1, 's'):>6}")


LIMITS = {"newborn": (
    ("HR within 5 in < 95 % of shown", lambda r: (r["hr_near"] or 0) >= 0.95),
    ("HR shown < 70 %", lambda r: r["hr_shown"] >= 0.70),
    ("RR within 5 in < 90 % of shown", lambda r: (r["rr_near"] or 0) >= 0.90),
    ("RR shown < 60 %", lambda r: r["rr_shown"] >= 0.60),
    ("first HR after 10 s in more than half of the clips", lambda r: (r["hr_first_median_s"] or 99) <= 10),
    ("first RR after 20 s in more than half of the clips", lambda r: (r["rr_first_median_s"] or 99) <= 20),
)}
PULSE_FREE_LIMITS = (("HR shown > 1 %", lambda r: r["hr_shown"] <= 0.01),
                     ("RR shown > 1 %", lambda r: r["rr_shown"] <= 0.01))
"""What each suite must keep; moving_object may look like breathing and is held to the pulse alone."""
LIMITS["moving_object"] = PULSE_FREE_LIMITS[:1]
LIMITS["drift"] = LIMITS["vibration"] = (("HR shown", lambda r: r["hr_shown"] == 0), ("RR shown", lambda r: r["rr_shown"] == 0))
