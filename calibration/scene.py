"""The complete description of a rendered clip: body, rhythms, light, camera and what stands in the way."""

from __future__ import annotations

import re
from dataclasses import dataclass

KINDS = ("newborn", "face", "patch", "chest", "doll", "empty_cot", "object", "noise", "black")
"""newborn, face: pulse and breathing. patch: skin fills the frame, pulse alone. chest: clothed, breathing alone.
doll: skin without either. The rest hold no body."""

HEADED = ("newborn", "face", "doll")


@dataclass(frozen=True)
class Scene:
    """Everything that defines a clip. Amplitudes are relative; `_frac` is a fraction of the frame's width.

    Rhythms. hr_per_min, rr_per_min: None where the scene has no such rhythm. pulse_amplitude: AC/DC, peak to peak, of the
    light at full perfusion. breath_frac: how far the chest, or what covers it, moves. heart_variability and
    breath_variability: relative, of the intervals. hr_episode: relative change of the rate (-0.3 is a dip) for episode_s
    from episode_at_s on. pause_s: breathing in bursts of burst_s with pauses between. recording: name of the recording
    whose beats and breaths drive the clip, from recording_start_s on and recording_speed times as fast; hr_per_min and
    rr_per_min are then its means. bcg_frac: the head moves with each beat.

    Body. subject_frac: size. upright: head up, as a sitting adult; else any way. sideways: half the face lies in a pillow.

    Trouble. sway_hz > 0 rocks the subject, shake_hz > 0 the camera, lamp_hz > 0 swells the light, all periodically; tube_frac
    shakes the tube at shake_hz. turn_deg: the head turns about its long axis by up to this. talk: how far the mouth opens
    (0-1). hand_s > 0: an arm reaches in from hand_at_s for so long, with a pulse of its own at hand_hr_per_min.

    Light and camera. phototherapy: 0-1, share of the lamp that is blue. glare: opacity of reflections on a pane.
    side_light: relative fall of the light across the frame. shadow: depth of a shadow that wanders over the picture.
    warmth: red up and blue down by this share. saturation: 1 keeps colours, 0 is grey. gamma: of the camera's encoding.
    noise_counts: in every pixel; shot_counts: at white, growing as the root of the counts. grain_px: noise is that wide.
    """

    kind: str
    seed: int
    width: int = 640
    height: int = 480
    fps: float = 30.0
    duration_s: float = 30.0
    hr_per_min: float | None = 150.0
    rr_per_min: float | None = 50.0
    pulse_amplitude: float = 0.008
    breath_frac: float = 0.005
    heart_variability: float = 0.0
    breath_variability: float = 0.0
    hr_episode: float = 0.0
    episode_at_s: float = 0.0
    episode_s: float = 10.0
    pause_s: float = 0.0
    burst_s: float = 12.0
    recording: str = ""
    recording_start_s: float = 0.0
    recording_speed: float = 1.0
    bcg_frac: float = 0.0
    skin_tone: float = 0.3
    gloss: float = 0.0
    brightness: float = 1.0
    infrared: bool = False
    bare_chest: bool = False
    upright: bool = False
    sideways: bool = False
    hair: bool = False
    bonnet: bool = False
    eye_mask: bool = False
    tape: bool = False
    tube: bool = False
    tube_frac: float = 0.0
    blanket: bool = False
    subject_frac: float = 0.4
    motion_frac: float = 0.002
    burst_per_min: float = 0.0
    turn_deg: float = 0.0
    turn_hz: float = 0.15
    talk: float = 0.0
    sway_hz: float = 0.0
    sway_frac: float = 0.0
    hand_at_s: float = 0.0
    hand_s: float = 0.0
    hand_hr_per_min: float | None = None
    shake_frac: float = 0.0
    shake_hz: float = 0.0
    lamp_hz: float = 0.0
    lamp_amplitude: float = 0.0
    drift_amplitude: float = 0.02
    flicker_amplitude: float = 0.0
    exposure_step: float = 0.0
    phototherapy: float = 0.0
    glare: float = 0.0
    side_light: float = 0.0
    shadow: float = 0.0
    warmth: float = 0.0
    saturation: float = 1.0
    gamma: float = 2.2
    noise_counts: float = 1.5
    shot_counts: float = 0.0
    grain_px: float = 0.0
    denoise: float = 0.0
    jitter_ms: float = 0.0
    drop_fraction: float = 0.0
    codec: str = "raw"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"scene kind {self.kind!r} unknown; choose from {', '.join(KINDS)}")
        if not re.fullmatch(r"raw|mjpeg:\d{1,3}|h264:\d{1,3}(:\d{1,3})?|mpeg4:\d{1,3}:\d{1,3}", self.codec):
            raise ValueError(f"scene codec {self.codec!r} unknown; use raw, mjpeg:QUALITY, h264:CRF, h264:CRF:GOP or "
                             "mpeg4:QUANTISER:GOP")
        if min(self.width, self.height) < 16 or not (self.fps > 0 and self.duration_s * self.fps >= 1):
            raise ValueError(f"scene of {self.width}x{self.height} px, {self.duration_s} s at {self.fps} /s holds no clip; "
                             "expected at least 16x16 px and one frame")
        if self.codec.startswith(("h264", "mpeg4")) and (self.width % 2 or self.height % 2):
            raise ValueError(f"scene of {self.width}x{self.height} px in {self.codec}: expected even sides")
        for name in ("hr_per_min", "rr_per_min", "hand_hr_per_min"):
            rate = getattr(self, name)
            if rate is not None and not 1 <= rate <= 400:
                raise ValueError(f"scene {name} {rate}: expected 1-400 /min, or none for no such rhythm")
        if not (-0.9 <= self.hr_episode <= 2 and self.episode_s > 0 and self.gamma > 0 and self.recording_speed > 0):
            raise ValueError(f"scene with hr_episode {self.hr_episode}, episode_s {self.episode_s}, gamma {self.gamma}, "
                             f"recording_speed {self.recording_speed}: expected -0.9 to 2, and the others above 0")

    @property
    def has_pulse(self) -> bool:
        return self.hr_per_min is not None and self.pulse_amplitude > 0 and self.kind in ("newborn", "face", "patch")

    @property
    def has_breathing(self) -> bool:
        return self.rr_per_min is not None and self.breath_frac > 0 and self.kind in ("newborn", "face", "chest")
