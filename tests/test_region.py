"""Where to look: policy over the student's attention, without a student."""

from __future__ import annotations

import numpy as np
import pytest

from edge.clip import Region
from edge.records import Estimate, Waveform
from edge.region import (
    BELIEVED,
    GIVE_UP_HOPS,
    LOOK_HOPS,
    LOST_HOPS,
    MIN_SIDE_PX,
    RETRY_HOPS,
    TRIAL_S,
    RegionSearch,
)

WHOLE = Region(0, 0, 600, 480)
SIDE = 6


def wave(pulse=(), resp=()):
    """A waveform whose attention lies on these cells (row, column), or evenly on all."""
    attention = np.full((2, SIDE, SIDE), 1e-3, np.float32)
    for task, cells in enumerate((pulse, resp)):
        for cell in cells:
            attention[task][cell] = 1.0
    attention /= attention.sum(axis=(1, 2), keepdims=True)
    flat = np.zeros(30, np.float32)
    return Waveform(flat, flat, np.ones(30, bool), 1.0, 1.0, attention, 30.0, 0)


def found(hr_quality=0.0, rr_quality=0.0):
    return Estimate(150.0 if hr_quality else None, hr_quality, 45.0 if rr_quality else None, rr_quality, 0)


def proposals(search, hops, wave_, found_, region=WHOLE):
    return [search.propose(region, wave_, found_) for _ in range(hops)]


def first_proposal(wave_, found_, region=WHOLE, whole=WHOLE):
    return next((box for box in proposals(RegionSearch(whole), LOOK_HOPS, wave_, found_, region) if box), None)


def holds(box, region, cell):
    """Whether the box holds the whole of this cell of the region's attention."""
    y, x = region.y_px + cell[0] * region.h_px / SIDE, region.x_px + cell[1] * region.w_px / SIDE
    return (box.x_px <= x and x + region.w_px / SIDE <= box.x_px + box.w_px
            and box.y_px <= y and y + region.h_px / SIDE <= box.y_px + box.h_px)


def test_it_looks_for_a_while_before_it_proposes():
    boxes = proposals(RegionSearch(WHOLE), LOOK_HOPS, wave([(2, 3)]), found(0.9))
    assert boxes[:-1] == [None] * (LOOK_HOPS - 1)
    assert boxes[-1] is not None


@pytest.mark.parametrize("region", [WHOLE, Region(120, 60, 300, 300)])
@pytest.mark.parametrize("cell", [(0, 0), (2, 3), (5, 5), (0, 4)])
def test_the_box_holds_the_rhythmic_cell_and_lies_in_the_frame(region, cell):
    box = first_proposal(wave([cell]), found(0.9), region)
    assert box is not None and holds(box, region, cell)
    box.check_inside(WHOLE.w_px, WHOLE.h_px)
    assert box.w_px * box.h_px < 0.5 * region.w_px * region.h_px


def test_the_box_holds_both_rhythms_where_both_are_believed():
    seen = wave([(1, 1)], [(3, 2)])
    both = first_proposal(seen, found(0.9, 0.9))
    assert holds(both, WHOLE, (1, 1)) and holds(both, WHOLE, (3, 2))
    pulse_alone = first_proposal(seen, found(0.9, BELIEVED - 0.1))
    assert holds(pulse_alone, WHOLE, (1, 1)) and not holds(pulse_alone, WHOLE, (3, 2))


def test_what_is_not_believed_moves_nothing():
    assert proposals(RegionSearch(WHOLE), 60, wave([(2, 2)], [(2, 2)]), found(0.5, 0.5)) == [None] * 60


def test_a_box_of_nearly_everything_is_not_worth_it():
    corners = [(0, 0), (5, 5)]
    assert proposals(RegionSearch(WHOLE), 30, wave(corners, corners), found(0.9, 0.9)) == [None] * 30


