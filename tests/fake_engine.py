"""An engine of a few numpy lines and pictures it can read, so that the chain is tested without the student's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.pipeline import normalisation
from edge.records import Frame
from engines.errors import EngineError
from engines.sidecar import ModelSpec

F32 = NDArray[np.float32]
SIDE = 4
NOISE = 0.02
"""Size of a cell's series (log units x 20) above which the fake believes that a rhythm is there."""


class FakeEngine:
    """Cell means as features; less green is the pulse, more red is the breath.

    seen: every frame that went through the stem, in order. fail_at: numbers of the stem calls that raise EngineError.
    """

    def __init__(self, fail_at: Iterable[int] = (), **changed: object) -> None:
        fields = {"name": "fake", "fs_hz": 30.0, "window": 512, "size": 4 * SIDE, "channels": 5, "cells": SIDE**2,
                  "features": 5, "normalisation": normalisation(), "files": {}, "folder": Path()}
        self.spec = ModelSpec(**(fields | changed))  # type: ignore[arg-type]
        self.seen: list[F32] = []
        self.stem_calls = 0
        self._fail_at = frozenset(fail_at)

    def stem(self, frames: F32) -> F32:
        self.stem_calls += 1
        if self.stem_calls in self._fail_at:
            raise EngineError(f"stem call {self.stem_calls} was told to fail")
        self.seen.extend(frames)
        n = len(frames)
        return frames.reshape(n, 5, SIDE, 4, SIDE, 4).mean(axis=(3, 5)).reshape(n, 5, SIDE**2).transpose(0, 2, 1)

    def head(self, features: F32, mask: F32) -> tuple[F32, F32, F32]:
        waves, presence, attention = [], [], []
        for channel, sign in ((1, -1.0), (2, 1.0)):
            series = features[..., channel] * mask[:, None]
            power = series.var(axis=0)
            attention.append((power + 1e-9) / (power + 1e-9).sum())
            wave = sign * series.mean(axis=1)
            wave = (wave - wave[mask > 0].mean()) * mask if mask.any() else wave
            presence.append(float(np.sqrt(power.max()) > NOISE))
            waves.append(wave / max(float(wave.std()), 1e-6))
        return np.stack(waves).astype(np.float32), np.array(presence, np.float32), np.stack(attention).astype(np.float32)


def textured(height: int = 48, width: int = 64, level: float = 120.0, seed: int = 0) -> NDArray[np.float64]:
    """A still picture (H, W, 3) in counts, not yet rounded: its texture dithers, so that cell means move smoothly."""
    return np.random.default_rng(seed).uniform(0.8, 1.2, (height, width, 3)) * level


def rhythm(t_s: float, per_min: float | None, size: float = 0.02) -> float:
    return 0.0 if per_min is None else size * np.sin(2 * np.pi * per_min / 60 * t_s)


def picture(still: NDArray[np.float64], t_s: float, hr: float | None, rr: float | None,
            where: tuple[slice, slice] | None = None) -> NDArray[np.uint8]:
    """`still` with a pulse in green and a breath in red, in the part `where` (None: a body's, the middle), and a count of noise
    as a sensor has."""
    if where is None:
        height, width = still.shape[:2]
        where = slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4)
    now = still.copy()
    now[where + (1,)] *= 1 - rhythm(t_s, hr)
    # a chest is a part of the picture: light that swells everywhere would be a lamp
    now[where + (2,)] *= 1 + rhythm(t_s, rr) * (np.arange(now[where].shape[1]) < 0.6 * now[where].shape[1])
    now += np.random.default_rng(round(t_s * 1e6)).normal(0, 1, (now.shape[0], 1, 3))
    return now.round().clip(0, 255).astype(np.uint8)


def frames(times_s: Iterable[float], hr: float | None = 150.0, rr: float | None = 45.0,
           still: NDArray[np.float64] | None = None,
           change: Callable[[float, NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
           where: tuple[slice, slice] | None = None) -> Iterator[Frame]:
    """Frames at these times (from 0); change replaces a picture, given its time. where: as picture's."""
    still = textured() if still is None else still
    for seq, t_s in enumerate(times_s):
        bgr = picture(still, t_s, hr, rr, where)
        yield Frame(seq, round(t_s * 1e9), bgr if change is None else change(t_s, bgr))


def at_fps(fps: float, seconds: float, start_s: float = 0.0) -> NDArray[np.float64]:
    return start_s + np.arange(round(fps * seconds)) / fps
