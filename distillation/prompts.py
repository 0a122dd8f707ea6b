"""What the teacher is asked about a map, as text: relations of frequency between its halves, and rates.

Both tasks have as many prompts, so that targets stack. The wording is ours; the idea of relation prompts at known ratios
and the ratios themselves are VL-phys's (Yue et al., IJCV 2025).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TASKS = ("pulse", "resp")

RATIOS = (0.25, 0.5, 0.75, 1.25, 1.5, 1.75)
"""Frequency of the left half over that of the right half."""

RATES_PER_MIN = (tuple(range(45, 246, 5)), (*range(8, 49, 2), *range(51, 109, 3)))
"""Heart and breathing rates that have a prompt. Between two of them a map belongs to both in part, so the step (half to
a third of what 17 s resolve) is no limit to what the teacher can say."""

Knowledge = dict[str, dict[str, float]]
"""What was measured of a teacher: for each task, figures by name (`distillation.teacher.measure`)."""

N_RATES = len(RATES_PER_MIN[0])

RELATION = ("the frequency of the colour rhythm in the left half of the map is {ratio} times that in the right half",
            "the frequency of the breathing motion in the left half of the map is {ratio} times that in the right half")
RATE = ("the heart rate is about {rate} beats per minute", "the breathing rate is about {rate} breaths per minute")
NONE = ("no pulse is visible in the map", "no breathing is visible in the map")


def bin_hz() -> NDArray[np.float64]:
    """(tasks, N_RATES): the rate of each prompt of `rate_prompts`."""
    return np.array(RATES_PER_MIN, np.float64) / 60


def rate_prompts(task: int) -> list[str]:
    """The N_RATES rates upwards, then that nothing is visible."""
    return [*(RATE[task].format(rate=rate) for rate in RATES_PER_MIN[task]), NONE[task]]


def relation_prompts(task: int) -> list[str]:
    """One prompt for each of RATIOS."""
    return [RELATION[task].format(ratio=ratio) for ratio in RATIOS]


def rate_labels(rates_hz: NDArray[np.float64], task: int) -> NDArray[np.float32]:
    """(n,) rates, NaN for a rhythm that is not visible -> (n, N_RATES + 1) rows that sum to 1.

    A rate is shared by the two prompts beside it, so that their mean is the rate. Rates outside the prompts go to the
    nearest.
    """
    bins = bin_hz()[task]
    labels = np.zeros((rates_hz.size, N_RATES + 1), np.float32)
    rows = np.arange(rates_hz.size)
    seen = np.isfinite(rates_hz)
    place = np.interp(np.where(seen, rates_hz, bins[0]), bins, np.arange(N_RATES))
    lower = np.minimum(place.astype(np.intp), N_RATES - 2)
    labels[rows, lower] = 1 - (place - lower)
    labels[rows, lower + 1] = place - lower
    labels[~seen] = 0
    labels[~seen, N_RATES] = 1
    return labels


def words(prompt: str) -> list[str]:
    """A prompt as tokens: words whole, numbers digit by digit, so that 145 is read beside 140 and 150."""
    tokens: list[str] = []
    for word in prompt.lower().split():
        tokens.extend(word if word[0].isdigit() else [word])
    return tokens


def vocabulary() -> list[str]:
    """Every token that a prompt can hold, sorted."""
    everything = [p for task in range(len(TASKS)) for p in (*rate_prompts(task), *relation_prompts(task))]
    return sorted({token for prompt in everything for token in words(prompt)} | set("0123456789."))


class TeacherError(ValueError):
    """The teacher cannot be loaded, does not know enough to teach, or its targets belong to another teacher or clips."""
