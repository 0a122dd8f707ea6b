"""Rendered clips with known truth: a body under a lamp before a camera.

The picture is made in encoded (gamma) counts: pulse, shading and light are relative changes, and a relative change stays
one under a power law, so no gamma is needed (a change of a in light is a / 2.2 in counts). One frame is: background, then
the body's layers (body.py), each a texture plus what pulse, breath and turning add, warped by posture, breathing and sway;
then lamp, shadow, camera shake, sensor noise, 8 bits and the codec.

calibration/scenes.py and calibration/domains.py draw scenes from seeds, `Phantom` renders one. numpy and OpenCV only (PyAV
for H.264).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.body import F32, Layer, background, blotches, layers
from calibration.recordings import load_recording, recordings_folder, window
from calibration.rhythms import (
    FINE_HZ,
    Array,
    Rhythm,
    breathing,
    episode,
    heartbeat,
    recorded_breathing,
    recorded_heartbeat,
    smooth_noise,
)
from calibration.scene import KINDS, Scene
from edge.records import Frame

__all__ = ["KINDS", "Phantom", "Scene"]

NOISE_BANK = 4_000_000
"""Noise samples kept at most; every frame starts elsewhere in them."""

CHEST_SHARE = 0.005
"""Of the picture: a smaller piece of a chest, cut by the frame's edge, does not count as in the picture."""

BCG_DELAY_S = 0.08
"""The head's kick comes before the pulse reaches the skin; here the skin is the reference, so the kick leads by this."""


