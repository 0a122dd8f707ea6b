"""What stands before the camera: background, the body's parts, what covers them, a staff arm, a pane of glass.

Each part is a `Layer`: a texture, what the rhythms add to it, and how it moves. Drawn once from a scene's seed; phantom.py
moves and lights them frame by frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.rhythms import Array
from calibration.scene import HEADED, Scene

F32 = NDArray[np.float32]

PULSE_BGR = np.array([0.62, 1.0, 0.38], np.float32)
"""Relative pulse amplitude in blue, green, red (haemoglobin absorbs most in green; blue reaches less depth)."""

PEAK_TO_PEAK = 3.5
"""Peak to peak of a pulse wave of unit standard deviation, about."""

SKIN_LIGHT = np.array([165.0, 185.0, 225.0])
SKIN_DARK = np.array([38.0, 50.0, 78.0])
"""Encoded blue, green, red of the lightest and darkest skin under white light."""

BLUE_LAMP_BGR = np.array([1.25, 0.32, 0.14])
"""Light of a phototherapy lamp (460-490 nm) as a camera sees it, against white light."""


@dataclass(frozen=True)
class Layer:
    """A part, cropped to what it covers. Lengths in pixels.

    base: (h, w, 4), texture times alpha, and alpha. changes: (what one unit of it adds, (h, w, 4); name of the signal).
    corner: x, y of the crop in the picture. moves: names of the tracks it follows. breathes: share of the breath that
    moves it. across: unit vector across the face, along which a turning head narrows; turn_px: how far it shifts then.
    opens: a mouth. away: where an arm rests outside the picture.
    """

    base: F32
    changes: tuple[tuple[F32, str], ...]
    corner: tuple[int, int]
    pivot: tuple[float, float]
    moves: tuple[str, ...] = ("body",)
    breathes: float = 0.0
    across: tuple[float, float] | None = None
    turn_px: float = 0.0
    opens: bool = False
    away: tuple[float, float] | None = None


def blotches(rng: np.random.Generator, height: int, width: int, cells: int) -> F32:
    """Smooth texture, about zero mean and unit range: (H, W)."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _texture(rng: np.random.Generator, scene: Scene, colour: Array, contrast: float) -> F32:
    """Cloth, wall or skin: a colour with blotches of several sizes and perhaps stripes. (H, W, 3) counts."""
    height, width = scene.height, scene.width
    shade = sum(blotches(rng, height, width, cells) / np.sqrt(cells / 3) for cells in (3, 9, 27))
    if contrast > 0.1 and rng.random() < 0.5:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) / width
        way, pitch = rng.uniform(0, np.pi), rng.uniform(8, 40)
        shade = shade + np.tanh(3 * np.sin(2 * np.pi * pitch * (x * np.cos(way) + y * np.sin(way))))
    return (np.clip(1 + contrast * shade, 0.15, 2)[..., None] * colour).astype(np.float32)


def background(rng: np.random.Generator, scene: Scene) -> F32:
    """Wall, cot or mattress with a few things on it: (H, W, 3) counts."""
    colour = rng.uniform(40, 200) * rng.uniform(0.75, 1.15, 3)
    picture = _texture(rng, scene, colour, rng.uniform(0.05, 0.35))
    for _ in range(int(rng.integers(0, 5))):
        box = (rng.uniform(0, 1, 4) * (scene.width, scene.height, scene.width / 2, scene.height / 2)).astype(int)
        cv2.rectangle(picture, (int(box[0]), int(box[1]), int(box[2]) + 2, int(box[3]) + 2),
                      (rng.uniform(20, 230, 3)).tolist(), -1)
    picture = cv2.GaussianBlur(picture, (0, 0), max(0.5, scene.width / 320))
    return _exposed(picture, scene)


def _exposed(picture: F32, scene: Scene) -> F32:
    """What the camera makes of it: lamp colour, white balance, saturation, exposure."""
    if scene.infrared:
        picture = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
    gain = 1 + scene.phototherapy * (BLUE_LAMP_BGR - 1)
    gain = gain * (1 - scene.warmth, 1.0, 1 + scene.warmth) * scene.brightness
    picture = np.clip(picture * gain.astype(np.float32), 0, 252)
    if scene.saturation != 1:
        grey = picture.mean(axis=2, keepdims=True)
        picture = np.clip(grey + np.float32(scene.saturation) * (picture - grey), 0, 252)
    return picture


