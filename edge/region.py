"""Where to look: the rhythmic region, found from the student's own attention (pure policy).

No face detector: newborns lie sideways, wear CPAP, or show only a chest. The student already says, cell by cell, where
pulse and breathing are; the search draws a box around both, asks for a candidate view of it, and lets that view take over
only when it reads at least as well. When the rhythm is lost, it asks for the whole frame again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.clip import Region
from edge.records import Estimate, Waveform

LOOK_HOPS = 8
"""Hops of attention that are averaged before a box is drawn: as many seconds as a first reading takes."""

BELIEVED = 0.6
"""Quality of an estimate from which its attention says where the rhythm is."""

CELL_SHARE = 0.35
"""A cell belongs to the box when its attention is this share of the strongest cell's."""

WORTH_ZOOMING = 0.55
"""A box larger than this share of the view gains less in signal than it risks."""

MARGIN_CELLS = 0.75
"""Added on every side of the box: the attention is coarse and newborns move."""

MIN_SIDE_PX = 48
"""Smaller regions have fewer pixels than the model has cells."""

TRIAL_S = 12.0
"""A candidate needs this much of its window before its quality compares with a full one."""

GIVE_UP_HOPS = 20
RETRY_HOPS = 30
"""A refused candidate is not tried again before this many hops."""

LOST_HOPS = 5
"""Hops without either rhythm after which a zoomed view asks for the whole frame."""


class RegionSearch:
    """Decides on candidate regions; holds what it has seen of the attention. whole: the camera's full frame."""

    def __init__(self, whole: Region) -> None:
        self._whole = whole
        self._restart()
        self._rest = 0

    def _restart(self) -> None:
        self._maps: list[tuple[NDArray[np.float32], tuple[float, float]]] = []
        self._lost = 0
        self._trial = 0

    def propose(self, region: Region, wave: Waveform, found: Estimate) -> Region | None:
        """A region worth trying instead of `region`, or None. Called once a hop while no candidate runs."""
        best = max(found.hr_quality, found.rr_quality)
        self._lost = 0 if best >= BELIEVED / 2 else self._lost + 1
        self._maps = [*self._maps[1 - LOOK_HOPS:], (wave.attention, (found.hr_quality, found.rr_quality))]
        if region != self._whole and self._lost >= LOST_HOPS:
            self._restart()
            return self._whole
        if self._rest > 0:
            self._rest -= 1
            return None
        if len(self._maps) < LOOK_HOPS:
            return None
        box = self._box(region)
        if box is None or box.w_px * box.h_px > WORTH_ZOOMING * region.w_px * region.h_px:
            return None
        self._restart()
        return box

    def judge(self, seen_s: float, shown: Estimate, candidate: Estimate) -> bool | None:
        """Whether the candidate takes over (True), is dropped (False) or goes on trying (None). Called once a hop."""
        self._trial += 1
        if seen_s < TRIAL_S:
            return None
        if self._loses_nothing(shown, candidate):
            self._restart()
            return True
        if self._trial >= GIVE_UP_HOPS:
            self._restart()
            self._rest = RETRY_HOPS
            return False
        return None

    @staticmethod
    def _loses_nothing(shown: Estimate, candidate: Estimate) -> bool:
        """Neither rhythm is read much worse, and one that is believed now stays believed."""
        pairs = ((shown.hr_quality, candidate.hr_quality), (shown.rr_quality, candidate.rr_quality))
        kept = all(new >= old - 0.05 or old < BELIEVED / 2 for old, new in pairs)
        return kept and sum(new for _, new in pairs) >= sum(old for old, _ in pairs)

    def _box(self, region: Region) -> Region | None:
        """The box around the cells that hold the believed rhythms, in frame pixels."""
        side = self._maps[0][0].shape[1]
        wanted = np.zeros((side, side), bool)
        for task in range(2):
            if np.mean([quality[task] for _, quality in self._maps]) < BELIEVED:
                continue
            attention = np.mean([cells[task] for cells, _ in self._maps], axis=0)
            wanted |= attention >= CELL_SHARE * attention.max()
        if not wanted.any():
            return None
        rows, cols = np.flatnonzero(wanted.any(1)), np.flatnonzero(wanted.any(0))
        top, bottom = max(0.0, rows[0] - MARGIN_CELLS), min(float(side), rows[-1] + 1 + MARGIN_CELLS)
        left, right = max(0.0, cols[0] - MARGIN_CELLS), min(float(side), cols[-1] + 1 + MARGIN_CELLS)
        x, w = _fit(region.x_px + left / side * region.w_px, (right - left) / side * region.w_px, self._whole.w_px)
        y, h = _fit(region.y_px + top / side * region.h_px, (bottom - top) / side * region.h_px, self._whole.h_px)
        return Region(x, y, w, h)


def _fit(start: float, length: float, limit: int) -> tuple[int, int]:
    """A stretch of at least MIN_SIDE_PX (or all there is) inside 0..limit, around the one given."""
    size = min(limit, max(MIN_SIDE_PX, round(length)))
    middle = start + length / 2
    return int(min(max(0, round(middle - size / 2)), limit - size)), int(size)
