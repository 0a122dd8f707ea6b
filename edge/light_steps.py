"""Finds the moments at which the whole picture's level or colour balance jumps between two frames, as no body makes it.

An exposure or white balance that moves while it should be locked, or a lamp that is switched. It is told from a body, and
from a lamp that swells or flickers, in four ways: every cell of the picture changes by about the same factor; the change is
large; it is there from one frame to the next, with nothing like it in the steps before and after (a pulse takes three
frames to rise at 30 a second); and the level stays.
"""

from __future__ import annotations

from collections import deque
from math import log

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

STEP = 0.01
"""Change of a channel's level (its logarithm) that counts. Automatic exposures move by 1/64 and more; a pulse moves the cells
of rendered bodies by up to 0.006 between frames. What is told wrongly is light, too: lamps that flicker, H.264 key frames."""

NEIGHBOUR = 1 / 3
"""The steps before and after must be smaller than this part of it (with a frame lost, a slope's step is only twice theirs)."""

STAYS = 0.7
"""Three frames after it differ from three before by at least this part of it; a flicker is gone by then."""

NEAR_S = 0.055
"""Frames further apart are not compared (so none below 18 a second): a strong pulse that rises in 0.12 s looks the same."""

LIT_COUNTS = (20.0, 240.0)
"""Cells (8-bit counts) outside these are black or saturated, and show no factor."""

_OFFSET_COUNTS = 8.0
_HISTORY = 6  # frames: three before the step, three after it


class LightSteps:
    """Cell means (S, S, 3) in, one distinct picture after the other; the size of a step out, two frames late."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, F32, list[float]]] = deque(maxlen=_HISTORY)

    def forget(self) -> None:
        """What comes next is another place of the picture."""
        self._seen.clear()

    def push(self, t_ns: int, means: F32) -> float:
        """The step's size (change of the level's logarithm), mostly 0.0: none."""
        if self._seen and t_ns - self._seen[-1][0] > NEAR_S * 1e9:
            self._seen.clear()
        level = [log(mean + _OFFSET_COUNTS) for mean in cv2.mean(means)[:3]]  # in double, at a tenth of numpy's cost
        self._seen.append((t_ns, means, level))
        if len(self._seen) < _HISTORY:
            return 0.0
        levels = [level for _, _, level in self._seen]
        # the plain mean moves with everything, and costs little: it tells when to look closer
        if max(abs(new - old) for new, old in zip(levels[3], levels[2], strict=True)) < STEP / 2:
            return 0.0
        before, (step, spread), after = (self._change(i) for i in (2, 3, 4))
        stays = np.abs(np.mean(levels[3:], axis=0) - np.mean(levels[:3], axis=0)).max()
        alone = max(before[0], after[0]) < NEIGHBOUR * step
        return step if step >= STEP and step > spread and alone and stays > STAYS * step else 0.0

    def _change(self, i: int) -> tuple[float, float]:
        """(the typical cell's change from frame i - 1 to i in the channel that changed most, how far cells differ in it)."""
        old, new = self._seen[i - 1][1], self._seen[i][1]
        level = new.mean(axis=2)
        lit = (level > LIT_COUNTS[0]) & (level < LIT_COUNTS[1])
        if not lit.any():
            return 0.0, 1.0
        change = np.log(new[lit] + np.float32(_OFFSET_COUNTS)) - np.log(old[lit] + np.float32(_OFFSET_COUNTS))
        typical = np.median(change, axis=0)
        spread = np.median(np.abs(change - typical), axis=0)
        return float(np.abs(typical).max()), float(spread.max())