def _ellipse(scene: Scene, cx: float, cy: float, rx: float, ry: float, angle_deg: float, soft: float) -> F32:
    mask = np.zeros((scene.height, scene.width), np.float32)
    cv2.ellipse(mask, (int(cx), int(cy)), (max(2, int(rx)), max(2, int(ry))), angle_deg, 0, 360, 1.0, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(mask, (0, 0), max(0.6, soft))


def _layer(tex: F32, alpha: F32, pivot: tuple[float, float], changes: tuple[tuple[F32, str], ...] = (),
           **how: object) -> Layer:
    """Crop to where alpha is. tex, changes: (H, W, 3) over the whole picture, changes already times alpha."""
    rows, columns = np.flatnonzero(alpha.max(axis=1) > 1e-3), np.flatnonzero(alpha.max(axis=0) > 1e-3)
    top, bottom = (int(rows[0]), int(rows[-1]) + 1) if rows.size else (0, 1)
    left, right = (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 1)
    top, left = max(top - 1, 0), max(left - 1, 0)
    box = slice(top, min(bottom + 1, alpha.shape[0])), slice(left, min(right + 1, alpha.shape[1]))
    base = np.dstack([tex[box] * alpha[box][..., None], alpha[box]]).astype(np.float32)
    cropped = tuple((np.dstack([change[box], np.zeros_like(alpha[box])]).astype(np.float32), name) for change, name in changes)
    return Layer(base, cropped, (left, top), pivot, **how)  # type: ignore[arg-type]


def _skin_layer(rng: np.random.Generator, scene: Scene, alpha: F32, pivot: tuple[float, float], breathes: float,
                head_radius: float = 0.0, **how: object) -> Layer:
    """A skin part with features, shading and a perfusion map (patches of little perfusion included)."""
    colour = (SKIN_LIGHT * (1 - scene.skin_tone) + SKIN_DARK * scene.skin_tone) * rng.uniform(0.92, 1.08, 3)
    tex = _texture(rng, scene, colour, rng.uniform(0.02, 0.08))
    y, x = np.mgrid[0:scene.height, 0:scene.width].astype(np.float32)
    way = rng.uniform(0, 2 * np.pi)
    lit = ((x - pivot[0]) * np.cos(way) + (y - pivot[1]) * np.sin(way)) / scene.width
    tex = tex * np.clip(1 + rng.uniform(0, 0.8) * lit, 0.4, 1.5)[..., None]
    perfusion = np.clip(1 + 0.6 * sum(blotches(rng, scene.height, scene.width, c) for c in (2, 5)), 0.1, 2)
    if head_radius:
        size = scene.subject_frac * scene.width * 0.25
        for _ in range(int(rng.integers(2, 6))):  # eyes, mouth, hair line: dark or light, hardly perfused
            ex, ey = np.array(pivot) + rng.uniform(-0.7, 0.7, 2) * size
            feature = _ellipse(scene, ex, ey, rng.uniform(0.06, 0.25) * size, rng.uniform(0.04, 0.18) * size,
                               rng.uniform(0, 180), 1.0)[..., None]
            tex = tex * (1 - feature) + feature * tex * rng.uniform(0.3, 1.3)
            perfusion = perfusion * (1 - 0.8 * feature[..., 0])
    tex = _exposed(tex.astype(np.float32), scene)
    changes: list[tuple[F32, str]] = []
    if scene.has_pulse:
        weights = np.full(3, 0.4, np.float32) if scene.infrared else PULSE_BGR * rng.uniform(0.8, 1.2, 3)
        # per standard deviation of the wave; more blood is less light
        strength = -scene.pulse_amplitude / scene.gamma / PEAK_TO_PEAK
        changes.append((tex * (perfusion * strength)[..., None] * weights * alpha[..., None], "pulse"))
    if head_radius and scene.turn_deg:
        across = how["across"]
        slope = ((x - pivot[0]) * across[0] + (y - pivot[1]) * across[1]) / head_radius  # type: ignore[index]
        changes.append((tex * (0.3 * slope)[..., None] * alpha[..., None], "turn"))
    if head_radius and scene.gloss:  # mirrored light lies on the skin and carries no pulse
        gx, gy = np.array(pivot) + 0.4 * head_radius * np.array([np.cos(way), np.sin(way)])
        spot = _ellipse(scene, gx, gy, 0.3 * head_radius, 0.15 * head_radius, np.degrees(way) + 90, 0.1 * head_radius)
        tex = np.clip(tex + (255 * scene.gloss * scene.brightness) * spot[..., None], 0, 252)
    return _layer(tex, alpha, pivot, tuple(changes), breathes=breathes, **how)


def _cloth(rng: np.random.Generator, scene: Scene, colour: Array, contrast: float) -> F32:
    return _exposed(_texture(rng, scene, colour, contrast), scene)


def _breathing_shade(rng: np.random.Generator, scene: Scene, tex: F32, alpha: F32) -> tuple[tuple[F32, str], ...]:
    """A rising chest turns its flanks towards or away from the lamp: 0.3-3 x the relative displacement."""
    if not scene.has_breathing:
        return ()
    shading = blotches(rng, scene.height, scene.width, 3) * scene.breath_frac * rng.uniform(0.3, 3.0)
    return ((tex * (shading * alpha)[..., None], "breath"),)


def _torso_layer(rng: np.random.Generator, scene: Scene, alpha: F32, pivot: tuple[float, float]) -> Layer:
    if scene.bare_chest:
        layer = _skin_layer(rng, scene, alpha, pivot, 1.0)
        x, y = layer.corner
        box = slice(y, y + layer.base.shape[0]), slice(x, x + layer.base.shape[1])
        if not scene.has_breathing:
            return layer
        shading = blotches(rng, scene.height, scene.width, 3)[box] * scene.breath_frac * rng.uniform(0.3, 3.0)
        change = layer.base * np.dstack([shading] * 3 + [np.zeros_like(shading)])
        return replace(layer, changes=(*layer.changes, (change.astype(np.float32), "breath")))
    colour = rng.uniform(60, 235) * rng.uniform(0.7, 1.1, 3)
    tex = _cloth(rng, scene, colour, rng.uniform(0.03, 0.3))
    return _layer(tex, alpha, pivot, _breathing_shade(rng, scene, tex, alpha), breathes=1.0)


@dataclass(frozen=True)
class _Head:
    """Where the head is. centre: px. axis: unit vector from crown to chin. u, v: maps along and across, in radii."""

    centre: tuple[float, float]
    radius: float
    axis: tuple[float, float]
    u: F32
    v: F32
    soft: float

    def inside(self, distance: F32) -> F32:
        """Soft mask where a signed distance in radii is negative."""
        return np.clip(0.5 - distance * np.float32(self.radius / (2 * self.soft)), 0, 1)

    def point(self, u: float, v: float) -> tuple[int, int]:
        x = self.centre[0] + self.radius * (u * self.axis[0] - v * self.axis[1])
        y = self.centre[1] + self.radius * (u * self.axis[1] + v * self.axis[0])
        return round(x), round(y)


def _head(scene: Scene, centre: tuple[float, float], radius: float, axis: Array) -> _Head:
    y, x = np.mgrid[0:scene.height, 0:scene.width].astype(np.float32)
    dx, dy = (x - np.float32(centre[0])) / np.float32(radius), (y - np.float32(centre[1])) / np.float32(radius)
    ax, ay = np.float32(axis)
    return _Head(centre, radius, (float(axis[0]), float(axis[1])), dx * ax + dy * ay, dy * ax - dx * ay,
                 max(0.8, scene.width / 200))


def layers(rng: np.random.Generator, scene: Scene) -> list[Layer]:
    """All parts from back to front; the body anywhere in the frame and, unless upright, turned any way."""
    extra = np.random.default_rng((scene.seed, 9))  # what is new must not shift what the seed drew before
    width, height = scene.width, scene.height
    before, over = _in_front(extra, scene)
    if scene.kind in ("noise", "black"):
        return []
    if scene.kind == "empty_cot":
        return before + over
    if scene.kind == "patch":
        alpha = np.ones((height, width), np.float32)
        return [_skin_layer(rng, scene, alpha, (width / 2, height / 2), 0.0), *before, *over]
    size = scene.subject_frac * width
    turn = rng.uniform(0, 2 * np.pi)
    cx, cy = width * rng.uniform(0.35, 0.65), height * rng.uniform(0.35, 0.65)
    soft = width / 200
    if scene.kind == "object":
        alpha = _ellipse(scene, cx, cy, size / 2, size / 3, np.degrees(turn), soft)
        return [_torso_layer(rng, replace(scene, bare_chest=False), alpha, (cx, cy)), *before, *over]
    if scene.upright:
        turn = np.pi / 2 + extra.uniform(-0.15, 0.15)
    axis = np.array([np.cos(turn), np.sin(turn)])
    parts = []
    sitting = scene.upright and scene.kind == "face"
    tx, ty = np.array([cx, cy]) + axis * size * (0.1 if scene.kind == "chest" else 0.8 if sitting else 0.45)
    if scene.kind in ("newborn", "chest", "doll") or rng.random() < 0.6:
        along, across = (0.42, rng.uniform(0.6, 0.85)) if sitting else (0.5, rng.uniform(0.28, 0.4))
        alpha = _ellipse(scene, tx, ty, size * along, size * across, np.degrees(turn), soft)
        parts.append(_torso_layer(rng, scene, alpha, (float(tx), float(ty))))
    if scene.kind == "chest":
        return parts + before + over
    hx, hy = np.array([cx, cy]) - axis * size * (0.28 if scene.kind != "face" else 0.0)
    radius = size * (0.25 if scene.kind != "face" else 0.45)
    head = _head(scene, (float(hx), float(hy)), radius, axis)
    if scene.blanket:
        parts.append(_blanket(extra, scene, head, (float(tx), float(ty)), size))
    alpha = _ellipse(scene, hx, hy, radius * 1.15, radius * 0.9, np.degrees(turn), soft)
    breathes = rng.uniform(0, 0.35)
    parts.append(_skin_layer(rng, scene, alpha, head.centre, breathes, radius, moves=("body", "head"),
                             across=(-float(axis[1]), float(axis[0])), turn_px=0.12 * radius))
    parts += _on_head(extra, scene, head, parts[-1])
    if scene.kind == "newborn" and rng.random() < 0.5 and not scene.blanket:  # an arm or a leg
        lx, ly = np.array([tx, ty]) + rng.uniform(-0.4, 0.4, 2) * size
        alpha = _ellipse(scene, lx, ly, size * 0.28, size * 0.09, rng.uniform(0, 180), soft)
        parts.append(_skin_layer(rng, scene, alpha, (float(lx), float(ly)), 0.5))
    return parts + before + over


def _blanket(rng: np.random.Generator, scene: Scene, head: _Head, pivot: tuple[float, float], size: float) -> Layer:
    """A cloth from the chin down, wrapped or spread; it moves with the chest under it."""
    along, across = size * rng.uniform(0.58, 0.75) / head.radius, size * rng.uniform(0.42, 0.6) / head.radius
    middle = size * 0.75 / head.radius  # from the head's centre to the torso's
    oval = (np.sqrt(((head.u - middle) / along) ** 2 + (head.v / across) ** 2) - 1) * min(along, across)
    alpha = head.inside(np.maximum(oval, 0.75 - head.u))
    tex = _cloth(rng, scene, rng.uniform(110, 235) * rng.uniform(0.75, 1.1, 3), rng.uniform(0.08, 0.3))
    folds = np.sin(head.u * rng.uniform(1, 4) + head.v * rng.uniform(-3, 3) + 2 * blotches(rng, *alpha.shape, 4))
    tex = tex * (1 + np.float32(rng.uniform(0.03, 0.15)) * folds)[..., None]
    return _layer(tex, alpha, pivot, _breathing_shade(rng, scene, tex, alpha), breathes=1.0)


def _on_head(rng: np.random.Generator, scene: Scene, head: _Head, skin: Layer) -> list[Layer]:
    """Mouth, hair, mask, tape, tube, bonnet and pillow: each moves as the head does, features in front of it a little more."""
    if scene.kind not in HEADED:
        return []
    out = []
    how = {"moves": skin.moves, "breathes": skin.breathes, "across": skin.across}

    def add(alpha: F32, colour: Array, contrast: float, turn: float = 0.35, **more: object) -> None:
        if alpha.max() < 1e-3:
            return  # outside the picture
        tex = _cloth(rng, scene, colour, contrast)
        out.append(_layer(tex, alpha.astype(np.float32), head.centre, (), turn_px=turn * head.radius,
                          **{**how, **more}))

    oval = np.sqrt((head.u / 1.15) ** 2 + (head.v / 0.9) ** 2) - 1
    u, v = head.u, head.v
    if scene.talk:
        lips = np.sqrt(((u - 0.55) / 0.2) ** 2 + (v / 0.26) ** 2) - 1
        x, y = head.point(0.55, 0.0)
        tex = _cloth(rng, scene, np.array([45.0, 40.0, 85.0]), 0.1)
        if (mask := head.inside(lips * 0.2)).max() > 1e-3:
            out.append(_layer(tex, mask, (float(x), float(y)), (), turn_px=0.35 * head.radius, opens=True, **how))
    if scene.eye_mask:
        band = np.maximum(np.abs(u + 0.12) - rng.uniform(0.2, 0.3), oval - 0.04)
        add(head.inside(band), rng.uniform(60, 245) * rng.uniform(0.85, 1.1, 3), 0.06, 0.2)
    if scene.tape:
        for side in (-1, 1):
            a = side * rng.uniform(0.1, 0.6)
            du, dv = u - rng.uniform(0.2, 0.45), v - side * 0.42
            strip = np.maximum(np.abs(du * np.cos(a) + dv * np.sin(a)) - rng.uniform(0.08, 0.18),
                               np.abs(dv * np.cos(a) - du * np.sin(a)) - rng.uniform(0.3, 0.42))
            add(head.inside(strip), rng.uniform(150, 240) * np.array([0.8, 0.95, 1.05]), 0.04)
    if scene.tube:
        alpha = _tube(rng, scene, head)
        add(alpha, rng.uniform(110, 240) * rng.uniform(0.8, 1.15, 3), 0.08, moves=(*skin.moves, "tube"))
    if scene.hair:
        line = -rng.uniform(0.35, 0.6) + 0.15 * np.cos(3 * v) - 0.25 * v**2
        add(head.inside(np.maximum(oval - 0.08, u - line)), rng.uniform(15, 110) * np.array([0.8, 0.95, 1.1]), 0.25, 0.05)
    if scene.bonnet:
        cap = np.maximum(np.sqrt((u / 1.28) ** 2 + (v / 1.02) ** 2) - 1, u + rng.uniform(0.2, 0.45))
        add(head.inside(cap), rng.uniform(90, 235) * rng.uniform(0.6, 1.1, 3), rng.uniform(0.05, 0.25), 0.05)
    if scene.sideways:
        pillow = np.maximum(rng.uniform(-0.15, 0.3) - v * rng.choice([-1, 1]), np.hypot(u, v) - 1.6)
        add(head.inside(pillow), rng.uniform(110, 240) * rng.uniform(0.85, 1.1, 3), 0.12, 0.0, moves=(), breathes=0.0,
            across=None)
    return out


def _tube(rng: np.random.Generator, scene: Scene, head: _Head) -> F32:
    """Prongs at the nose, a hose over each cheek to the crown, one hose out of the picture."""
    mask = np.zeros((scene.height, scene.width), np.float32)
    thick = max(2, round(rng.uniform(0.09, 0.16) * head.radius))
    for side in (-1, 1):
        points = [head.point(0.25, side * 0.05), head.point(0.15, side * 0.6), head.point(-0.5, side * 0.88)]
        cv2.polylines(mask, [np.array(points, np.int32)], False, 1.0, thick, cv2.LINE_AA)
    cv2.line(mask, head.point(0.2, -0.2), head.point(0.2, 0.2), 1.0, 2 * thick, cv2.LINE_AA)
    far = 2.2 * scene.width / head.radius
    a, b = head.point(0.25, 0.0), head.point(far * rng.uniform(-0.4, 0.6), rng.choice([-1, 1]) * far)
    cv2.line(mask, a, b, 1.0, round(1.4 * thick), cv2.LINE_AA)
    return cv2.GaussianBlur(mask, (0, 0), max(0.6, head.soft / 2))


def _in_front(rng: np.random.Generator, scene: Scene) -> tuple[list[Layer], list[Layer]]:
    """What is not the subject's: a staff arm, then the pane of an incubator."""
    arm = [_arm(rng, scene)] if scene.hand_s else []
    return arm, [_pane(rng, scene)] if scene.glare else []


def _arm(rng: np.random.Generator, scene: Scene) -> Layer:
    """Sleeve, and a bare or gloved hand, as it lies when it has reached in; `away` takes it out of the picture."""
    side = min(scene.width, scene.height)
    tip = np.array([scene.width, scene.height]) * rng.uniform(0.3, 0.7, 2)
    way = rng.uniform(0, 2 * np.pi)
    along, wide = np.array([np.cos(way), np.sin(way)]), side * rng.uniform(0.09, 0.16)
    far = tip + along * 2 * scene.width
    mask = np.zeros((scene.height, scene.width), np.float32)
    ends = [tuple(int(c) for c in point) for point in (tip + along * wide, far)]
    cv2.line(mask, *ends, 1.0, max(2, int(1.5 * wide)), cv2.LINE_AA)
    cv2.ellipse(mask, tuple(int(c) for c in tip), (int(1.9 * wide), int(wide)), np.degrees(way), 0, 360, 1.0, -1, cv2.LINE_AA)
    for finger in (-0.5, 0.0, 0.5):
        end = tip - along * 2.8 * wide + np.array([-along[1], along[0]]) * finger * 1.8 * wide
        cv2.line(mask, tuple(int(c) for c in tip), tuple(int(c) for c in end), 1.0, max(2, int(0.5 * wide)), cv2.LINE_AA)
    alpha = cv2.GaussianBlur(mask, (0, 0), max(0.7, scene.width / 200))
    tone = rng.random()
    gloved = rng.random() < 0.4 and scene.hand_hr_per_min is None
    colour = rng.uniform(120, 230) * rng.uniform(0.7, 1.1, 3) if gloved else SKIN_LIGHT * (1 - tone) + SKIN_DARK * tone
    y, x = np.mgrid[0:scene.height, 0:scene.width].astype(np.float32)
    up = (x - tip[0]) * along[0] + (y - tip[1]) * along[1]
    sleeve = np.clip((up - rng.uniform(2.0, 5.0) * wide) / 3, 0, 1)[..., None].astype(np.float32)
    skin = _exposed(_texture(rng, scene, colour, 0.05), scene)
    tex = skin * (1 - sleeve) + sleeve * _cloth(rng, scene, rng.uniform(60, 220) * rng.uniform(0.6, 1.1, 3), 0.1)
    changes: tuple[tuple[F32, str], ...] = ()
    if scene.hand_hr_per_min is not None:
        strength = -rng.uniform(0.003, 0.012) / scene.gamma / PEAK_TO_PEAK
        changes = ((skin * (1 - sleeve) * alpha[..., None] * (PULSE_BGR * np.float32(strength)), "hand_pulse"),)
    away = along * 1.6 * np.hypot(scene.width, scene.height)
    return _layer(tex, alpha, (float(tip[0]), float(tip[1])), changes, moves=("hand",), away=(float(away[0]), float(away[1])))


def _pane(rng: np.random.Generator, scene: Scene) -> Layer:
    """Reflections of windows and lamps on acrylic: bright soft shapes that hide what is behind and carry no rhythm."""
    width, height = scene.width, scene.height
    mask = np.full((height, width), 0.1, np.float32)
    for _ in range(int(rng.integers(2, 5))):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        if rng.random() < 0.5:
            sides = width * rng.uniform(0.08, 0.4), width * rng.uniform(0.03, 0.15)
            box = cv2.boxPoints(((cx, cy), sides, rng.uniform(0, 180)))
            cv2.fillPoly(mask, [box.astype(np.int32)], rng.uniform(0.5, 1.0))
        else:
            mask = np.maximum(mask, rng.uniform(0.4, 1.0) * _ellipse(scene, cx, cy, width * rng.uniform(0.05, 0.2),
                                                                     width * rng.uniform(0.03, 0.1), rng.uniform(0, 180), 3))
    alpha = cv2.GaussianBlur(mask, (0, 0), width * rng.uniform(0.004, 0.02)) * np.float32(scene.glare)
    colour = rng.uniform(190, 250) * rng.uniform(0.9, 1.05, 3)
    tex = _cloth(rng, replace(scene, brightness=max(scene.brightness, 0.5)), colour, 0.1)
    room = blotches(rng, height, width, 2)
    return _layer(tex, alpha, (width / 2, height / 2), ((tex * (0.25 * room * alpha)[..., None], "room"),), moves=("pane",))
