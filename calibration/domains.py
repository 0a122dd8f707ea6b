"""Domains that differ as the public data sets do, and the neonatal ward's own difficulties: scenes from a seed.

DOMAINS are adults (and newborns in `ward`) seen by different cameras in different light; a third of every domain's rates
come from the whole newborn range, so that no domain tells the rate. NICU scenes are newborns, each with the one trouble
that names it. `mixed_scene` is the draw the student trains on, `domain_test_scene` the one it is judged on; their seeds
start at offsets of their own, and whole recordings belong to one of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from calibration.recordings import Recordings
from calibration.scene import Scene
from calibration.scenes import log_uniform, training_scene

MIXED_SEED0 = 5_000_000
MIXED_VALIDATION_SEED0 = 6_000_000
DOMAIN_TEST_SEED0 = 7_000_000
RECOMPRESSED_SEED0 = 5_500_000

HR_NEWBORN, RR_NEWBORN = (90.0, 245.0), (25.0, 110.0)
"""The whole newborn range, with room above: ward monitors alarm red at 230 beats, fast breathing reaches 100."""

HR_ADULT, RR_ADULT = (45.0, 180.0), (8.0, 35.0)
HR_WARD, RR_WARD = (90.0, 220.0), (25.0, 90.0)

Draw = np.random.Generator
Fields = dict[str, object]


def _rates(rng: Draw, hr: tuple[float, float], rr: tuple[float, float]) -> Fields:
    """Two in three from the domain's own range, one in three from the newborn's; a few at its upper end."""
    draw = rng.random()
    if draw > 0.92:
        hr, rr = (210.0, HR_NEWBORN[1]), (75.0, RR_NEWBORN[1])
    elif draw > 0.64:
        hr, rr = HR_NEWBORN, RR_NEWBORN
    return {"hr_per_min": float(rng.uniform(*hr)), "rr_per_min": log_uniform(rng, *rr)}


def _rhythm_habits(rng: Draw, newborn: bool) -> Fields:
    """Beats and breaths vary: adults' hearts by 1-7 %, newborns' by 0.3-3 %, breaths by 10-30 %."""
    return {"heart_variability": log_uniform(rng, 0.003, 0.03) if newborn else log_uniform(rng, 0.01, 0.07),
            "breath_variability": float(rng.uniform(0.1, 0.3)) if newborn else float(rng.uniform(0.05, 0.2)),
            "bcg_frac": log_uniform(rng, 0.0001, 0.0012) if rng.random() < 0.4 else 0.0}


def _camera_habits(rng: Draw) -> Fields:
    return {"warmth": float(rng.uniform(-0.15, 0.15)), "saturation": float(rng.uniform(0.7, 1.15)),
            "gamma": float(rng.uniform(1.8, 2.4)), "grain_px": float(rng.uniform(0.4, 0.9)) if rng.random() < 0.4 else 0.0,
            "gloss": float(rng.uniform(0.05, 0.3)) if rng.random() < 0.4 else 0.0}


def _adult(rng: Draw, seed: int, width: int, height: int, duration_s: float) -> Fields:
    """What adult domains share: an upright face, perhaps with shoulders, in fair light."""
    return {"kind": "face", "seed": seed, "width": width, "height": height, "duration_s": duration_s, "upright": True,
            "hair": bool(rng.random() < 0.85), "subject_frac": float(rng.uniform(0.35, 0.65)),
            "skin_tone": float(rng.uniform(0, 0.7)), "brightness": float(rng.uniform(0.7, 1.05)),
            "pulse_amplitude": log_uniform(rng, 0.004, 0.02), "breath_frac": log_uniform(rng, 0.002, 0.012),
            "motion_frac": log_uniform(rng, 0.0005, 0.003), "drift_amplitude": log_uniform(rng, 0.003, 0.02),
            "noise_counts": float(rng.uniform(0.6, 1.8)), "fps": 30.0,
            **_rates(rng, HR_ADULT, RR_ADULT), **_rhythm_habits(rng, False), **_camera_habits(rng)}


def _newborn(rng: Draw, seed: int, width: int, height: int, duration_s: float) -> Fields:
    """What newborn scenes share: lying any way, fair light, the ward's rates."""
    return {"kind": "newborn", "seed": seed, "width": width, "height": height, "duration_s": duration_s,
            "bare_chest": bool(rng.random() < 0.5), "subject_frac": float(rng.uniform(0.45, 0.95)),
            "skin_tone": float(rng.uniform(0, 0.85)), "brightness": float(rng.uniform(0.6, 1.05)),
            "pulse_amplitude": log_uniform(rng, 0.004, 0.02), "breath_frac": log_uniform(rng, 0.002, 0.012),
            "motion_frac": log_uniform(rng, 0.0004, 0.002), "burst_per_min": 0.7 if rng.random() < 0.5 else 0.0,
            "drift_amplitude": log_uniform(rng, 0.003, 0.02), "noise_counts": float(rng.uniform(0.8, 2.2)), "fps": 30.0,
            "jitter_ms": float(rng.uniform(0, 4)), "drop_fraction": float(rng.uniform(0, 0.02)),
            "codec": f"mjpeg:{int(rng.integers(85, 97))}" if rng.random() < 0.3 else "raw",
            **_rates(rng, HR_WARD, RR_WARD), **_rhythm_habits(rng, True), **_camera_habits(rng)}