def test_a_box_is_never_smaller_than_the_model_needs():
    small = Region(100, 100, 60, 60)
    assert first_proposal(wave([(2, 2)]), found(0.9), small) is None  # 48 of 60 px is no zoom
    box = first_proposal(wave([(2, 2)]), found(0.9), Region(100, 100, 120, 120))
    assert min(box.w_px, box.h_px) >= MIN_SIDE_PX


def test_a_frame_smaller_than_the_least_box_is_left_alone():
    tiny = Region(0, 0, 40, 30)
    assert first_proposal(wave([(0, 0)]), found(0.9), tiny, tiny) is None


def test_a_candidate_is_judged_once_its_window_has_filled():
    search = RegionSearch(WHOLE)
    assert search.judge(TRIAL_S - 1, found(0.5), found(0.9)) is None
    assert search.judge(TRIAL_S, found(0.5), found(0.9)) is True


@pytest.mark.parametrize(("shown", "candidate", "takes_over"), [
    (found(0.8, 0.7), found(0.8, 0.7), True),
    (found(0.8, 0.7), found(0.9, 0.68), True),
    (found(0.8, 0.7), found(0.7, 0.7), None),
    (found(0.8, 0.7), found(1.0, 0.0), None),
    (found(0.0, 0.7), found(0.9, 0.6), None),
    (found(0.1, 0.7), found(0.0, 0.9), True),
    (found(0.0, 0.0), found(0.0, 0.0), True),
])
def test_a_candidate_takes_over_only_when_nothing_is_lost(shown, candidate, takes_over):
    assert RegionSearch(WHOLE).judge(TRIAL_S, shown, candidate) is takes_over


def test_a_worse_candidate_is_dropped_and_not_tried_again_at_once():
    search = RegionSearch(WHOLE)
    seen, good = wave([(2, 3)]), found(0.9)
    assert proposals(search, LOOK_HOPS, seen, good)[-1] is not None
    verdicts = [search.judge(15.0, good, found(0.3)) for _ in range(GIVE_UP_HOPS)]
    assert verdicts == [None] * (GIVE_UP_HOPS - 1) + [False]
    assert proposals(search, RETRY_HOPS, seen, good) == [None] * RETRY_HOPS
    assert any(proposals(search, LOOK_HOPS, seen, good))


def test_every_candidate_gets_its_whole_trial():
    """A first candidate that was cut short, as after a failed inference, takes nothing from the next one's time."""
    search = RegionSearch(WHOLE)
    for _ in range(2):
        assert proposals(search, LOOK_HOPS, wave([(2, 3)]), found(0.9))[-1] is not None
        assert [search.judge(15.0, found(0.9), found(0.3)) for _ in range(GIVE_UP_HOPS - 1)] == [None] * (GIVE_UP_HOPS - 1)


def test_a_zoomed_view_that_lost_the_rhythm_asks_for_the_whole_frame():
    search = RegionSearch(WHOLE)
    zoomed = Region(100, 100, 200, 200)
    assert proposals(search, 20, wave([(2, 2)]), found(0.55), zoomed) == [None] * 20
    boxes = proposals(search, LOST_HOPS, wave(), found(0.1, 0.1), zoomed)
    assert boxes == [None] * (LOST_HOPS - 1) + [WHOLE]


def test_one_readable_rhythm_is_not_lost_and_the_whole_frame_has_nowhere_to_go():
    zoomed = Region(100, 100, 200, 200)
    assert proposals(RegionSearch(WHOLE), 20, wave(), found(0.0, 0.5), zoomed) == [None] * 20
    assert proposals(RegionSearch(WHOLE), 20, wave(), found(), WHOLE) == [None] * 20


def test_a_short_loss_is_forgiven():
    search = RegionSearch(WHOLE)
    zoomed = Region(100, 100, 200, 200)
    for _ in range(4):
        assert proposals(search, LOST_HOPS - 1, wave(), found(), zoomed) == [None] * (LOST_HOPS - 1)
        assert proposals(search, 1, wave(), found(0.5), zoomed) == [None]
