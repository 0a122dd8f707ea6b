"""Suites of scenes, each a pure function of a seed: what the student is trained on and what it is judged on.

A suite's seeds start at its own offset, so no judged clip was ever trained on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from calibration.scene import Scene

TRAINING_SEED0 = 1_000_000
VALIDATION_SEED0 = 2_000_000
RESTRAINT_SEED0 = 1_500_000
NEWBORN_SEED0 = 3_000_000
PULSE_FREE_SEED0 = 4_000_000

TRAINING_MIX = {"newborn": 0.30, "face": 0.20, "patch": 0.09, "chest": 0.14, "doll": 0.10, "empty_cot": 0.05,
                "object": 0.07, "noise": 0.03, "black": 0.02}


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Even over the logarithm: as many draws between 1 and 2 as between 2 and 4."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _rates(rng: np.random.Generator) -> tuple[float, float]:
    """HR and RR per minute: mostly newborn, the rest anything that a body of any age may have."""
    hr = rng.uniform(90, 225) if rng.random() < 0.6 else rng.uniform(45, 245)
    rr = rng.uniform(25, 90) if rng.random() < 0.5 else log_uniform(rng, 7, 110)
    return float(hr), float(rr)


def _codec(rng: np.random.Generator, h264: bool) -> str:
    draw = rng.random()
    if h264 and draw < 0.2:
        return f"h264:{int(rng.integers(6, 21))}"
    return f"mjpeg:{int(rng.integers(70, 99))}" if draw < 0.45 else "raw"


def training_scene(seed: int, *, width: int = 192, height: int = 144, duration_s: float = 19.5,
                   h264: bool = True) -> Scene:
    """Anything: broad in body, light, camera, motion and codec; a third of it without pulse, breathing or both."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(list(TRAINING_MIX), p=list(TRAINING_MIX.values())))
    hr, rr = _rates(rng)
    pulse = kind in ("newborn", "face", "patch") and rng.random() > 0.08
    breath = kind in ("newborn", "chest") and rng.random() > 0.1 or kind == "face" and rng.random() < 0.6
    scene = {
        "kind": kind, "seed": seed, "width": width, "height": height, "duration_s": duration_s,
        "hr_per_min": hr if pulse else None, "rr_per_min": rr if breath else None,
        "pulse_amplitude": log_uniform(rng, 0.0012, 0.025), "breath_frac": log_uniform(rng, 0.0012, 0.02),
        "skin_tone": float(rng.random()), "brightness": float(rng.uniform(0.35, 1.15)),
        "infrared": bool(rng.random() < 0.08), "bare_chest": bool(rng.random() < 0.5),
        "subject_frac": log_uniform(rng, 0.3, 1.4), "motion_frac": log_uniform(rng, 0.0002, 0.012),
        "burst_per_min": float(rng.uniform(1, 6)) if rng.random() < 0.25 else 0.0,
        "drift_amplitude": log_uniform(rng, 0.002, 0.06),
        "flicker_amplitude": log_uniform(rng, 0.0005, 0.01) if rng.random() < 0.3 else 0.0,
        "exposure_step": float(rng.uniform(0.01, 0.05)) if rng.random() < 0.06 else 0.0,
        "noise_counts": log_uniform(rng, 0.3, 3.5), "denoise": float(rng.uniform(0.1, 0.6)) * (rng.random() < 0.12),
        "jitter_ms": float(rng.uniform(0, 6)) * (rng.random() < 0.5),
        "drop_fraction": float(rng.uniform(0, 0.06)) * (rng.random() < 0.3),
        "fps": float(rng.choice([30.0, 30.0, 30.0, 29.97, 25.0, 24.0, 20.0, 15.0, 60.0])), "codec": _codec(rng, h264),
    }
    return Scene(**(scene | _disturbance(rng, body=pulse or breath)))


def _disturbance(rng: np.random.Generator, *, body: bool) -> dict[str, float]:
    """Periodic trouble that imitates a rhythm: a rocking body, a vibrating camera, a swelling lamp."""
    draw = rng.random()
    share = 0.12 if body else 0.27
    rate_hz = log_uniform(rng, 0.1, 6.0)
    if draw < share:
        return {"sway_hz": rate_hz, "sway_frac": log_uniform(rng, 0.001, 0.03 if not body else 0.006)}
    if draw < 2 * share:
        return {"shake_hz": rate_hz, "shake_frac": log_uniform(rng, 0.0004, 0.006)}
    if draw < 3 * share:
        return {"lamp_hz": rate_hz, "lamp_amplitude": log_uniform(rng, 0.001, 0.08 if not body else 0.01)}
    return {"shake_frac": log_uniform(rng, 0.0002, 0.002)} if rng.random() < 0.3 else {}