def _studio(rng: Draw) -> Fields:
    """As PURE: near, steady, uncompressed."""
    return {"subject_frac": float(rng.uniform(0.45, 0.75)), "motion_frac": log_uniform(rng, 0.0002, 0.001),
            "noise_counts": float(rng.uniform(0.5, 1.2)), "pulse_amplitude": log_uniform(rng, 0.005, 0.02),
            "side_light": float(rng.uniform(0, 0.3))}


def _webcam(rng: Draw) -> Fields:
    """As UBFC-rPPG: raw, indoors, a subject who moves a little."""
    return {"fps": float(rng.choice([30.0, 28.67, 29.97])), "motion_frac": log_uniform(rng, 0.001, 0.004),
            "jitter_ms": float(rng.uniform(0, 4)), "flicker_amplitude": log_uniform(rng, 0.0003, 0.003),
            "noise_counts": float(rng.uniform(1.0, 2.2)), "warmth": float(rng.uniform(-0.05, 0.25))}


def _compressed(rng: Draw) -> Fields:
    """As COHFACE: 20 frames a second, strong codec, daylight from the side."""
    codec = f"h264:{int(rng.integers(18, 27))}" if rng.random() < 0.6 else f"mjpeg:{int(rng.integers(50, 71))}"
    return {"fps": 20.0, "codec": codec, "side_light": float(rng.uniform(0.2, 1.2)), "warmth": float(rng.uniform(-0.2, 0.1)),
            "pulse_amplitude": log_uniform(rng, 0.006, 0.025), "subject_frac": float(rng.uniform(0.4, 0.7))}


def _phone(rng: Draw) -> Fields:
    """As MMPD: light to dark skin, LED, bulb or daylight, still, talking, turning or walking, with a phone's codec."""
    walking, talking, turning = np.eye(3)[rng.integers(3)] * (rng.random() < 0.7)
    return {"skin_tone": float(rng.uniform(0.1, 1.0)), "brightness": float(rng.uniform(0.4, 1.1)),
            "warmth": float(rng.choice([-0.2, 0.0, 0.3]) + rng.uniform(-0.05, 0.05)), "denoise": float(rng.uniform(0, 0.3)),
            "codec": f"mjpeg:{int(rng.integers(75, 95))}", "noise_counts": float(rng.uniform(0.8, 2.2)),
            "motion_frac": log_uniform(rng, 0.001, 0.004), "talk": float(0.8 * talking),
            "turn_deg": float(turning * rng.uniform(10, 40)), "turn_hz": float(rng.uniform(0.1, 0.4)),
            "sway_hz": float(walking * rng.uniform(1.4, 2.2)), "sway_frac": float(walking) * log_uniform(rng, 0.001, 0.006),
            "shake_frac": float(walking) * log_uniform(rng, 0.0005, 0.003), "subject_frac": float(rng.uniform(0.4, 0.7))}


