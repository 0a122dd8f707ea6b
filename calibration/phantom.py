"""Rendered clips with known truth: a body under a lamp before a camera.

The picture is made in encoded (gamma) counts: pulse, shading and light are relative changes, and a relative change stays
one under a power law, so no gamma is needed (a change of a in light is a / 2.2 in counts). One frame is: background, then
the body's layers, each a texture minus its pulse map times the pulse, warped by posture, breathing and sway; then lamp,
camera shake, sensor noise, 8 bits and the codec.

calibration/scenes.py draws scenes from seeds, `Phantom` renders one. numpy and OpenCV only (PyAV for H.264).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.rhythms import FINE_HZ, Array, Rhythm, breathing, heartbeat, smooth_noise
from edge.records import Frame

F32 = NDArray[np.float32]

KINDS = ("newborn", "face", "patch", "chest", "doll", "empty_cot", "object", "noise", "black")
"""newborn, face: pulse and breathing. patch: skin fills the frame, pulse alone. chest: clothed, breathing alone.
doll: skin without either. The rest hold no body."""

PULSE_BGR = np.array([0.62, 1.0, 0.38], np.float32)
"""Relative pulse amplitude in blue, green, red (haemoglobin absorbs most in green; blue reaches less depth)."""

COUNTS_PER_LIGHT = 1.0 / 2.2
"""Relative change in encoded counts for a relative change in light, from the usual display gamma."""


@dataclass(frozen=True)
class Scene:
    """Everything that defines a clip. Amplitudes are relative; `_frac` is a fraction of the frame's width.

    hr_per_min, rr_per_min: None where the scene has no such rhythm. pulse_amplitude: AC/DC of the light at full
    perfusion. sway_hz > 0 rocks the subject, shake_hz > 0 the camera, lamp_hz > 0 swells the light, all periodically.
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
    skin_tone: float = 0.3
    brightness: float = 1.0
    infrared: bool = False
    bare_chest: bool = False
    subject_frac: float = 0.4
    motion_frac: float = 0.002
    burst_per_min: float = 0.0
    sway_hz: float = 0.0
    sway_frac: float = 0.0
    shake_frac: float = 0.0
    shake_hz: float = 0.0
    lamp_hz: float = 0.0
    lamp_amplitude: float = 0.0
    drift_amplitude: float = 0.02
    flicker_amplitude: float = 0.0
    exposure_step: float = 0.0
    noise_counts: float = 1.5
    denoise: float = 0.0
    jitter_ms: float = 0.0
    drop_fraction: float = 0.0
    codec: str = "raw"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"scene kind {self.kind!r} unknown; choose from {', '.join(KINDS)}")
        if not re.fullmatch(r"raw|(mjpeg|h264):\d{1,3}", self.codec):
            raise ValueError(f"scene codec {self.codec!r} unknown; use raw, mjpeg:QUALITY or h264:CRF")
        if min(self.width, self.height) < 16 or not (self.fps > 0 and self.duration_s * self.fps >= 1):
            raise ValueError(f"scene of {self.width}x{self.height} px, {self.duration_s} s at {self.fps} /s holds no clip; "
                             "expected at least 16x16 px and one frame")
        if self.codec.startswith("h264") and (self.width % 2 or self.height % 2):
            raise ValueError(f"scene of {self.width}x{self.height} px in H.264: expected even sides")
        for name in ("hr_per_min", "rr_per_min"):
            rate = getattr(self, name)
            if rate is not None and not 1 <= rate <= 400:
                raise ValueError(f"scene {name} {rate}: expected 1-400 /min, or none for no such rhythm")

    @property
    def has_pulse(self) -> bool:
        return self.hr_per_min is not None and self.pulse_amplitude > 0 and self.kind in ("newborn", "face", "patch")

    @property
    def has_breathing(self) -> bool:
        return self.rr_per_min is not None and self.breath_frac > 0 and self.kind in ("newborn", "face", "chest")


@dataclass(frozen=True)
class Layer:
    """A body part: premultiplied texture with alpha (H,W,4), and what pulse and breath add to it (H,W,4 or None)."""

    base: F32
    pulse: F32 | None
    breath: F32 | None
    pivot: tuple[float, float]
    breathes: float
    turns_with_head: bool