def restraint_scene(seed: int, *, width: int = 192, height: int = 144, duration_s: float = 19.5) -> Scene:
    """Training clips for restraint: something always swells, rocks or shakes at a rhythm that is no body's.

    Two in three hold no pulse and no breath; the rest keep theirs beside the disturbance, so that trouble alone is no
    reason to refuse.
    """
    scene = training_scene(seed, width=width, height=height, duration_s=duration_s, h264=False)
    rng = np.random.default_rng((seed, 1))
    body = rng.random() < 0.33
    if not body:
        scene = replace(scene, kind=str(rng.choice(["doll", "object", "empty_cot", "chest", "newborn", "patch"])),
                        hr_per_min=None, rr_per_min=None)
    if rng.random() < 0.35:
        return replace(scene, **_other_trouble(rng, scene, body))
    what, rate_hz = rng.random(), log_uniform(rng, 0.15, 4.5)
    quiet = {"sway_hz": 0.0, "sway_frac": 0.0, "shake_hz": 0.0, "shake_frac": 0.0, "lamp_hz": 0.0, "lamp_amplitude": 0.0,
             "motion_frac": log_uniform(rng, 0.0001, 0.003)}
    if what < 0.45:
        return replace(scene, **quiet | {"lamp_hz": rate_hz, "lamp_amplitude": log_uniform(rng, 0.002, 0.1)})
    if what < 0.8:
        return replace(scene, **quiet | {"sway_hz": rate_hz, "sway_frac": log_uniform(rng, 0.001, 0.04)})
    return replace(scene, **quiet | {"shake_hz": rate_hz, "shake_frac": log_uniform(rng, 0.0005, 0.006)})


def _other_trouble(rng: np.random.Generator, scene: Scene, body: bool) -> dict[str, object]:
    """A face that talks and turns, a passing arm, moving glare, a blue lamp, a rocked blanket; a doll's unless `body`."""
    rate_hz, what = log_uniform(rng, 0.15, 4.5), int(rng.integers(5))
    kind = scene.kind if body else str(rng.choice(["doll", "doll", "newborn", "face"]))
    length = float(rng.uniform(3, 9))
    hand = {"hand_s": length, "hand_at_s": float(rng.uniform(0, max(scene.duration_s - length, 0.1)))}
    glare = {"glare": float(rng.uniform(0.2, 0.8)), "lamp_hz": rate_hz, "lamp_amplitude": log_uniform(rng, 0.002, 0.05)}
    return ({"kind": kind, "talk": float(rng.uniform(0.4, 1.0)), "turn_deg": float(rng.uniform(0, 45)),
             "turn_hz": log_uniform(rng, 0.08, 0.6), "upright": True, "hair": bool(rng.random() < 0.7)},
            hand | {"kind": kind if body or rng.random() < 0.5 else "empty_cot"},
            glare | {"kind": kind if body or rng.random() < 0.5 else "empty_cot"},
            {"kind": kind, "phototherapy": float(rng.uniform(0.6, 1.0)), "eye_mask": True, "lamp_hz": rate_hz,
             "lamp_amplitude": log_uniform(rng, 0.002, 0.05)},
            {"kind": kind, "blanket": True, "sway_hz": rate_hz, "sway_frac": log_uniform(rng, 0.001, 0.02)})[what]


def newborn_scene(seed: int, *, width: int = 320, height: int = 240, duration_s: float = 40.0) -> Scene:
    """A newborn as the incubator's camera sees it: HR 100-220, RR 25-90, moderate motion. The headline suite."""
    rng = np.random.default_rng(seed)
    return Scene(
        kind="newborn", seed=seed, width=width, height=height, duration_s=duration_s,
        hr_per_min=float(rng.uniform(100, 220)), rr_per_min=float(rng.uniform(25, 90)),
        pulse_amplitude=log_uniform(rng, 0.005, 0.02), breath_frac=log_uniform(rng, 0.003, 0.012),
        skin_tone=float(rng.uniform(0, 0.9)), brightness=float(rng.uniform(0.55, 1.05)),
        bare_chest=bool(rng.random() < 0.5), subject_frac=float(rng.uniform(0.45, 0.9)),
        motion_frac=log_uniform(rng, 0.0005, 0.003), burst_per_min=0.7, drift_amplitude=float(rng.uniform(0.0, 0.03)),
        noise_counts=float(rng.uniform(0.8, 2.5)), jitter_ms=float(rng.uniform(0, 4)),
        drop_fraction=float(rng.uniform(0, 0.02)), codec="mjpeg:92" if rng.random() < 0.3 else "raw")


