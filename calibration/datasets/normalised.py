"""A record as the student sees it: through the runtime's own preprocessing, labels beside it on the same grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.datasets.record import KINDS, ClipRecord
from edge.clip import Region, normalise_clip
from edge.records import Clip


def normalised(record: ClipRecord, fs_hz: float, size: int, region: Region | None = None,
               limit: int | None = None) -> tuple[Clip, dict[str, NDArray[np.float64]]]:
    """(clip, labels by kind, float64 (n,) at the clip's grid times). region None: the whole frame. limit: grid points.

    Only what `ClipRecord.truth` gives, so no derived label and no unaligned wave; NaN where a label has no value.
    """
    clip = normalise_clip(record.frames(), region, fs_hz, size, limit)
    n = clip.valid.size
    times_s = clip.t_end_ns / 1e9 - np.arange(n - 1, -1, -1) / fs_hz
    truths = {kind: record.truth(kind) for kind in KINDS}
    return clip, {kind: label.at(times_s) for kind, label in truths.items() if label is not None}