class Phantom:
    """Renders a scene. Iterate for Frames; the truth stands in `pulse` and `breath` (None where there is none)."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        rng = np.random.default_rng(scene.seed)
        margin_s = scene.duration_s + 1.0
        # made in any case, so that a scene without a rhythm draws the same picture as one with it
        breath_source = breathing(rng, 40.0 if scene.rr_per_min is None else scene.rr_per_min, margin_s)
        pulse_source = heartbeat(rng, 140.0 if scene.hr_per_min is None else scene.hr_per_min, margin_s, breath_source)
        self.breath: Rhythm | None = breath_source if scene.has_breathing else None
        self.pulse: Rhythm | None = pulse_source if scene.has_pulse else None
        self._rng = rng
        self.frame_times_s = _frame_times(rng, scene)
        self._background = _background(rng, scene)
        self._layers = _layers(rng, scene)
        self._tracks = _tracks(rng, scene, self.frame_times_s)
        self._lamp_map = _blotches(rng, scene.height, scene.width, 2)[..., None] * np.float32(0.5)
        bank = 4 * scene.width * scene.height * 3
        self._noise_bank = rng.standard_normal(min(bank, 4_000_000), np.float32)

    @property
    def shows_chest(self) -> bool:
        """Whether a part that breathes fully is in the picture; a head alone only nods with the breath."""
        return any(layer.breathes >= 1 for layer in self._layers)

    def pulse_map(self) -> F32:
        """Where the pulse is, as its size in counts summed over the colours, in the resting pose: float32 (H, W)."""
        total = np.zeros((self.scene.height, self.scene.width), np.float32)
        for layer in self._layers:
            total *= 1 - layer.base[..., 3]
            if layer.pulse is not None:
                total += layer.pulse[..., :3].sum(axis=2)
        return total

    def __iter__(self) -> Iterator[Frame]:
        pictures = self._pictures()
        if self.scene.codec.startswith("h264"):
            pictures = _through_h264(pictures, self.scene)
        for seq, (t_s, picture) in enumerate(zip(self.frame_times_s, pictures, strict=True)):
            yield Frame(seq, round(t_s * 1e9), picture)

    def _pictures(self) -> Iterator[NDArray[np.uint8]]:
        scene = self.scene
        pulse = self.pulse.at(self.frame_times_s) if self.pulse else np.zeros(self.frame_times_s.size)
        breath = self.breath.at(self.frame_times_s) if self.breath else np.zeros(self.frame_times_s.size)
        quality = int(scene.codec.split(":")[1]) if scene.codec.startswith("mjpeg") else None
        previous: F32 | None = None
        for i in range(self.frame_times_s.size):
            light = self._lit(i, float(pulse[i]), float(breath[i]))
            light += self._noise(light)
            if scene.denoise > 0:
                previous = light if previous is None else previous + np.float32(1 - scene.denoise) * (light - previous)
                light = previous
            picture = np.clip(light, 0, 255).round().astype(np.uint8)
            if quality is not None:
                ok, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
                picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if ok else picture
            yield picture

    def _lit(self, i: int, pulse: float, breath: float) -> F32:
        """The noiseless picture of frame i: float32 (H, W, 3) in counts."""
        track = self._tracks
        if self.scene.kind == "noise":
            return np.full((self.scene.height, self.scene.width, 3), 110, np.float32)
        if self.scene.kind == "black":
            return np.zeros((self.scene.height, self.scene.width, 3), np.float32)
        picture = self._background.copy()
        for layer in self._layers:
            tex = layer.base
            if layer.pulse is not None and pulse:
                tex = tex - layer.pulse * np.float32(pulse)
            if layer.breath is not None and breath:
                tex = tex + layer.breath * np.float32(breath)
            dx, dy, angle = track["body"][i]
            if layer.turns_with_head:
                hx, hy, ha = track["head"][i]
                dx, dy, angle = dx + hx, dy + hy, angle + ha
            swell = layer.breathes * breath * self.scene.breath_frac
            warped = _warp(tex, layer.pivot, dx, dy + swell * self.scene.width * track["breath_dy"][0], angle,
                           1 + swell * track["breath_sx"][0], 1 + swell * track["breath_sy"][0])
            picture *= 1 - warped[..., 3:]
            picture += warped[..., :3]
        cx, cy = track["camera"][i]
        if cx or cy:
            shift = np.float32([[1, 0, cx], [0, 1, cy]])
            picture = cv2.warpAffine(picture, shift, (self.scene.width, self.scene.height),
                                     flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        picture *= track["lamp"][i].astype(np.float32)
        local = float(track["shadow"][i])
        if local:
            picture *= 1 + np.float32(local) * self._lamp_map
        return picture

    def _noise(self, light: F32) -> F32:
        bank = self._noise_bank
        if bank.size > light.size:
            start = int(self._rng.integers(0, bank.size - light.size))
            sample = bank[start:start + light.size].reshape(light.shape)
        else:  # a large picture: the bank repeats inside it, from another place in every frame
            sample = np.resize(np.roll(bank, int(self._rng.integers(bank.size))), light.shape)
        spread = 60.0 if self.scene.kind == "noise" else self.scene.noise_counts
        return sample * np.float32(spread)


def _frame_times(rng: np.random.Generator, scene: Scene) -> Array:
    n = int(scene.duration_s * scene.fps)
    times = np.arange(n) / scene.fps + rng.normal(0, scene.jitter_ms / 1e3, n)
    kept = times[rng.random(n) >= scene.drop_fraction]
    return np.maximum.accumulate(np.clip(kept, 0, scene.duration_s)) + np.arange(kept.size) * 1e-6


def _tracks(rng: np.random.Generator, scene: Scene, t_s: Array) -> dict[str, Array]:
    """Everything that moves or changes by frame: body and head (x px, y px, degrees), camera (px), lamp (BGR), shadow."""
    n = int((scene.duration_s + 1) * FINE_HZ)

    def slow(corner_hz: float) -> Array:
        return np.interp(t_s, np.arange(n) / FINE_HZ, smooth_noise(rng, n, FINE_HZ, corner_hz))

    px = scene.width
    envelope = np.ones(t_s.size)
    for _ in range(rng.poisson(scene.burst_per_min * scene.duration_s / 60)):
        start, length = rng.uniform(0, scene.duration_s), rng.uniform(0.5, 3.0)
        envelope += rng.uniform(5, 20) * np.exp(-0.5 * ((t_s - start) / (length / 2)) ** 2)
    corner = rng.uniform(0.2, 1.2)
    body = np.stack([slow(corner) * scene.motion_frac * px * envelope, slow(corner) * scene.motion_frac * px * envelope,
                     slow(corner) * scene.motion_frac * 60 * envelope], axis=1)
    sway = scene.sway_frac * px * np.sin(2 * np.pi * scene.sway_hz * t_s + rng.uniform(0, 6)) if scene.sway_hz else 0.0
    way = rng.uniform(0, 2 * np.pi)
    body[:, 0] += np.cos(way) * sway
    body[:, 1] += np.sin(way) * sway
    head = np.stack([slow(corner) * scene.motion_frac * px * 0.7 * envelope,
                     slow(corner) * scene.motion_frac * px * 0.7 * envelope,
                     slow(corner) * scene.motion_frac * 120 * envelope], axis=1)
    shake = np.stack([slow(3.0), slow(3.0)], axis=1) * scene.shake_frac * px
    if scene.shake_hz:
        rock = np.sin(2 * np.pi * scene.shake_hz * t_s) * np.sqrt(2) * scene.shake_frac * px
        shake = np.stack([rock * np.cos(way), rock * np.sin(way)], axis=1)
    lamp = 1 + scene.drift_amplitude * slow(0.08)
    lamp = lamp + scene.flicker_amplitude * np.sin(2 * np.pi * rng.uniform(0.3, 14) * t_s)
    if scene.lamp_hz:
        lamp = lamp + scene.lamp_amplitude * np.sin(2 * np.pi * scene.lamp_hz * t_s + rng.uniform(0, 6))
    if scene.exposure_step:
        lamp = lamp * (1 + scene.exposure_step * np.sign(slow(0.15)) * (np.abs(slow(0.15)) > 0.5))
    tint = 1 + 0.3 * (lamp[:, None] - 1) * rng.normal(0, 0.5, 3) * (rng.random() < 0.5)
    direction = rng.uniform(-1, 1)
    return {"body": body, "head": head, "camera": shake, "lamp": lamp[:, None] * tint,
            "shadow": slow(0.5) * scene.motion_frac * 2, "breath_dy": np.array([0.6 * direction]),
            "breath_sx": np.array([rng.uniform(0.5, 2.0)]), "breath_sy": np.array([rng.uniform(1.0, 3.0)])}


def _warp(tex: F32, pivot: tuple[float, float], dx: float, dy: float, angle_deg: float, sx: float, sy: float) -> F32:
    height, width = tex.shape[:2]
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    matrix = np.array([[sx * cos, -sy * sin], [sx * sin, sy * cos]])
    shift = np.array(pivot) + (dx, dy) - matrix @ np.array(pivot)
    return cv2.warpAffine(tex, np.hstack([matrix, shift[:, None]]), (width, height), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)


def _blotches(rng: np.random.Generator, height: int, width: int, cells: int) -> F32:
    """Smooth texture, about zero mean and unit range: (H, W)."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _texture(rng: np.random.Generator, scene: Scene, colour: Array, contrast: float) -> F32:
    """Cloth, wall or skin: a colour with blotches of several sizes and perhaps stripes. (H, W, 3) counts."""
    height, width = scene.height, scene.width
    shade = sum(_blotches(rng, height, width, cells) / np.sqrt(cells / 3) for cells in (3, 9, 27))
    if contrast > 0.1 and rng.random() < 0.5:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) / width
        way, pitch = rng.uniform(0, np.pi), rng.uniform(8, 40)
        shade = shade + np.tanh(3 * np.sin(2 * np.pi * pitch * (x * np.cos(way) + y * np.sin(way))))
    return (np.clip(1 + contrast * shade, 0.15, 2)[..., None] * colour).astype(np.float32)