def demo_scene() -> Scene:
    """The newborn of `make run`: a plain case, with some motion."""
    return Scene(kind="newborn", seed=20, duration_s=45.0, hr_per_min=148.0, rr_per_min=47.0, pulse_amplitude=0.01,
                 breath_frac=0.006, skin_tone=0.25, subject_frac=0.6, motion_frac=0.001, width=320, height=240)


PULSE_FREE = ("black", "noise", "static", "moving_object", "empty_cot", "amplitude_0", "lamp", "drift", "vibration",
              "hand", "glare", "talking_doll", "phototherapy_doll")


def pulse_free_scene(seed: int, what: str, *, width: int = 320, height: int = 240, duration_s: float = 60.0) -> Scene:
    """A scene on which no heart rate may be shown; `what` is one of PULSE_FREE."""
    rng = np.random.default_rng(seed)
    common = {"seed": seed, "width": width, "height": height, "duration_s": duration_s, "pulse_amplitude": 0.0,
              "breath_frac": 0.0, "hr_per_min": None, "rr_per_min": None, "noise_counts": float(rng.uniform(0.5, 2.5)),
              "skin_tone": float(rng.random()), "brightness": float(rng.uniform(0.4, 1.1)),
              "subject_frac": float(rng.uniform(0.4, 1.0)), "motion_frac": 0.0, "drift_amplitude": 0.0,
              "codec": "mjpeg:90" if rng.random() < 0.3 else "raw"}
    moving = {"motion_frac": log_uniform(rng, 0.0005, 0.01), "drift_amplitude": float(rng.uniform(0, 0.03))}
    rate = {"static": {"kind": "doll"}, "black": {"kind": "black"}, "noise": {"kind": "noise"},
            "moving_object": {"kind": "object", "sway_hz": float(rng.uniform(0.2, 4.0)), **moving,
                              "sway_frac": log_uniform(rng, 0.002, 0.05)},
            "empty_cot": {"kind": "empty_cot", **moving}, "amplitude_0": {"kind": "doll", "burst_per_min": 2.0, **moving},
            "lamp": {"kind": "doll", "lamp_hz": 0.5 if rng.random() < 0.5 else float(rng.uniform(0.2, 4.0)),
                     "lamp_amplitude": log_uniform(rng, 0.003, 0.1)},
            "drift": {"kind": "doll", "lamp_hz": 0.04, "lamp_amplitude": float(rng.uniform(0.02, 0.2))},
            "vibration": {"kind": "doll", "shake_hz": 5.0, "shake_frac": log_uniform(rng, 0.0005, 0.005)}}
    length = min(float(rng.uniform(4, 10)), 0.6 * duration_s)
    rate |= {"hand": {"kind": "empty_cot" if rng.random() < 0.5 else "doll", **moving, "hand_s": length,
                      "hand_at_s": float(rng.uniform(0, duration_s - length))},
             "glare": {"kind": "empty_cot" if rng.random() < 0.3 else "doll", "glare": float(rng.uniform(0.3, 0.8)), **moving,
                       "lamp_hz": float(rng.uniform(0.2, 4.0)), "lamp_amplitude": log_uniform(rng, 0.003, 0.03)},
             "talking_doll": {"kind": "doll", "talk": float(rng.uniform(0.5, 1.0)), "turn_deg": float(rng.uniform(5, 40)),
                              "turn_hz": log_uniform(rng, 0.1, 0.5), "upright": True, "hair": True, **moving},
             "phototherapy_doll": {"kind": "doll", "phototherapy": float(rng.uniform(0.7, 1.0)), "eye_mask": True, **moving,
                                   "flicker_amplitude": log_uniform(rng, 0.001, 0.01)}}
    if what not in rate:
        raise ValueError(f"pulse-free scene {what!r} unknown; choose from {', '.join(PULSE_FREE)}")
    return Scene(**(common | rate[what]))
