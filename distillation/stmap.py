"""Spatio-temporal maps: a clip as two pictures whose rows are places and whose columns are time.

The pulse map holds the light (B, G, R) of each cell, the breathing map its flow (x, y) and luminance. Time is resampled by
averaging over exact, fractional spans of samples, so a map can be slowed or hastened by any factor with little aliasing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from distillation.cache import open_frames
from distillation.example import INT8_STEP

GRID = 6
ROWS = GRID * GRID
"""The cells of the student's feature map: 8 x 8 areas of the normalised frame."""

SPAN_S = 512 / 30.0
"""What a map's columns span, in seconds of the map's own time: the student's window."""


@torch.no_grad()
def spacetime_maps(frames: NDArray[np.int8] | NDArray[np.float32]) -> Tensor:
    """A normalised clip (n, 5, S, S), int8 in steps of INT8_STEP or float -> float32 (2, 3, ROWS, n)."""
    values = torch.from_numpy(np.ascontiguousarray(frames)).float()
    if frames.dtype == np.int8:
        values *= INT8_STEP
    cells = F.adaptive_avg_pool2d(values, GRID).flatten(2).permute(1, 2, 0)
    light, flow = cells[:3], cells[3:5]
    return torch.stack([light, torch.cat([flow, light.mean(0, keepdim=True)])])


def maps_of(cache_folder: Path) -> Tensor:
    """Every clip of a rendered cache: float16 (clips, 2, 3, ROWS, n), a twenty-seventh of its frames."""
    store = open_frames(cache_folder)
    maps = torch.empty((store.shape[0], 2, 3, ROWS, store.shape[1]), dtype=torch.float16)
    for row in range(store.shape[0]):
        maps[row] = spacetime_maps(np.array(store[row]))
    return maps


def resample(maps: Tensor, start: Tensor, length: Tensor, columns: int) -> Tensor:
    """(b, 3, R, n), first sample and number of samples (b,), both fractional -> (b, 3, R, columns), column means.

    A span of `length` samples becomes `columns`: twice the length doubles every frequency of the map.
    """
    n = maps.shape[-1]
    edges = start[:, None] + length[:, None] * torch.arange(columns + 1, device=maps.device)[None] / columns
    if float(edges.min()) < -1e-3 or float(edges.max()) > n + 1e-3:
        raise ValueError(f"samples {float(edges.min()):.1f} to {float(edges.max()):.1f} asked of a map of {n}")
    edges = edges.clamp(0, n)
    total = F.pad(maps.float().cumsum(-1), (1, 0))
    lower = edges.long().clamp(max=n - 1)
    part = (edges - lower)[:, None, None]
    index = lower[:, None, None].expand(-1, *maps.shape[1:3], -1)
    before = total.gather(-1, index)
    at_edges = before + part * (total.gather(-1, index + 1) - before)
    return at_edges.diff(dim=-1) / (length / columns)[:, None, None, None]


def joined(left: Tensor, right: Tensor) -> Tensor:
    """Two half maps (b, 3, R, columns / 2) side by side, each to zero mean, so that the seam is no edge."""
    return torch.cat([half - half.mean(-1, keepdim=True) for half in (left, right)], dim=-1)