def _background(rng: np.random.Generator, scene: Scene) -> F32:
    colour = rng.uniform(40, 200) * rng.uniform(0.75, 1.15, 3)
    picture = _texture(rng, scene, colour, rng.uniform(0.05, 0.35))
    for _ in range(int(rng.integers(0, 5))):
        box = (rng.uniform(0, 1, 4) * (scene.width, scene.height, scene.width / 2, scene.height / 2)).astype(int)
        cv2.rectangle(picture, (int(box[0]), int(box[1]), int(box[2]) + 2, int(box[3]) + 2),
                      (rng.uniform(20, 230, 3)).tolist(), -1)
    picture = cv2.GaussianBlur(picture, (0, 0), max(0.5, scene.width / 320))
    return _exposed(picture, scene)


def _exposed(picture: F32, scene: Scene) -> F32:
    if scene.infrared:
        picture = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
    return np.clip(picture * np.float32(scene.brightness), 0, 252)


SKIN_LIGHT = np.array([165.0, 185.0, 225.0])
SKIN_DARK = np.array([38.0, 50.0, 78.0])
"""Encoded blue, green, red of the lightest and darkest skin under white light."""


def _ellipse(scene: Scene, cx: float, cy: float, rx: float, ry: float, angle_deg: float, soft: float) -> F32:
    mask = np.zeros((scene.height, scene.width), np.float32)
    cv2.ellipse(mask, (int(cx), int(cy)), (max(2, int(rx)), max(2, int(ry))), angle_deg, 0, 360, 1.0, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(mask, (0, 0), max(0.6, soft))


def _skin_layer(rng: np.random.Generator, scene: Scene, alpha: F32, pivot: tuple[float, float], breathes: float,
                is_head: bool) -> Layer:
    """A skin part with features, shading and a perfusion map (patches of little perfusion included)."""
    colour = (SKIN_LIGHT * (1 - scene.skin_tone) + SKIN_DARK * scene.skin_tone) * rng.uniform(0.92, 1.08, 3)
    tex = _texture(rng, scene, colour, rng.uniform(0.02, 0.08))
    y, x = np.mgrid[0:scene.height, 0:scene.width].astype(np.float32)
    way = rng.uniform(0, 2 * np.pi)
    lit = ((x - pivot[0]) * np.cos(way) + (y - pivot[1]) * np.sin(way)) / scene.width
    tex = tex * np.clip(1 + rng.uniform(0, 0.8) * lit, 0.4, 1.5)[..., None]
    perfusion = np.clip(1 + 0.6 * sum(_blotches(rng, scene.height, scene.width, c) for c in (2, 5)), 0.1, 2)
    if is_head:
        size = scene.subject_frac * scene.width * 0.25
        for _ in range(int(rng.integers(2, 6))):  # eyes, mouth, hair line, tape: dark or light, hardly perfused
            ex, ey = np.array(pivot) + rng.uniform(-0.7, 0.7, 2) * size
            feature = _ellipse(scene, ex, ey, rng.uniform(0.06, 0.25) * size, rng.uniform(0.04, 0.18) * size,
                               rng.uniform(0, 180), 1.0)[..., None]
            tex = tex * (1 - feature) + feature * tex * rng.uniform(0.3, 1.3)
            perfusion = perfusion * (1 - 0.8 * feature[..., 0])
    tex = _exposed(tex.astype(np.float32), scene)
    pulse = None
    if scene.has_pulse:
        weights = np.full(3, 0.4, np.float32) if scene.infrared else PULSE_BGR * rng.uniform(0.8, 1.2, 3)
        # half the AC/DC: the wave has unit standard deviation, about a quarter of its peak to peak
        strength = scene.pulse_amplitude * COUNTS_PER_LIGHT / 3.5
        change = tex * (perfusion * strength)[..., None] * weights * alpha[..., None]
        pulse = np.concatenate([change, np.zeros_like(change[..., :1])], axis=2).astype(np.float32)
    base = np.concatenate([tex * alpha[..., None], alpha[..., None]], axis=2).astype(np.float32)
    return Layer(base, pulse, None, pivot, breathes, is_head)


def _torso_layer(rng: np.random.Generator, scene: Scene, alpha: F32, pivot: tuple[float, float]) -> Layer:
    if scene.bare_chest:
        layer = _skin_layer(rng, scene, alpha, pivot, 1.0, False)
    else:
        colour = rng.uniform(60, 235) * rng.uniform(0.7, 1.1, 3)
        tex = _exposed(_texture(rng, scene, colour, rng.uniform(0.03, 0.3)), scene)
        base = np.concatenate([tex * alpha[..., None], alpha[..., None]], axis=2).astype(np.float32)
        layer = Layer(base, None, None, pivot, 1.0, False)
    if not scene.has_breathing:
        return layer
    # a rising chest turns its flanks towards or away from the lamp; 0.3-3 x the relative displacement
    shading = _blotches(rng, scene.height, scene.width, 3) * scene.breath_frac * rng.uniform(0.3, 3.0)
    change = layer.base[..., :3] * shading[..., None]
    return replace(layer, breath=np.concatenate([change, np.zeros_like(change[..., :1])], axis=2).astype(np.float32))


def _layers(rng: np.random.Generator, scene: Scene) -> list[Layer]:
    """The body's parts from back to front, anywhere in the frame and turned any way (newborns lie sideways)."""
    width, height = scene.width, scene.height
    if scene.kind in ("noise", "black", "empty_cot"):
        return []
    if scene.kind == "patch":
        alpha = np.ones((height, width), np.float32)
        return [_skin_layer(rng, scene, alpha, (width / 2, height / 2), 0.0, False)]
    size = scene.subject_frac * width
    turn = rng.uniform(0, 2 * np.pi)
    cx, cy = width * rng.uniform(0.35, 0.65), height * rng.uniform(0.35, 0.65)
    axis = np.array([np.cos(turn), np.sin(turn)])
    soft = width / 200
    layers = []
    if scene.kind == "object":
        alpha = _ellipse(scene, cx, cy, size / 2, size / 3, np.degrees(turn), soft)
        return [_torso_layer(rng, replace(scene, bare_chest=False), alpha, (cx, cy))]
    tx, ty = np.array([cx, cy]) + axis * size * (0.45 if scene.kind != "chest" else 0.1)
    if scene.kind in ("newborn", "chest", "doll") or rng.random() < 0.6:
        alpha = _ellipse(scene, tx, ty, size * 0.5, size * rng.uniform(0.28, 0.4), np.degrees(turn), soft)
        layers.append(_torso_layer(rng, scene, alpha, (float(tx), float(ty))))
    if scene.kind == "chest":
        return layers
    hx, hy = np.array([cx, cy]) - axis * size * (0.28 if scene.kind != "face" else 0.0)
    radius = size * (0.25 if scene.kind != "face" else 0.45)
    alpha = _ellipse(scene, hx, hy, radius * 1.15, radius * 0.9, np.degrees(turn), soft)
    layers.append(_skin_layer(rng, scene, alpha, (float(hx), float(hy)), rng.uniform(0, 0.35), True))
    if scene.kind == "newborn" and rng.random() < 0.5:  # an arm or a leg
        lx, ly = np.array([tx, ty]) + rng.uniform(-0.4, 0.4, 2) * size
        alpha = _ellipse(scene, lx, ly, size * 0.28, size * 0.09, rng.uniform(0, 180), soft)
        layers.append(_skin_layer(rng, scene, alpha, (float(lx), float(ly)), 0.5, False))
    return layers


def _through_h264(pictures: Iterator[NDArray[np.uint8]], scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """Encode and decode in memory with PyAV (the lab's extra), frame for frame."""
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as sink:
        stream = sink.add_stream("libx264", rate=round(scene.fps),
                                 options={"crf": scene.codec.split(":")[1], "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        for picture in pictures:
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        sink.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as source:
        for decoded in source.decode(video=0):
            yield decoded.to_ndarray(format="bgr24")