class Phantom:
    """Renders a scene. Iterate for Frames; the truth stands in `pulse` and `breath` (None where there is none).

    recordings: folder of the recording that the scene names; without it PHYSVLM_RECORDINGS. Raises MissingRecordingError.
    """

    def __init__(self, scene: Scene, recordings: Path | None = None) -> None:
        self.scene = scene
        rng = np.random.default_rng(scene.seed)
        # made in any case, so that a scene without a rhythm draws the same picture as one with it
        pulse_source, breath_source = _rhythms(rng, scene, recordings)
        self.breath: Rhythm | None = breath_source if scene.has_breathing else None
        self.pulse: Rhythm | None = pulse_source if scene.has_pulse else None
        self._rng = rng
        self.frame_times_s = _frame_times(rng, scene)
        self._background = background(rng, scene)
        self._layers = layers(rng, scene)
        self._tracks = _tracks(rng, scene, self.frame_times_s)
        standing = np.zeros((self.frame_times_s.size, 3))
        self._paths = [sum((self._tracks[name] for name in layer.moves), standing) for layer in self._layers]
        lamp_map = blotches(rng, scene.height, scene.width, 2)[..., None] * np.float32(0.5)
        self._lamp_map = np.repeat(lamp_map, 3, axis=2)
        extra = np.random.default_rng((scene.seed, 2))
        self._still_light = _still_light(extra, scene)
        self._shadow_map = _shadow_map(extra, scene) if scene.shadow else None
        self._signals = self._all_signals(extra)
        self._noise_bank = _noise_bank(rng, scene)

    @property
    def shows_chest(self) -> bool:
        """Whether a part that breathes fully is in the picture; a head alone only nods with the breath."""
        least = CHEST_SHARE * self.scene.width * self.scene.height
        return any(layer.breathes >= 1 and layer.base[..., 3].sum() >= least for layer in self._layers)

    @property
    def hand(self) -> Array:
        """How far a staff arm has reached in, by frame: 0 (not in the picture) to 1."""
        return self._signals["hand"]

    def pulse_map(self) -> F32:
        """Where the pulse is, as its size in counts summed over the colours, in the resting pose: float32 (H, W).

        A staff arm is left out: it passes.
        """
        total = np.zeros((self.scene.height, self.scene.width), np.float32)
        for layer in self._layers:
            if layer.away is not None:
                continue
            x, y = layer.corner
            box = slice(y, y + layer.base.shape[0]), slice(x, x + layer.base.shape[1])
            total[box] *= 1 - layer.base[..., 3]
            for change, name in layer.changes:
                if name == "pulse":
                    total[box] -= change[..., :3].sum(axis=2)
        return total

    def __iter__(self) -> Iterator[Frame]:
        pictures = self._pictures()
        if self.scene.codec.startswith(("h264", "mpeg4")):
            pictures = _through_codec(pictures, self.scene)
        for seq, (t_s, picture) in enumerate(zip(self.frame_times_s, pictures, strict=True)):
            yield Frame(seq, round(t_s * 1e9), picture)

    def _all_signals(self, rng: np.random.Generator) -> dict[str, Array]:
        """What changes a layer's texture or size, by frame."""
        scene, t_s = self.scene, self.frame_times_s
        slow = _slow(rng, scene, t_s)
        none = np.zeros(t_s.size)
        hand_pulse = none
        if scene.hand_hr_per_min is not None:
            hand_pulse = heartbeat(rng, scene.hand_hr_per_min, scene.duration_s + 1.0, None, variability=0.03).at(t_s)
        reach = np.minimum(t_s - scene.hand_at_s, scene.hand_at_s + scene.hand_s - t_s) / 0.8
        soft = np.clip(reach, 0, 1)
        return {"pulse": self.pulse.at(t_s) if self.pulse else none,
                "breath": self.breath.at(t_s) if self.breath else none,
                "turn": np.sin(np.radians(scene.turn_deg) * np.tanh(1.2 * slow(scene.turn_hz))) if scene.turn_deg else none,
                "mouth": _speech(rng, scene, t_s) if scene.talk else none,
                "room": slow(0.3) if scene.glare else none, "hand_pulse": hand_pulse,
                "kick": self.pulse.at(t_s + BCG_DELAY_S) * scene.bcg_frac * scene.width if self.pulse else none,
                "hand": soft * soft * (3 - 2 * soft) if scene.hand_s else none}

    def _pictures(self) -> Iterator[NDArray[np.uint8]]:
        scene = self.scene
        quality = int(scene.codec.split(":")[1]) if scene.codec.startswith("mjpeg") else None
        previous: F32 | None = None
        for i in range(self.frame_times_s.size):
            light = self._lit(i)
            noise = self._noise(light)
            if scene.denoise > 0:
                light = light + noise
                previous = light if previous is None else previous + np.float32(1 - scene.denoise) * (light - previous)
                picture = cv2.add(previous, 0.0, dtype=cv2.CV_8U)
            else:
                picture = cv2.add(light, noise, dtype=cv2.CV_8U)  # rounds and saturates
            if quality is not None:
                ok, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
                picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if ok else picture
            yield picture

    def _lit(self, i: int) -> F32:
        """The noiseless picture of frame i: float32 (H, W, 3) in counts."""
        track, scene = self._tracks, self.scene
        size = (scene.width, scene.height)
        if scene.kind == "noise":
            return np.full((scene.height, scene.width, 3), 110, np.float32)
        if scene.kind == "black":
            return np.zeros((scene.height, scene.width, 3), np.float32)
        picture = self._background.copy()
        for layer, path in zip(self._layers, self._paths, strict=True):
            self._paint(picture, layer, path, i)
        cx, cy = track["camera"][i]
        if cx or cy:
            shift = np.float32([[1, 0, cx], [0, 1, cy]])
            picture = cv2.warpAffine(picture, shift, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        local = float(track["shadow"][i])
        if self._still_light is not None or local:
            still = np.ones_like(picture) if self._still_light is None else self._still_light
            picture *= cv2.scaleAdd(self._lamp_map, local, still)
        if self._shadow_map is not None:
            wander = np.float32([[1, 0, track["wander"][i, 0]], [0, 1, track["wander"][i, 1]]])
            depth = cv2.warpAffine(self._shadow_map, wander, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            picture *= cv2.cvtColor(depth, cv2.COLOR_GRAY2BGR)
        return cv2.multiply(picture, (*track["lamp"][i].tolist(), 1.0), dst=picture)

    def _paint(self, picture: F32, layer: Layer, path: Array, i: int) -> None:
        """Lay one layer over the picture, in place, where it is in frame i."""
        scene, track, now = self.scene, self._tracks, self._signals
        if layer.away is not None and now["hand"][i] <= 0:
            return
        tex = layer.base
        for change, name in layer.changes:
            if value := float(now[name][i]):
                tex = cv2.scaleAdd(change, value, tex)
        dx, dy, angle = path[i]
        if layer.away is not None:
            dx, dy = dx + layer.away[0] * (1 - now["hand"][i]), dy + layer.away[1] * (1 - now["hand"][i])
        swell = layer.breathes * float(now["breath"][i]) * scene.breath_frac
        dy += swell * scene.width * track["breath_dy"][0]
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        sx, sy = 1 + swell * track["breath_sx"][0], 1 + swell * track["breath_sy"][0]
        matrix = np.array([[sx * cos, -sy * sin], [sx * sin, sy * cos]])
        if layer.across is not None:
            nx, ny = layer.across
            turn = now["turn"][i]
            dx, dy = dx + turn * layer.turn_px * nx, dy + turn * layer.turn_px * ny
            dx, dy = dx - ny * now["kick"][i], dy + nx * now["kick"][i]
            narrower = 0.5 * (np.sqrt(1 - turn * turn) - 1)  # half: the far side of a round head comes into view
            matrix = matrix @ (np.eye(2) + narrower * np.outer((nx, ny), (nx, ny)))
            if layer.opens:
                matrix = matrix @ (np.eye(2) + (now["mouth"][i] - 1) * np.outer((ny, -nx), (ny, -nx)))
        _lay(picture, tex, layer, matrix, dx, dy)

    def _noise(self, light: F32) -> F32:
        bank, scene = self._noise_bank, self.scene
        if bank.size > light.size:
            step = 3 if scene.grain_px else 1
            start = step * int(self._rng.integers(0, (bank.size - light.size) // step))
            sample = bank[start:start + light.size].reshape(light.shape)
        else:  # a large picture: the bank repeats inside it, from another place in every frame
            sample = np.resize(np.roll(bank, int(self._rng.integers(bank.size))), light.shape)
        if scene.shot_counts:
            spread = np.sqrt(np.maximum(light, 0) * np.float32(scene.shot_counts**2 / 255) + np.float32(scene.noise_counts**2))
            return sample * spread
        return sample * np.float32(60.0 if scene.kind == "noise" else scene.noise_counts)


def _lay(picture: F32, tex: F32, layer: Layer, matrix: Array, dx: float, dy: float) -> None:
    """Warp a texture about its pivot and blend it in, only where it lands. What is cut by the frame's edge goes on past it."""
    height, width = picture.shape[:2]
    h, w = tex.shape[:2]
    pivot = np.array(layer.pivot)
    x0, y0 = layer.corner
    shift = pivot + (dx, dy) - matrix @ pivot
    corners = matrix @ np.array([[x0, x0 + w, x0, x0 + w], [y0, y0, y0 + h, y0 + h]], float) + shift[:, None]
    left = 0 if x0 == 0 else max(0, int(corners[0].min()) - 1)
    top = 0 if y0 == 0 else max(0, int(corners[1].min()) - 1)
    right = width if x0 + w == width else min(width, int(corners[0].max()) + 2)
    bottom = height if y0 + h == height else min(height, int(corners[1].max()) + 2)
    if right <= left or bottom <= top:
        return
    to_crop = np.hstack([matrix, (shift + matrix @ (x0, y0) - (left, top))[:, None]])
    warped = cv2.warpAffine(tex, to_crop, (right - left, bottom - top), flags=cv2.INTER_LINEAR,
                            borderMode=cv2.BORDER_REPLICATE)
    target = picture[top:bottom, left:right]
    alpha = cv2.extractChannel(warped, 3)
    target *= cv2.cvtColor(1 - alpha, cv2.COLOR_GRAY2BGR)
    target += cv2.cvtColor(warped, cv2.COLOR_BGRA2BGR)


def _rhythms(rng: np.random.Generator, scene: Scene, folder: Path | None) -> tuple[Rhythm, Rhythm]:
    """Pulse and breath sources, synthetic or from the recording that the scene names."""
    margin_s = scene.duration_s + 1.0
    hr = 140.0 if scene.hr_per_min is None else scene.hr_per_min
    rr = 40.0 if scene.rr_per_min is None else scene.rr_per_min
    recorded = None
    if scene.recording:
        recorded = load_recording(recordings_folder(folder), scene.recording)

    def times(all_s: Array) -> Array:
        return window(all_s, scene.recording_start_s, margin_s * scene.recording_speed) / scene.recording_speed

    if recorded is not None and times(recorded.breaths_s).size > 3:
        breath = recorded_breathing(rng, times(recorded.breaths_s), margin_s)
    else:
        breath = breathing(rng, rr, margin_s, spread=scene.breath_variability, pause_s=scene.pause_s, burst_s=scene.burst_s)
    if recorded is not None:
        return recorded_heartbeat(rng, times(recorded.beats_s), margin_s, breath), breath
    n = int(margin_s * FINE_HZ) + 1
    profile = episode(n, scene.episode_at_s, scene.episode_s, scene.hr_episode) if scene.hr_episode else None
    return heartbeat(rng, hr, margin_s, breath, variability=scene.heart_variability, profile=profile), breath


def _frame_times(rng: np.random.Generator, scene: Scene) -> Array:
    n = int(scene.duration_s * scene.fps)
    times = np.arange(n) / scene.fps + rng.normal(0, scene.jitter_ms / 1e3, n)
    kept = times[rng.random(n) >= scene.drop_fraction]
    return np.maximum.accumulate(np.clip(kept, 0, scene.duration_s)) + np.arange(kept.size) * 1e-6


def _slow(rng: np.random.Generator, scene: Scene, t_s: Array):
    """Function of a corner frequency: smooth noise of unit variance at the frame times."""
    n = int((scene.duration_s + 1) * FINE_HZ)
    return lambda corner_hz: np.interp(t_s, np.arange(n) / FINE_HZ, smooth_noise(rng, n, FINE_HZ, corner_hz))


def _speech(rng: np.random.Generator, scene: Scene, t_s: Array) -> Array:
    """How far the mouth is open: syllables at about 4 /s in phrases, 0.1 when silent."""
    slow = _slow(rng, scene, t_s)
    phase = 2 * np.pi * rng.uniform(1.5, 3.0) * t_s + 1.5 * slow(0.8)
    speaking = np.clip(2 * slow(0.25) + 1, 0, 1)
    return 0.1 + scene.talk * speaking * np.abs(np.sin(phase))


def _tracks(rng: np.random.Generator, scene: Scene, t_s: Array) -> dict[str, Array]:
    """Everything that moves or changes by frame: parts (x px, y px, degrees), camera (px), lamp (BGR), shadow."""
    slow = _slow(rng, scene, t_s)
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
    made = {"body": body, "head": head, "camera": shake, "lamp": np.maximum(lamp[:, None] * tint, 0.0),
            "shadow": slow(0.5) * scene.motion_frac * 2, "breath_dy": np.array([0.6 * direction]),
            "breath_sx": np.array([rng.uniform(0.5, 2.0)]), "breath_sy": np.array([rng.uniform(1.0, 3.0)])}
    return made | _further_tracks(np.random.default_rng((scene.seed, 3)), scene, t_s)


def _further_tracks(rng: np.random.Generator, scene: Scene, t_s: Array) -> dict[str, Array]:
    """Tube, staff arm, pane (x px, y px, degrees) and the shadow's place (px)."""
    slow, none = _slow(rng, scene, t_s), np.zeros((t_s.size, 3))
    made = {"tube": none, "hand": none, "pane": none}
    if scene.tube_frac:
        shaken = scene.tube_frac * scene.width * np.sin(2 * np.pi * scene.shake_hz * t_s)
        made["tube"] = np.outer(shaken, (np.cos(1.0), np.sin(1.0), 0.0))
    if scene.hand_s:
        made["hand"] = np.stack([0.02 * scene.width * slow(0.8), 0.02 * scene.width * slow(0.8), 3 * slow(0.5)], axis=1)
    if scene.glare:
        made["pane"] = np.stack([0.004 * scene.width * slow(0.2), 0.004 * scene.width * slow(0.2), 0 * t_s], axis=1)
    if scene.shadow:
        made["wander"] = 0.25 * scene.width * np.stack([slow(0.15), slow(0.15)], axis=1)
    return made


def _still_light(rng: np.random.Generator, scene: Scene) -> F32 | None:
    """The light's fall across the frame as factors (H, W, 3), or None for even light."""
    if not scene.side_light:
        return None
    y, x = np.mgrid[0:scene.height, 0:scene.width].astype(np.float32) / scene.width - 0.5
    way = rng.choice([0.0, np.pi]) + rng.uniform(-0.5, 0.5)
    fall = 1 + np.float32(scene.side_light) * (x * np.float32(np.cos(way)) + y * np.float32(np.sin(way)))
    return np.repeat(np.clip(fall, 0.1, 1.6)[..., None], 3, axis=2).astype(np.float32)


def _shadow_map(rng: np.random.Generator, scene: Scene) -> F32:
    """Light left in a soft shadow with a penumbra: (H, W)."""
    mask = np.ones((scene.height, scene.width), np.float32)
    box = cv2.boxPoints(((scene.width * rng.uniform(0.2, 0.8), scene.height * rng.uniform(0.2, 0.8)),
                         (scene.width * rng.uniform(0.1, 0.4), scene.width * rng.uniform(0.2, 0.8)), rng.uniform(0, 180)))
    cv2.fillPoly(mask, [box.astype(np.int32)], 1 - scene.shadow)
    return cv2.GaussianBlur(mask, (0, 0), scene.width * rng.uniform(0.02, 0.08))


def _noise_bank(rng: np.random.Generator, scene: Scene) -> F32:
    """Noise of unit deviation: (n,), rows of the picture when it has a grain."""
    size = min(4 * scene.width * scene.height * 3, NOISE_BANK)
    bank = rng.standard_normal(size, np.float32)
    if not scene.grain_px:
        return bank
    rows = size // (3 * scene.width)
    wide = cv2.GaussianBlur(bank[:rows * 3 * scene.width].reshape(rows, scene.width, 3), (0, 0), scene.grain_px)
    return (wide / wide.std()).ravel()


def _through_codec(pictures: Iterator[NDArray[np.uint8]], scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """Encode and decode in memory with PyAV (the lab's extra), frame for frame."""
    import io

    import av

    name, quality, *gop = scene.codec.split(":")
    # x264's assembly reads past what it was given when it looks ahead: without it, a scene is the same clip every time
    options = {"h264": {"crf": quality, "preset": "veryfast", "x264-params": "no-asm=1"},
               "mpeg4": {"qmin": quality, "qmax": quality}}[name]
    if gop:
        options |= {"g": gop[0], "sc_threshold": "0"}  # key frames at even steps, wherever the picture changes
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as sink:
        stream = sink.add_stream("libx264" if name == "h264" else name, rate=round(scene.fps), options=options)
        stream.thread_count = 1  # clips are rendered side by side
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        for picture in pictures:
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        sink.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as source:
        for decoded in source.decode(video=0):
            yield decoded.to_ndarray(format="bgr24")