def _lux(rng: Draw) -> Fields:
    """As BUAA-MIHR: 1 to 100 lux; the camera's gain makes up for part of it and brings noise, relative to root of light."""
    lux = log_uniform(rng, 1.0, 100.0)
    return {"brightness": float(0.28 + 0.35 * np.log10(lux)), "noise_counts": 0.7, "shot_counts": float(6.5 * lux**-0.35),
            "grain_px": float(rng.uniform(0, 0.8)), "denoise": float(rng.uniform(0, 0.3)),
            "skin_tone": float(rng.uniform(0, 0.5)), "pulse_amplitude": log_uniform(rng, 0.006, 0.02),
            "motion_frac": log_uniform(rng, 0.0003, 0.0015), "subject_frac": float(rng.uniform(0.45, 0.75))}


def _distance(rng: Draw) -> Fields:
    """As VIPL-HR: a small subject, several cameras, some of them near infrared."""
    near_infrared = bool(rng.random() < 0.25)
    return {"subject_frac": float(rng.uniform(0.16, 0.34)), "fps": 30.0 if near_infrared else float(rng.choice([25.0, 30.0])),
            "infrared": near_infrared, "pulse_amplitude": log_uniform(rng, 0.007, 0.025),
            "noise_counts": float(rng.uniform(0.6, 1.6)), "jitter_ms": float(rng.uniform(0, 3)),
            "codec": str(rng.choice(["raw", "mjpeg:80", "mjpeg:92"])), "breath_frac": log_uniform(rng, 0.002, 0.006)}


def _motion(rng: Draw) -> Fields:
    """As PURE's and MMPD's moving sessions: turning, talking, slow and fast translation, or several of them."""
    what = rng.random(3) < 0.55
    fast = rng.random() < 0.4
    return {"turn_deg": float(what[0] * rng.uniform(10, 45)), "turn_hz": log_uniform(rng, 0.08, 0.5),
            "talk": float(what[1] * rng.uniform(0.4, 1.0)),
            "motion_frac": log_uniform(rng, 0.006, 0.02) if fast else log_uniform(rng, 0.002, 0.008),
            "sway_hz": float(what[2]) * log_uniform(rng, 0.15, 2.5),
            "sway_frac": float(what[2]) * log_uniform(rng, 0.002, 0.02),
            "burst_per_min": float(rng.uniform(0, 4)), "pulse_amplitude": log_uniform(rng, 0.006, 0.02)}


def _light(rng: Draw) -> Fields:
    """Light that changes: drift, flicker, exposure steps, wandering shadows, a lamp that swells beside a real pulse."""
    what = rng.random(4) < 0.45
    lamp = rng.random() < 0.6
    return {"drift_amplitude": log_uniform(rng, 0.02, 0.12),
            "flicker_amplitude": float(what[0]) * log_uniform(rng, 0.001, 0.01),
            "exposure_step": float(what[1] * rng.uniform(0.02, 0.12)), "shadow": float(what[2] * rng.uniform(0.1, 0.5)),
            "side_light": float(what[3] * rng.uniform(0.2, 0.9)), "lamp_hz": float(lamp) * log_uniform(rng, 0.15, 4.0),
            "lamp_amplitude": float(lamp) * log_uniform(rng, 0.002, 0.03), "pulse_amplitude": log_uniform(rng, 0.006, 0.02)}


def _ward(rng: Draw) -> Fields:
    """As NBHR: newborns on their side in a maternity ward, uncompressed, with the sensor's full noise."""
    return {"codec": "raw", "noise_counts": float(rng.uniform(1.0, 2.5)), "shot_counts": float(rng.uniform(0, 1.5)),
            "bonnet": bool(rng.random() < 0.3), "blanket": bool(rng.random() < 0.4), "hair": bool(rng.random() < 0.4)}


def _sideways_face(rng: Draw) -> Fields:
    return {"sideways": True, "subject_frac": float(rng.uniform(0.6, 1.0)), "pulse_amplitude": log_uniform(rng, 0.006, 0.02)}


