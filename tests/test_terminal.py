"""The display: dashes, or a number that was really sent as showable and is at most 5 s old. The names are the rules."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from firmware_bridge import dump, terminal
from firmware_bridge.frame import Sender, cobs_decode, cobs_encode, encode
from firmware_bridge.link import Link
from firmware_bridge.messages import Bye, Hello, Status, Vitals, Wave
from firmware_bridge.painter import MIN_SIZE, _big, paint, plain_line
from firmware_bridge.port import open_pty
from firmware_bridge.rules import DisplayRules
from firmware_bridge.schema import NO_AGE, NO_RATE, Channel, Flags, ScreenMode, Tech, VitalState
from firmware_bridge.transmitter import FileLink, Transmitter
from tests.supervised import OwnTime, until

pytestmark = pytest.mark.alone  # waits and timeouts in real time

SHOWN = Vitals(1432, 418, VitalState.VALID, VitalState.VALID, 88, 75, 3, 5, 8, 16)
VALID, QUESTIONABLE = VitalState.VALID, VitalState.QUESTIONABLE
BAD = b"\0\x05broken\0"


def no_number(state: VitalState, tech: int = 0) -> Vitals:
    return Vitals(NO_RATE, NO_RATE, state, state, 10, 10, 3, 3, 8, 16, tech)


class Bedside:
    """A camera unit, a wire and a display, each with its own idea of the time."""

    def __init__(self, unit_ms: int = 77_000, display_ms: int = 5_000) -> None:
        self.now_ms = display_ms  # the display's clock drives the scene
        self.unit_ahead_ms = unit_ms - display_ms
        self.rules = DisplayRules(self.now_ms)
        self.sender = self.restart()

    def restart(self, flags: int = 0, session: int | None = None) -> Sender:
        self.sender = Sender(lambda: (self.now_ms + self.unit_ahead_ms) * 1_000_000, flags, session)
        return self.sender

    def wire(self, message=SHOWN) -> bytes:
        return self.sender.encode(message)

    def send(self, message=SHOWN) -> None:
        self.rules.receive(self.wire(message), self.now_ms)

    def run(self, seconds: float, message=SHOWN, period_ms: int = 500) -> None:
        """VITALS every half second, the first at once."""
        for _ in range(round(1000 * seconds / period_ms)):
            self.send(message)
            self.now_ms += period_ms

    @property
    def screen(self):
        return self.rules.screen(self.now_ms)

    @property
    def text(self) -> tuple[str, str, str]:
        screen = self.screen
        return str(screen.pr), str(screen.rr), screen.message


@pytest.fixture
def bedside():
    """Numbers on the glass, the newest VITALS 0 ms old."""
    bedside = Bedside()
    bedside.run(2)
    bedside.send()
    assert bedside.text == ("143", "42", "")
    return bedside


# --- rule 1 ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("state", [s for s in VitalState if not s.shows_number])
def test_states_without_a_number_show_dashes_and_a_reason(bedside, state):
    bedside.send(no_number(state))
    screen = bedside.screen
    assert (str(screen.pr), str(screen.rr)) == ("---", "---") and screen.pr.reason and screen.rr.reason


def test_questionable_carries_a_question_mark(bedside):
    bedside.send(replace(SHOWN, pr_state=QUESTIONABLE, tech=Tech.MOTION))
    screen = bedside.screen
    assert (str(screen.pr), screen.pr.reason, str(screen.rr), screen.rr.reason) == ("143?", "MOTION", "42", "")


@pytest.mark.parametrize("pr_x10, rr_x10, expected", [
    (299, 19, ("---", "---")), (300, 20, ("30", "2")), (3000, 1500, ("300", "150")), (3001, 1501, ("---", "---")),
    (1, 1, ("---", "---")), (65534, 65534, ("---", "---")), (1435, 425, ("144", "43")), (1434, 424, ("143", "42")),
])
def test_numbers_outside_what_may_be_painted_are_dashes(bedside, pr_x10, rr_x10, expected):
    bedside.send(replace(SHOWN, pr_x10=pr_x10, rr_x10=rr_x10))
    assert bedside.text[:2] == expected
    assert bedside.screen.pr.reason == ("OUT OF RANGE" if expected[0] == "---" else "")


def test_age_counts_on_while_nothing_newer_comes(bedside):
    bedside.send(replace(SHOWN, pr_age_ds=30, rr_age_ds=10))
    bedside.now_ms += 2000
    assert bedside.text[:2] == ("143", "42")
    bedside.now_ms += 1
    assert bedside.text[:2] == ("---", "42")
    assert bedside.screen.pr.reason == "NO RECENT PICTURE"


def test_lag_counts_as_age(bedside):
    late = bedside.wire(replace(SHOWN, pr_age_ds=45))
    bedside.now_ms += 501
    bedside.rules.receive(late, bedside.now_ms)
    assert bedside.text[:2] == ("---", "42")


def test_unknown_age_is_too_old(bedside):
    bedside.send(replace(SHOWN, pr_age_ds=NO_AGE))
    assert bedside.text[:2] == ("---", "42")


# --- rule 2 ---------------------------------------------------------------------------------------------------------

def test_numbers_start_after_two_seconds_in_step_with_real_time():
    bedside = Bedside()
    shown_at = None
    for ms in range(0, 4000, 100):
        if ms % 500 == 0:
            bedside.send()
        if bedside.screen.mode is ScreenMode.LIVE:
            shown_at = ms
            break
        assert bedside.text == ("---", "---", "SYNCHRONISING")
        bedside.now_ms += 100
    assert shown_at == 2000


@pytest.mark.parametrize("lag_ms, shown", [(1000, True), (1001, False)])
def test_a_frame_later_than_one_second_is_not_shown(bedside, lag_ms, shown):
    wire = bedside.wire()
    bedside.now_ms += lag_ms
    bedside.rules.receive(wire, bedside.now_ms)
    assert bedside.text == (("143", "42", "") if shown else ("---", "---", "DATA DELAYED"))
    bedside.send()
    assert bedside.text == ("143", "42", "")


@pytest.mark.parametrize("display_was_on", [True, False])
@pytest.mark.parametrize("pace", [1.2, 2.4, 20, 1e6], ids=["1.2 x", "9600 baud", "115200 baud", "at once"])
def test_a_backlog_of_200_s_shows_nothing_stale(pace, display_was_on):
    """Nobody reads for 200 s; then the line drains `pace` times as fast as the unit, which goes on, fills it."""
    bedside = Bedside()
    if display_was_on:
        bedside.run(5)
        assert bedside.screen.mode is ScreenMode.LIVE
    waiting: deque[bytes] = deque()
    credit, shown_again_ms, drained_ms = 0.0, None, None
    for step in range(20_000):
        if step % 5 == 0:
            waiting.append(bedside.wire())
        if step == 2000 and not display_was_on:
            bedside.rules = DisplayRules(bedside.now_ms)
        if step >= 2000:
            credit = credit + pace * 0.2 if waiting else 0.0
            while waiting and credit >= 1:
                bedside.rules.receive(waiting.popleft(), bedside.now_ms)
                credit -= 1
            if not waiting and drained_ms is None:
                drained_ms = bedside.now_ms
        screen = bedside.screen
        if screen.pr.x10 != NO_RATE:
            assert bedside.now_ms - (screen.host_t_ms - bedside.unit_ahead_ms) <= 5000
            if step > 2000:
                shown_again_ms = bedside.now_ms
                break
        bedside.now_ms += 100
    # A display that was on knows the lag and shows again as soon as it is small; another one settles first.
    assert shown_again_ms is not None and shown_again_ms - (drained_ms or shown_again_ms) <= 3000


def test_a_burst_followed_by_silence_never_shows():
    bedside = Bedside()
    waiting = b""
    for _ in range(400):
        waiting += bedside.wire()
        bedside.now_ms += 500
    bedside.rules = DisplayRules(bedside.now_ms)
    bedside.rules.receive(waiting, bedside.now_ms)
    for _ in range(60):
        assert bedside.text[:2] == ("---", "---")
        bedside.now_ms += 100


def test_a_delay_that_suddenly_shrinks_gives_itself_away():
    """A constant delay from the first frame on cannot be seen; when it goes, what came before is known to be old."""
    bedside = Bedside()
    waiting = deque()
    for _ in range(40):
        waiting.append(bedside.wire())
        bedside.now_ms += 500
    for _ in range(10):
        bedside.now_ms += 500
        bedside.rules.receive(waiting.popleft(), bedside.now_ms)
    assert bedside.screen.mode is ScreenMode.LIVE
    while waiting:
        bedside.now_ms += 100
        bedside.rules.receive(waiting.popleft(), bedside.now_ms)
        assert bedside.text == ("---", "---", "SYNCHRONISING")


def test_two_single_frames_that_were_late_by_the_same_time_prove_nothing():
    bedside = Bedside()
    for _ in range(2):
        wire = bedside.wire()
        bedside.now_ms += 33_000
        bedside.rules.receive(wire, bedside.now_ms)
        assert bedside.text == ("---", "---", "SYNCHRONISING")


@pytest.mark.parametrize("ppm", [-200, 200])
def test_clocks_that_drift_apart_do_not_darken_the_display(ppm):
    bedside = Bedside()
    bedside.run(3)
    start_ms = bedside.now_ms
    for _ in range(4 * 3600 * 1000 // 2500):
        bedside.now_ms += 2500
        bedside.unit_ahead_ms = 72_000 - (bedside.now_ms - start_ms) * ppm // 1_000_000
        bedside.send()
        assert bedside.screen.mode is ScreenMode.LIVE


def test_the_unit_s_clock_may_wrap():
    bedside = Bedside(unit_ms=2**32 - 3_000)
    bedside.run(3)
    for _ in range(20):
        bedside.send()
        assert bedside.text == ("143", "42", "")
        bedside.now_ms += 500


# --- rule 3 ---------------------------------------------------------------------------------------------------------

def test_three_seconds_without_vitals_blank_the_numbers(bedside):
    bedside.now_ms += 2999
    assert bedside.text == ("143", "42", "")
    bedside.now_ms += 1
    assert bedside.text == ("---", "---", "CAMERA LINK LOST")


def test_waves_do_not_keep_numbers_alive_and_the_trace_goes_with_them(bedside):
    for n in range(16):
        bedside.send(Wave(5 * n, Channel.PULSE, 25, (50,) * 5))
        assert (bedside.screen.pulse != ()) == (n < 15)
        bedside.now_ms += 200
    assert bedside.text == ("---", "---", "CAMERA LINK LOST")


def test_before_anything_comes_the_display_waits():
    assert Bedside().text == ("---", "---", "WAITING FOR CAMERA UNIT")


# --- rule 4 ---------------------------------------------------------------------------------------------------------

def test_three_bad_frames_in_ten_seconds_are_a_link_fault_until_five_good_ones(bedside):
    for after_ms in (0, 5000, 5000):
        bedside.now_ms += after_ms
        bedside.rules.receive(BAD, bedside.now_ms)
        bedside.send()
    assert bedside.text == ("---", "---", "LINK FAULT")
    bedside.now_ms += 200
    for _ in range(3):
        bedside.send(Wave(0, Channel.PULSE, 25, ()))
    assert bedside.text == ("---", "---", "LINK FAULT")
    bedside.send()
    assert bedside.text == ("143", "42", "")
    bedside.rules.receive(BAD, bedside.now_ms)
    assert bedside.text == ("143", "42", ""), "a cleared fault starts with a clean sheet"


def test_a_bad_frame_among_the_five_starts_the_count_anew(bedside):
    for _ in range(3):
        bedside.rules.receive(BAD, bedside.now_ms)
    for _ in range(4):
        bedside.send()
    bedside.rules.receive(BAD, bedside.now_ms)
    for _ in range(4):
        bedside.send()
    assert bedside.text[2] == "LINK FAULT"
    bedside.send()
    assert bedside.text[2] == ""


def test_three_bad_frames_in_more_than_ten_seconds_are_none(bedside):
    for _ in range(6):
        bedside.rules.receive(BAD, bedside.now_ms)
        for _ in range(10):
            bedside.now_ms += 501
            bedside.send()
    assert bedside.text == ("143", "42", "")


def test_a_wrong_baud_rate_reads_link_fault():
    bedside = Bedside()
    bedside.rules.receive(random.Random(1).randbytes(5000), bedside.now_ms)
    assert bedside.text == ("---", "---", "LINK FAULT")


# --- rule 5 ---------------------------------------------------------------------------------------------------------

def test_a_new_session_blanks_first_and_forgets(bedside):
    bedside.send(Hello(product="old unit"))
    bedside.send(Wave(0, Channel.PULSE, 25, (50,) * 5))
    assert bedside.screen.product == "old unit" and bedside.screen.pulse
    bedside.restart()
    bedside.send()
    screen = bedside.screen
    assert bedside.text == ("---", "---", "SYNCHRONISING") and screen.product == "" and screen.pulse == ()
    bedside.run(3)
    assert bedside.text[:2] == ("143", "42")


def test_doubled_and_older_frames_are_dropped(bedside):
    old = bedside.wire(replace(SHOWN, pr_x10=1000))
    bedside.send()
    bedside.rules.receive(old, bedside.now_ms)
    assert bedside.text[:2] == ("143", "42") and bedside.rules.late == 1
    new = bedside.wire()
    bedside.rules.receive(new + new, bedside.now_ms)
    assert bedside.rules.late == 2
    bedside.now_ms += 2900
    bedside.rules.receive(new, bedside.now_ms)  # a frame played again does not prolong anything
    bedside.now_ms += 100
    assert bedside.text == ("---", "---", "CAMERA LINK LOST")


def test_gaps_in_seq_are_counted(bedside):
    bedside.wire(), bedside.wire()
    bedside.send()
    assert bedside.rules.lost == 2


def test_the_same_unit_is_taken_again_after_half_an_hour_unplugged(bedside):
    """seq wrapped into its "older" half meanwhile."""
    for _ in range(40_000):
        bedside.sender._seq = bedside.sender._seq + 1 & 0xFFFF
    bedside.now_ms += 1_800_000
    bedside.run(3)
    assert bedside.text[:2] == ("143", "42")


def test_after_hours_of_silence_the_display_settles_anew(bedside):
    bedside.now_ms += 3 * 3_600_000
    bedside.unit_ahead_ms -= 5000  # crystals
    bedside.send()
    assert bedside.text[2] == "SYNCHRONISING"
    bedside.run(3)
    assert bedside.text[:2] == ("143", "42")


# --- rule 6 and the rest --------------------------------------------------------------------------------------------

def test_the_alive_mark_moves_only_when_bytes_were_looked_at_and_the_screen_made(bedside):
    first = bedside.screen.alive
    assert bedside.screen.alive == first, "painting alone"
    bedside.rules.receive(b"", bedside.now_ms)
    bedside.rules.receive(b"", bedside.now_ms)
    assert bedside.screen.alive == first + 1, "looking alone twice, then painting"


def raw(message: Vitals, bedside: Bedside, ver: int = 1, flags: int = 0, kind: int | None = None) -> bytes:
    """A frame that this version cannot make."""
    body = bytearray(cobs_decode(bedside.wire(message)[1:-1])[:-4])
    body[0], body[1], body[2] = ver, body[1] if kind is None else kind, flags
    return b"\0" + cobs_encode(bytes(body) + struct.pack("<I", zlib.crc32(body))) + b"\0"


@pytest.mark.parametrize("change", [{"ver": 2}, {"flags": 0x10}, {"flags": 0x80}])
def test_what_is_not_understood_must_not_be_shown(bedside, change):
    bedside.rules.receive(raw(SHOWN, bedside, **change), bedside.now_ms)
    assert bedside.text == ("---", "---", "DISPLAY UPDATE REQUIRED")
    bedside.now_ms += 3000
    assert bedside.text == ("---", "---", "CAMERA LINK LOST")


def test_an_unknown_message_type_harms_nothing(bedside):
    bedside.rules.receive(raw(SHOWN, bedside, kind=0x33), bedside.now_ms)
    assert bedside.text == ("143", "42", "") and bedside.rules.lost == 0


def test_a_display_s_own_status_coming_back_harms_nothing(bedside):
    echo = encode(bedside.rules.status(bedside.now_ms), session=99, seq=1, t_ms=1)
    bedside.rules.receive(echo, bedside.now_ms)
    assert bedside.text == ("143", "42", "")


def test_bye_blanks_at_once_and_stays_until_vitals_come_again(bedside):
    bedside.send(Bye())
    assert bedside.text == ("---", "---", "MONITORING STOPPED")
    bedside.now_ms += 60_000
    assert bedside.text == ("---", "---", "MONITORING STOPPED")
    bedside.restart()
    bedside.run(3)
    assert bedside.text[:2] == ("143", "42")


def test_one_demonstration_frame_marks_the_whole_session(bedside):
    bedside.rules.receive(raw(SHOWN, bedside, flags=Flags.DEMO), bedside.now_ms)
    bedside.run(3)
    assert bedside.screen.banners == ("DEMO - NOT PATIENT DATA",)
    bedside.restart(Flags.INVESTIGATIONAL)
    bedside.send()
    assert bedside.screen.banners == ("INVESTIGATIONAL - NOT FOR DIAGNOSIS OR ALARMS",)


def test_before_a_unit_speaks_the_display_calls_itself_investigational():
    assert Bedside().screen.banners == ("INVESTIGATIONAL - NOT FOR DIAGNOSIS OR ALARMS",)


@pytest.mark.parametrize("tech, words", [
    (Tech.MOTION | Tech.LOW_SIGNAL, "MOTION"), (Tech.SUBJECT_LOST | Tech.MOTION, "BABY NOT IN VIEW"),
    (Tech.NO_CAMERA | Tech.SUBJECT_LOST, "NO CAMERA"), (1 << 20 | Tech.MOTION, "CHECK CAMERA UNIT"), (0, ""),
])
def test_the_most_important_condition_is_put_in_words(bedside, tech, words):
    bedside.send(no_number(VitalState.INVALID, int(tech)))
    screen = bedside.screen
    assert screen.message == words and screen.pr.reason == (words or "NO RELIABLE SIGNAL")


def test_gaps_in_a_wave_stay_gaps(bedside):
    bedside.send(Wave(0, Channel.RESP, 25, (10, 20, -128, 30, 40)))
    bedside.send(Wave(7, Channel.RESP, 25, (50,) * 3))
    assert bedside.screen.resp[-10:] == (10, 20, None, 30, 40, None, None, 50, 50, 50)
    bedside.send(Wave(10, Channel.RESP, 25, ()))
    bedside.send(Wave(9, Channel.RESP, 25, (70,) * 5))  # overlaps by one, as a rounded clock may
    assert bedside.screen.resp[-7:] == (50, 50, 50, 70, 70, 70, 70)
    bedside.now_ms += 200 + 400 + 1000  # 25 samples overdue, over the packet's own length and the slack
    assert bedside.screen.resp[-26:] == (70,) + (None,) * 25
    bedside.send(Wave(2, Channel.RESP, 25, (60,)))  # jumps back: a new beginning
    assert [s for s in bedside.screen.resp if s is not None] == [60]


def test_status_reports_what_is_on_the_glass(bedside):
    bedside.send(replace(SHOWN, pr_state=QUESTIONABLE))
    screen = bedside.screen
    status = bedside.rules.status(bedside.now_ms)
    assert (status.shown_pr_x10, status.shown_rr_x10, status.shown_state) == (1432, 418, 0b0110)
    assert (status.last_session, status.last_seq) == (bedside.sender.session, bedside.sender._seq - 1)
    assert screen.mode is ScreenMode.LIVE
    bedside.send(Bye())
    assert bedside.rules.status(bedside.now_ms).shown_pr_x10 == 1432, "not painted yet"
    assert bedside.screen.mode is ScreenMode.STOPPED
    status = bedside.rules.status(bedside.now_ms)
    assert (status.shown_pr_x10, status.shown_state) == (NO_RATE, ScreenMode.STOPPED << 4)


# --- the one aim, under any order of faults ---------------------------------------------------------------------------

class Ward(RuleBasedStateMachine):
    """Random faults; every number sent is unique, so that whatever is on the glass can be traced to its frame."""

    seen_numbers = 0

    def __init__(self) -> None:
        super().__init__()
        self.bedside = Bedside()
        self.queue: list[bytes] = []  # written by the unit, not delivered yet
        self.sent_ms: dict[int, int] = {}
        self.value = 400
        self.time_passes(5)  # numbers are on the glass when the first fault comes

    def vitals(self) -> None:
        self.value = 400 + (self.value - 400 + 10) % 2600
        shown = self.value % 7 != 0
        state = QUESTIONABLE if self.value % 3 == 0 else VALID
        message = replace(SHOWN, pr_x10=self.value, pr_state=state) if shown else no_number(VitalState.SEARCHING)
        if shown:
            self.sent_ms[self.value // 10] = self.bedside.now_ms
        else:
            self.sent_ms.pop(self.value // 10, None)
        self.queue.append(self.bedside.wire(message))

    def deliver(self) -> None:
        for frame in self.queue:
            self.bedside.rules.receive(frame, self.bedside.now_ms)
        self.queue.clear()

    @rule(halves=st.integers(1, 12))
    def time_passes(self, halves: int) -> None:
        for _ in range(halves):
            self.vitals()
            self.deliver()
            self.bedside.now_ms += 250
            self.check()
            self.bedside.now_ms += 250

    @rule(seed=st.integers(0, 2**16))
    def corruption(self, seed: int) -> None:
        self.vitals()
        frame = bytearray(self.queue.pop())
        rng = random.Random(seed)
        for _ in range(rng.randint(1, 3)):
            frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
        self.queue.append(bytes(frame))
        self.deliver()

    @rule()
    def loss(self) -> None:
        self.vitals()
        self.queue.pop()

    @rule()
    def doubling(self) -> None:
        self.vitals()
        self.queue.append(self.queue[-1])
        self.deliver()

    @rule(seconds=st.integers(1, 60), drain_ms=st.sampled_from([0, 5, 40, 100, 400, 430]))
    def stall_then_backlog(self, seconds: int, drain_ms: int) -> None:
        for _ in range(2 * seconds):
            self.vitals()
            self.bedside.now_ms += 500
            self.check()
        for frame in self.queue:
            self.bedside.rules.receive(frame, self.bedside.now_ms)
            self.check()
            self.bedside.now_ms += drain_ms
        self.queue.clear()

    @rule(milliseconds=st.integers(1, 8000))
    def silence(self, milliseconds: int) -> None:
        self.bedside.now_ms += milliseconds

    @rule()
    def restart(self) -> None:
        self.queue.clear()
        self.bedside.unit_ahead_ms += 12_345_678
        self.bedside.restart()

    @rule()
    def display_restart(self) -> None:
        self.bedside.rules = DisplayRules(self.bedside.now_ms)

    @rule(data=st.binary(max_size=60))
    def garbage(self, data: bytes) -> None:
        self.bedside.rules.receive(data, self.bedside.now_ms)

    @invariant()
    def check(self) -> None:
        text = self.bedside.screen.pr.text
        if text != "---":
            Ward.seen_numbers += 1
            assert int(text) in self.sent_ms, f"{text} was never sent as showable"
            assert self.bedside.now_ms - self.sent_ms[int(text)] <= 5000, f"{text} is stale"


def test_on_the_glass_are_dashes_or_a_number_really_sent_at_most_5_s_ago():
    Ward.seen_numbers = 0
    run_state_machine_as_test(Ward, settings=settings(max_examples=60, stateful_step_count=25, deadline=None,
                                                      derandomize=True))
    assert Ward.seen_numbers > 500, "too few numbers were on the glass for this to mean anything"


@pytest.mark.soak
def test_the_same_for_two_thousand_random_wards():
    run_state_machine_as_test(Ward, settings=settings(max_examples=2000, stateful_step_count=40, deadline=None))


# --- the painter ------------------------------------------------------------------------------------------------------

def plain(lines: list[str]) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]


@pytest.mark.parametrize("size", [MIN_SIZE, (80, 24), (120, 34), (200, 60)])
@pytest.mark.parametrize("demo", [False, True])
def test_the_painted_screen_fits_its_size(bedside, size, demo):
    bedside.send(Wave(0, Channel.PULSE, 25, tuple(range(-100, 0, 1))))
    if demo:
        bedside.rules.receive(raw(SHOWN, bedside, flags=Flags.DEMO), bedside.now_ms)
    lines = plain(paint(bedside.screen, *size, "/dev/display"))
    assert len(lines) <= size[1] and {len(line) for line in lines} == {size[0]}
    text = "\n".join(lines)
    assert "PR camera" in text and "bpm" in text and "RR camera" in text and "/min" in text and "avg 8 s" in text
    assert not re.search(r"\bHR\b", text), "an optical pulse is never labelled HR"
    if demo:
        banner = next(n for n, line in enumerate(lines) if "DEMO" in line)
        assert "NOT PATIENT DATA" in lines[banner] and (size[1] // 10 + 1) * 10 >= size[1]


def test_red_and_flashing_are_kept_for_alarms(bedside):
    for _ in range(3):
        codes = re.findall(r"\x1b\[([0-9;]*)m", "".join(paint(bedside.screen, 80, 24, "x")))
        used = {int(part) for code in codes for part in code.split(";")}
        assert not used & {5, 6, 31, 41, 91, 101}
        bedside.rules.receive(BAD, bedside.now_ms)


@pytest.mark.parametrize("rows", range(3, 9))
def test_no_digit_looks_like_another(rows):
    faces = {c: tuple(_big(c, rows)) for c in "0123456789-?"}
    assert len(set(faces.values())) == 12
    assert all(set("".join(face)) > {" "} or len(set("".join(face))) > 1 for face in faces.values()), "blank or solid"


def test_dashes_are_painted_without_any_digit(bedside):
    bedside.now_ms += 3000
    assert bedside.screen.pr.text == "---"
    box = [line[-30:] for line in plain(paint(bedside.screen, 80, 24, "x"))[:-1]]
    assert not re.search(r"\d", "".join(box))
    assert [line.replace(" ", "") for line in _big("---", 5)].count("") >= 3, "dashes fill the middle only"


def test_the_plain_line_says_it_all(bedside):
    bedside.send(replace(SHOWN, pr_state=QUESTIONABLE, tech=Tech.MOTION))
    text = plain_line(bedside.screen, 12.3)
    assert re.search(r"12\.3 s +PR +143\? bpm q5/5 avg 8 s +\(MOTION\) +RR +42 /min q4/5 avg 16 s +MOTION", text)


# --- the command ------------------------------------------------------------------------------------------------------

def command(module, *argv: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.main(parser.parse_args(list(argv)))


@pytest.fixture
def recording(tmp_path):
    """20 s of wire: 5 s of PR 143, 5 s of searching, silence for 6 s, 4 s of PR 143, BYE."""
    now_ms = [1000]
    file = tmp_path / "wire.bin"
    sender = Sender(lambda: now_ms[0] * 1_000_000, Flags.INVESTIGATIONAL)
    with Transmitter(sender, [FileLink(file)], Hello(product="test"), clock=lambda: now_ms[0] * 1_000_000) as wire:
        for half in range(40):
            if not 20 <= half < 32:
                wire.send(no_number(VitalState.SEARCHING) if 10 <= half < 20 else SHOWN)
            now_ms[0] += 500
    return file


def test_a_recording_is_replayed_on_the_unit_s_clock(recording, tmp_path, capsys):
    out = tmp_path / "summary.json"
    assert command(terminal, str(recording), "--fast", "--summary-json", str(out)) == 0
    summary = json.loads(out.read_text())
    assert summary["duration_s"] == pytest.approx(20, abs=0.2)
    assert summary["pr_shown_fraction"] == pytest.approx((3 + 4) / 20, abs=0.02)
    assert summary["first_pr_s"] == pytest.approx(2.0, abs=0.15)
    assert summary["mode_s"]["LINK_LOST"] == pytest.approx(3.5, abs=0.2)  # 9.5 s + 3.0 s to 16 s
    assert summary["frames"]["ok"] == 32 and summary["frames"]["bad_crc"] == 0
    assert [c["pr"] for c in summary["changes"] if c["pr"] != "---"] == ["143", "143"]
    assert summary["changes"][2]["host_t_ms"] == 3000
    assert summary["last"]["mode"] == "STOPPED"
    assert "PR shown 34 %" in capsys.readouterr().out


def test_a_paced_replay_takes_its_time_and_stops_when_told(recording, capsys):
    start = time.monotonic()
    assert command(terminal, str(recording), "--plain", "--seconds", "0.8") == 0
    assert 0.7 < time.monotonic() - start < 10  # all of it would take 20
    assert "SYNCHRONISING" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_well(tmp_path, number):
    out, name = tmp_path / "summary.json", tmp_path / "display"
    code = ("import argparse, sys\nfrom firmware_bridge import terminal\nparser = argparse.ArgumentParser()\n"
            "terminal.add_arguments(parser)\nsys.exit(terminal.main(parser.parse_args()))")
    with subprocess.Popen([sys.executable, "-c", code, "--pty", str(name), "--summary-json", str(out)],
                          stdout=subprocess.PIPE, text=True) as display:
        assert "WAITING FOR CAMERA UNIT" in display.stdout.readline()
        display.send_signal(number)
        assert "last on the glass: PR --- bpm" in display.stdout.read()
    assert display.returncode == 0 and not name.is_symlink()
    assert json.loads(out.read_text())["last"]["mode"] == "WAITING"


def test_what_cannot_be_displayed_is_bad_usage(tmp_path, capsys):
    assert command(terminal, str(tmp_path / "none")) == 2
    assert command(terminal) == 2
    assert command(terminal, "a", "--pty", "b") == 2
    assert "is not there" in capsys.readouterr().err


def test_dump_prints_every_frame_and_finds_faults(recording, capsys):
    assert command(dump, str(recording)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 32
    assert "HELLO" in lines[0] and "product=test" in lines[0]
    assert "VITALS pr_x10=143.2 rr_x10=41.8 pr_state=VALID" in lines[1] and lines[-1].endswith("BYE    ")
    damaged = bytearray(recording.read_bytes())
    damaged[60] ^= 4
    recording.write_bytes(damaged[:-3])
    assert command(dump, str(recording), "--json") == 1
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["verdict"] for e in entries].count("ok") == 30
    assert (entries[1]["verdict"], entries[1]["offset"]) in (("bad_crc", 50), ("bad_cobs", 50))
    assert entries[-1]["verdict"] == "unfinished"
    assert entries[2]["fields"]["pr_state"] == "VALID" and entries[2]["header"]["seq"] == 2
    assert command(dump, str(recording) + "x") == 2


def test_display_on_a_pty_shows_reports_back_and_survives_a_unit_that_comes_and_goes(tmp_path, monkeypatch):
    """Both programs over a real pty; a step of the wall clock is nobody's business."""
    monkeypatch.setattr(time, "time", lambda: random.uniform(-1, 1) * 1e9)
    clock = OwnTime()
    name = str(tmp_path / "display")
    summary = terminal.Summary()
    display = Link(name, clock=clock, opener=lambda: open_pty(name))
    display.open()
    thread = threading.Thread(target=terminal.run_port, args=(display, None), kwargs={
        "until_bye": True, "seconds": 60, "clock": clock, "summary": summary})
    thread.start()
    statuses: list[Status] = []
    for shown_pr_x10, orderly in ((NO_RATE, False), (1432, True)):
        unit = Transmitter(Sender(clock), [Link(name, clock=clock)], Hello(), clock).__enter__()

        def turn(unit: Transmitter = unit) -> None:
            unit.send(SHOWN)
            statuses.extend(f.message for f in unit.poll())

        assert until(lambda expected=shown_pr_x10: any(s.shown_pr_x10 == expected for s in statuses), 60.0, turn, pause_s=0.1)
        unit.close(orderly)
    thread.join(timeout=20)
    display.close()
    assert not thread.is_alive(), "BYE ends it"
    assert [c["pr"] for c in summary.changes].count("143") == 1 and summary.changes[-1]["mode"] == "STOPPED"


def test_display_waits_for_a_port_and_outlives_its_hang_up(tmp_path):
    name = tmp_path / "port"
    summary = terminal.Summary()
    display = Link(str(name))
    display.open(wait=True)
    thread = threading.Thread(target=terminal.run_port, args=(display, None), kwargs={
        "seconds": 60, "until_bye": True, "send_status": False, "summary": summary})
    thread.start()
    sender = Sender(time.monotonic_ns)
    for reopens, messages in ((1, [SHOWN] * 5), (2, [SHOWN] * 5 + [Bye()])):
        master, slave = os.openpty()
        name.unlink(missing_ok=True)
        name.symlink_to(os.ttyname(slave))
        assert until(lambda expected=reopens: display.health().reopens == expected, 20.0)
        os.close(slave)
        for message in messages:
            os.write(master, sender.encode(message))
        assert until(lambda expected=(5, 11)[reopens - 1]: summary.frames.get("ok") == expected, 20.0)
        os.close(master)
    thread.join(timeout=20)
    display.close()
    assert not thread.is_alive() and (summary.frames["ok"], display.health().reopens) == (11, 2)