def _cpap_tape(rng: Draw) -> Fields:
    return {"tape": True, "tube": True, "bonnet": bool(rng.random() < 0.6), "subject_frac": float(rng.uniform(0.6, 1.0))}


def _bonnet(rng: Draw) -> Fields:
    return {"bonnet": True, "blanket": bool(rng.random() < 0.4)}


def _swaddle(rng: Draw) -> Fields:
    """The cloth passes part of the chest's motion on, in some clips hardly any."""
    return {"blanket": True, "bonnet": bool(rng.random() < 0.4), "bare_chest": False,
            "breath_frac": log_uniform(rng, 0.0015, 0.008), "subject_frac": float(rng.uniform(0.55, 1.0))}


def _phototherapy(rng: Draw) -> Fields:
    return {"phototherapy": float(rng.uniform(0.7, 1.0)), "eye_mask": True, "bare_chest": True,
            "warmth": float(rng.uniform(-0.1, 0.05)), "saturation": 1.0,
            "skin_tone": float(rng.uniform(0, 0.6)), "pulse_amplitude": log_uniform(rng, 0.008, 0.025)}


def _dim_infrared(rng: Draw) -> Fields:
    return {"infrared": True, "brightness": float(rng.uniform(0.28, 0.6)), "noise_counts": float(rng.uniform(1.0, 2.2)),
            "shot_counts": float(rng.uniform(0.5, 2.5)), "grain_px": float(rng.uniform(0, 0.8)), "warmth": 0.0,
            "saturation": 1.0, "skin_tone": float(rng.uniform(0, 0.5)), "pulse_amplitude": log_uniform(rng, 0.008, 0.025)}


def _plexiglass(rng: Draw) -> Fields:
    return {"glare": float(rng.uniform(0.3, 0.9)), "brightness": float(rng.uniform(0.5, 0.95))}


def _staff_hand(rng: Draw) -> Fields:
    return {"hand_hr_per_min": float(rng.uniform(55, 110)) if rng.random() < 0.7 else None, "hand_s": -1.0}


def _empty_cot(rng: Draw) -> Fields:
    hand = rng.random() < 0.3
    return {"kind": "empty_cot", "hr_per_min": None, "rr_per_min": None, "hand_s": -1.0 if hand else 0.0,
            "glare": float(rng.uniform(0.2, 0.7)) if rng.random() < 0.3 else 0.0}


def _ventilator(rng: Draw) -> Fields:
    """High-frequency ventilation: picture and tube shake at 3-15 Hz; the head, with the tube in it, a little."""
    return {"tube": True, "tape": True, "tube_frac": log_uniform(rng, 0.001, 0.008), "shake_hz": log_uniform(rng, 3.0, 15.0),
            "shake_frac": log_uniform(rng, 0.0002, 0.0012), "subject_frac": float(rng.uniform(0.55, 1.0))}


def _periodic_breathing(rng: Draw) -> Fields:
    return {"pause_s": float(rng.uniform(5, 12)), "burst_s": float(rng.uniform(7, 15)),
            "breath_frac": log_uniform(rng, 0.003, 0.012), "rr_per_min": float(rng.uniform(30, 80))}


def _bradycardia(rng: Draw) -> Fields:
    return {"hr_episode": -float(rng.uniform(0.2, 0.4)), "episode_s": float(rng.uniform(5, 15)),
            "hr_per_min": float(rng.uniform(115, 190))}


def _tachycardia(rng: Draw) -> Fields:
    base, peak = rng.uniform(130, 175), rng.uniform(200, 235)
    return {"hr_per_min": float(base), "hr_episode": float(peak / base - 1), "episode_s": float(rng.uniform(8, 16))}


def _maker(name: str, shared: Callable[..., Fields], own: Callable[[Draw], Fields]) -> Callable[..., Scene]:
    def make(seed: int, *, width: int = 192, height: int = 144, duration_s: float = 19.5) -> Scene:
        rng = np.random.default_rng((seed, *name.encode()))
        fields = shared(rng, seed, width, height, duration_s) | own(rng)
        if fields.get("hand_s"):  # some seconds in the middle
            length = min(float(rng.uniform(4, 9)), 0.5 * duration_s)
            fields |= {"hand_s": length, "hand_at_s": float(rng.uniform(0.15, 0.85)) * (duration_s - length)}
        if fields.get("hr_episode"):
            length = min(float(fields["episode_s"]), 0.7 * duration_s)  # type: ignore[arg-type]
            fields |= {"episode_s": length, "episode_at_s": float(rng.uniform(0.1, 0.9)) * (duration_s - length)}
        return Scene(**fields)  # type: ignore[arg-type]

    make.__name__, make.__doc__ = f"{name}_scene", own.__doc__
    return make


DOMAINS: dict[str, Callable[..., Scene]] = {
    name: _maker(name, _newborn if name == "ward" else _adult, own) for name, own in (
        ("studio", _studio), ("webcam", _webcam), ("compressed", _compressed), ("phone", _phone), ("lux", _lux),
        ("distance", _distance), ("motion", _motion), ("light", _light), ("ward", _ward))}

NICU: dict[str, Callable[..., Scene]] = {
    name: _maker(name, _newborn, own) for name, own in (
        ("sideways_face", _sideways_face), ("cpap_tape", _cpap_tape), ("bonnet", _bonnet), ("swaddle", _swaddle),
        ("phototherapy", _phototherapy), ("dim_infrared", _dim_infrared), ("plexiglass", _plexiglass),
        ("staff_hand", _staff_hand), ("empty_cot", _empty_cot), ("ventilator", _ventilator),
        ("periodic_breathing", _periodic_breathing), ("bradycardia", _bradycardia), ("tachycardia", _tachycardia))}

SYNTHETIC_ONLY = ("empty_cot", "periodic_breathing", "bradycardia", "tachycardia")
"""Scenes that are about their own rhythm: no recording drives them."""

BROAD, DOMAIN, WARD = 0.45, 0.30, 0.25
"""Shares of the training mix: anything at all, DOMAINS, NICU."""

RECORDED_SHARE = 1 / 3
WITHOUT_RHYTHM_SHARE = 0.1
"""Of the mix's domain clips, as they are but without pulse and breath: a domain is no sign that somebody lives."""


def mixed_domain(seed: int, holdout: frozenset[str] = frozenset()) -> str:
    """Where mixed_scene takes a seed's clip from: `broad`, or a name of DOMAINS or NICU that is not held out.

    A seed whose domain is held out takes another; all other seeds keep theirs, whatever is held out.
    """
    if unknown := sorted(holdout - {*DOMAINS, *NICU}):
        raise ValueError(f"held-out domain {', '.join(unknown)} unknown; choose from {', '.join((*DOMAINS, *NICU))}")
    rng = np.random.default_rng((seed, 11))
    draw = rng.random()
    if draw < BROAD:
        return "broad"
    names = list(DOMAINS if draw < BROAD + DOMAIN else NICU)
    name = names[int(rng.integers(len(names)))]
    left = [other for other in names if other not in holdout]
    if name in holdout:
        name = left[int(rng.integers(len(left)))] if left else "broad"
    return name


def mixed_scene(seed: int, holdout: frozenset[str] = frozenset(), recordings: Recordings | None = None, *,
                width: int = 192, height: int = 144, duration_s: float = 19.5) -> Scene:
    """The training draw: BROAD, DOMAIN and WARD shares, without held-out domains; recordings of the training half only."""
    if recordings is not None and recordings.half != "train":
        raise ValueError(f"training clips from the {recordings.half!r} half of the recordings; expected the train half")
    name = mixed_domain(seed, holdout)
    rng = np.random.default_rng((seed, 12))
    size = {"width": width, "height": height, "duration_s": duration_s}
    if name == "broad":
        scene = training_scene(seed, **size)
        newborn = (scene.hr_per_min or 150) > 100
        scene = replace(scene, **_rhythm_habits(rng, newborn), **_camera_habits(rng), **_broad_covers(rng))
    else:
        scene = (DOMAINS | NICU)[name](seed, **size)
        if rng.random() < WITHOUT_RHYTHM_SHARE:
            return replace(scene, hr_per_min=None, rr_per_min=None)
    if recordings is None or name in SYNTHETIC_ONLY or rng.random() > RECORDED_SHARE:
        return scene
    return recorded(scene, recordings, rng, float(rng.uniform(0.8, 1.4)))


def recompressed_scene(seed: int, *, width: int = 192, height: int = 144, duration_s: float = 19.5) -> Scene:
    """Training clips for restraint before what recordings went through: inter-frame codecs whose key frames come every
    few frames (12 at 25 a second beat 125 times a minute), over bodies with and without a pulse.
    """
    rng = np.random.default_rng((seed, 13))
    scene = mixed_scene(seed, width=width, height=height, duration_s=duration_s)
    if rng.random() < 0.6:
        scene = replace(scene, kind=str(rng.choice(["patch", "doll", "chest", "chest", "newborn", "object"])), hr_per_min=None,
                        rr_per_min=scene.rr_per_min if rng.random() < 0.5 else None)
    gop = int(rng.choice([8, 10, 12, 12, 12, 15, 15, 25, 30]))
    codec = f"mpeg4:{int(rng.integers(3, 12))}:{gop}" if rng.random() < 0.5 else f"h264:{int(rng.integers(18, 30))}:{gop}"
    return replace(scene, codec=codec, fps=float(rng.choice([15.0, 20.0, 25.0, 25.0, 30.0, 30.0])), drop_fraction=0.0,
                   noise_counts=log_uniform(rng, 0.3, 2.0))


def _broad_covers(rng: Draw) -> Fields:
    """Covers, turning, talking, shadows, glare and a passing arm now and then in the broad part too."""
    def seldom(share: float) -> bool:
        return bool(rng.random() < share)

    return {"hair": seldom(0.3), "bonnet": seldom(0.1), "tape": seldom(0.08), "tube": seldom(0.08), "eye_mask": seldom(0.05),
            "blanket": seldom(0.12), "upright": seldom(0.3), "talk": 0.7 * seldom(0.08),
            "turn_deg": rng.uniform(5, 40) * seldom(0.1), "glare": rng.uniform(0.1, 0.6) * seldom(0.08),
            "shadow": rng.uniform(0.1, 0.4) * seldom(0.08), "side_light": rng.uniform(0.1, 1.0) * seldom(0.2),
            "shot_counts": rng.uniform(0.5, 3.0) * seldom(0.2),
            "phototherapy": rng.uniform(0.3, 1.0) * seldom(0.04)}


def recorded(scene: Scene, recordings: Recordings, rng: Draw, speed: float = 1.0) -> Scene:
    """The scene driven by a drawn excerpt, `speed` times as fast; unchanged where it has no pulse or nothing fits.

    Newborns take newborns' recordings only.
    """
    if not scene.has_pulse:
        return scene
    found = recordings.draw(rng, (scene.duration_s + 1) * speed, HR_NEWBORN[0] if scene.kind == "newborn" else 0.0)
    if found is None:
        return scene
    rr = scene.rr_per_min if found.rr_per_min is None or scene.rr_per_min is None else found.rr_per_min * speed
    return replace(scene, recording=found.name, recording_start_s=found.start_s, recording_speed=speed,
                   hr_per_min=found.hr_per_min * speed, rr_per_min=rr)


def domain_test_scene(name: str, index: int, recordings: Recordings | None = None, *, duration_s: float = 40.0,
                      width: int = 256, height: int = 192) -> Scene:
    """Judged clip `index` of a domain or NICU scene. Every third is driven by the test half of the recordings, if given."""
    names = (*DOMAINS, *NICU)
    if name not in names:
        raise ValueError(f"domain {name!r} unknown; choose from {', '.join(names)}")
    if recordings is not None and recordings.half != "test":
        raise ValueError(f"judged clips from the {recordings.half!r} half of the recordings; expected the test half")
    seed = DOMAIN_TEST_SEED0 + 10_000 * names.index(name) + index
    scene = (DOMAINS | NICU)[name](seed, width=width, height=height, duration_s=duration_s)
    if recordings is None or name in SYNTHETIC_ONLY or index % 3 != 2:
        return scene
    return recorded(scene, recordings, np.random.default_rng((seed, 13)))
