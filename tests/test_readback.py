"""The read-back: an honest display is never accused, whatever happens on the line, and one that shows something else is."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from edge import runtime
from firmware_bridge.frame import Decoder, Sender
from firmware_bridge.link import Link
from firmware_bridge.messages import Bye, Status, Vitals, Wave
from firmware_bridge.readback import DISTRUST_MS, EXPLAINED_MS, REMEMBERED, Finding, ReadBack, Trouble
from firmware_bridge.rules import DisplayRules
from firmware_bridge.schema import NO_RATE, ScreenMode, Tech, VitalState
from tests.fake_engine import FakeEngine
from tests.relay import Clock
from tests.test_runtime import World, shows, vitals_of, wire_config
from tests.test_runtime import sent as sent_of

pytestmark = pytest.mark.alone  # waits and timeouts in real time

TICK_MS = 100


def vitals(pr_x10: int = 1200, rr_x10: int = 400, pr: VitalState = VitalState.VALID,
           rr: VitalState = VitalState.VALID) -> Vitals:
    return Vitals(pr_x10 if pr.shows_number else NO_RATE, rr_x10 if rr.shows_number else NO_RATE, pr, rr, 90, 90, 3, 3, 8, 16)


class Room:
    """A camera unit and a display in one simulated time, with a line that may delay, lose, or hold bytes."""

    def __init__(self, session: int = 7) -> None:
        self.t_ms = 1_000
        self.delay_ms = 20
        self.loses: Callable[[], bool] = lambda: False
        self.rigged: Callable[[Status], Status] = lambda status: status
        self.make: Callable[[], Vitals] = vitals
        self.unit_sleeps = self.line_holds = False
        self.findings: list[Finding] = []
        self._on_line: list[tuple[int, bytes]] = []
        self._input: list[Status] = []
        self.restart_unit(session)
        self.restart_display()

    def restart_unit(self, session: int) -> None:
        self.sender = Sender(lambda: self.t_ms * 1_000_000, session=session)
        self.read_back = ReadBack()

    def restart_display(self) -> None:
        self.display = DisplayRules(self.t_ms)

    def send(self, message) -> None:
        frame = self.sender.encode(message)
        decoded = Decoder().feed(frame)[0]
        self.read_back.sent(decoded.header, decoded.message, self.t_ms)
        if not self.loses():
            self._on_line.append((self.t_ms + self.delay_ms, frame))

    def run(self, seconds: float) -> list[Trouble]:
        """Returns the troubles found in this time."""
        start = len(self.findings)
        for _ in range(round(seconds * 1000 / TICK_MS)):
            self.t_ms += TICK_MS
            if self.t_ms % 200 == 0 and not self.unit_sleeps:
                self.send(Wave(self.t_ms // 40, 1, 25, (0,) * 5))
            if self.t_ms % 500 == 0 and not self.unit_sleeps:
                self.send(self.make())
                self._read()
            while self._on_line and self._on_line[0][0] <= self.t_ms and not self.line_holds:
                self.display.receive(self._on_line.pop(0)[1], self.t_ms)
            self.display.screen(self.t_ms)
            if self.t_ms % 1000 == 100:
                self._input.append(self.rigged(self.display.status(self.t_ms)))
        return [finding.trouble for finding in self.findings[start:]]

    def _read(self) -> None:
        if self._input:
            self.findings.append(self.read_back.check(self._input[-1], self.t_ms))
            self._input.clear()


def quiet(troubles: list[Trouble]) -> bool:
    return bool(troubles) and set(troubles) == {Trouble.NONE}


# --- an honest display is never accused


def test_an_honest_display_has_no_trouble():
    room = Room()
    rates = iter(range(600, 3000))
    room.make = lambda: random.Random(next(rates)).choice(
        [vitals(next(rates)), vitals(pr=VitalState.QUESTIONABLE), vitals(rr=VitalState.SEARCHING), vitals(pr=VitalState.FAULT)])
    assert quiet(room.run(120))
    assert not room.read_back.distrusts(room.t_ms)


def test_a_lossy_line_is_no_mismatch():
    room = Room()
    dice = random.Random(1)
    room.loses = lambda: dice.random() < 0.6
    assert Trouble.MISMATCH not in room.run(300) and Trouble.DELAYED not in room.run(1)


def test_what_an_earlier_session_left_on_the_glass_is_no_mismatch():
    room = Room()
    room.run(10)
    assert room.display.screen(room.t_ms).pr.text == "120"
    room.restart_unit(session=8)
    room.make = lambda: vitals(999)
    room.delay_ms = 1_500  # it stays a while, since the first frames of the new session take their time
    assert Trouble.MISMATCH not in room.run(20)


def test_a_screen_painted_before_our_first_frame_was_taken_is_no_mismatch_for_a_while():
    """One restart in twenty met the display between taking the new session's first frame and painting."""
    room = Room()
    room.run(10)
    painted = room.display.status(room.t_ms)
    room.restart_unit(session=8)
    room.make = lambda: vitals(pr=VitalState.SEARCHING, rr=VitalState.SEARCHING)
    room.rigged = lambda status: replace(status, shown_pr_x10=painted.shown_pr_x10, shown_rr_x10=painted.shown_rr_x10,
                                         shown_state=painted.shown_state)
    assert quiet(room.run(3)) and room.findings[-1].trouble is Trouble.NONE
    assert room.run(4)[-1] is Trouble.MISMATCH


def test_a_display_that_restarts_is_no_mismatch():
    room = Room()
    room.run(10)
    room.restart_display()
    assert quiet(room.run(20))


def test_a_backlog_of_200_s_is_no_mismatch():
    room = Room()
    room.run(10)
    room.line_holds = True
    assert room.run(200)[-1] is Trouble.DEAF
    room.line_holds = False
    assert Trouble.MISMATCH not in room.run(20)
    assert room.findings[-1].trouble is Trouble.NONE


@pytest.mark.parametrize("seconds", [1, 2, 5, 30, 300])
def test_a_camera_unit_that_was_stopped_for_a_while_does_not_judge_what_waited_for_it(seconds):
    """SIGSTOP: its input holds what the display said meanwhile, the oldest first and perhaps not the newest."""
    room = Room()
    rates = iter(range(600, 3000))
    room.make = lambda: vitals(next(rates))
    room.run(10)
    room.unit_sleeps = True
    room.run(seconds + 0.4)  # it wakes just before it reads
    del room._input[1:]  # a full buffer drops what comes last
    room.unit_sleeps = False
    assert quiet(room.run(10))


def test_without_status_nothing_is_judged_and_nothing_distrusted():
    room = Room()
    room.rigged = lambda status: room._input.clear() or status
    room.run(5)
    assert not ReadBack().distrusts(0) and ReadBack().check(room.display.status(room.t_ms), 0) == Finding(Trouble.NONE)


# --- one that shows something else is


def test_a_number_that_was_never_sent_is_a_mismatch_at_once_with_both_values_said():
    room = Room()
    assert quiet(room.run(10))
    room.rigged = lambda status: replace(status, shown_pr_x10=1210)
    assert room.run(2)[-1] is Trouble.MISMATCH
    assert "shows PR 121.0 RR 40.0" in room.findings[-1].text and "sent was PR 120.0 RR 40.0" in room.findings[-1].text


def test_a_number_held_for_longer_than_a_number_may_live_is_a_mismatch():
    room = Room()
    room.run(10)
    held = room.display.status(room.t_ms)
    room.rigged = lambda status: replace(status, shown_pr_x10=1200, shown_rr_x10=400, shown_state=held.shown_state)
    room.make = lambda: vitals(pr=VitalState.SEARCHING, rr=VitalState.SEARCHING)
    assert quiet(room.run(EXPLAINED_MS / 1000 - 1))
    assert room.run(3)[-1] is Trouble.MISMATCH
    assert "sent was PR --- RR ---" in room.findings[-1].text


def test_two_numbers_that_never_stood_in_one_message_are_a_mismatch():
    room = Room()
    rates = iter(range(1000, 2000))
    room.make = lambda: vitals(next(rates), 400 + room.t_ms // 500 % 50)
    assert quiet(room.run(10))
    old = room.display.status(room.t_ms).shown_rr_x10
    room.rigged = lambda status: replace(status, shown_rr_x10=old)
    assert room.run(3)[-1] is Trouble.MISMATCH


def test_a_questionable_number_shown_without_its_mark_is_a_mismatch_and_so_is_the_reverse():
    for state, mark in ((VitalState.QUESTIONABLE, 1), (VitalState.VALID, 2)):
        room = Room()
        room.make = lambda state=state: vitals(pr=state)
        assert quiet(room.run(10))
        room.rigged = lambda status, mark=mark: replace(status, shown_state=status.shown_state & ~3 | mark)
        assert room.run(2)[-1] is Trouble.MISMATCH


@pytest.mark.parametrize("change", [{"shown_state": 0}, {"shown_pr_x10": NO_RATE}, {"shown_state": 7}, {"shown_state": 0x25}])
def test_a_status_that_contradicts_itself_is_a_mismatch(change):
    room = Room()
    room.run(10)
    room.rigged = lambda status: replace(status, **change)
    assert room.run(2)[-1] is Trouble.MISMATCH


def test_a_number_of_somebody_elses_session_is_a_mismatch_once_ours_has_run_for_a_while():
    room = Room()
    room.run(5)
    room.rigged = lambda status: replace(status, last_session=99)
    assert room.run(2)[-1] is Trouble.MISMATCH and "second sender" in room.findings[-1].text


def test_after_a_mismatch_no_number_is_to_be_sent_for_a_minute():
    room = Room()
    room.run(10)
    room.rigged = lambda status: replace(status, shown_pr_x10=1210)
    room.run(1)
    room.rigged = lambda status: status
    held_s = DISTRUST_MS[Trouble.MISMATCH] / 1000
    room.run(held_s - 1)
    assert room.read_back.distrusts(room.t_ms)
    room.run(2)
    assert not room.read_back.distrusts(room.t_ms)


# --- what the display cannot see


@pytest.mark.parametrize(("delay_ms", "trouble"), [(900, Trouble.NONE), (2_500, Trouble.DELAYED), (4_000, Trouble.DELAYED)])
def test_a_constant_delay_from_the_first_frame_on_is_noticed_though_the_display_shows_numbers(delay_ms, trouble):
    room = Room()
    room.delay_ms = delay_ms
    room.run(20)
    assert room.display.screen(room.t_ms).mode is ScreenMode.LIVE
    assert room.findings[-1].trouble is trouble
    assert room.read_back.distrusts(room.t_ms) == (trouble is Trouble.DELAYED)


def test_a_delay_so_long_that_numbers_outlive_it_is_a_mismatch():
    room = Room()
    room.delay_ms = 8_000
    rates = iter(range(1000, 2000))
    room.make = lambda: vitals(next(rates))
    assert room.run(20)[-1] is Trouble.MISMATCH


def test_a_short_hiccup_of_the_line_is_no_delay():
    room = Room()
    room.run(10)
    room.line_holds = True
    room.run(2)
    room.line_holds = False
    assert quiet(room.run(10))


def test_a_display_that_receives_nothing_is_noticed_with_what_to_check():
    room = Room()
    room.loses = lambda: True
    assert room.run(8)[-1] is Trouble.DEAF
    assert "check the wire from the camera unit's TX" in room.findings[-1].text
    assert not room.read_back.distrusts(room.t_ms)


def test_a_wire_that_breaks_later_is_noticed_and_its_mending_too():
    room = Room()
    assert quiet(room.run(10))
    room.loses = lambda: True
    assert room.run(8)[-1] is Trouble.DEAF
    room.loses = lambda: False
    assert room.run(5)[-1] is Trouble.NONE


def test_broken_bytes_point_to_baud_rate_and_ground_and_an_old_display_to_its_update():
    room = Room()
    broken = iter(range(100, 10000, 7))
    room.loses = lambda: True
    room.rigged = lambda status: replace(status, bad_crc=next(broken))
    assert room.run(8)[-1] is Trouble.DEAF and "baud rate, stop bits, ground" in room.findings[-1].text
    room.rigged = lambda status: replace(status, shown_state=ScreenMode.UPDATE_REQUIRED << 4)
    assert room.run(2)[-1] is Trouble.DEAF and "update the display" in room.findings[-1].text


def test_memory_is_bounded():
    room = Room()
    for _ in range(3 * REMEMBERED):
        room.t_ms += 1
        room.send(vitals())
    assert len(room.read_back._seqs) <= REMEMBERED and len(room.read_back._vitals) <= REMEMBERED


def test_seq_may_wrap():
    room = Room()
    room.sender._seq = 0xFFF0
    assert quiet(room.run(20))


# --- in the link and in the appliance


class Bedside:
    """A port with a display at its other end, in a link's time. lies: what its STATUS says instead of what is shown."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.display = DisplayRules(self._ms())
        self._sender = Sender(clock)
        self._due_ms = self._ms() + 1_000
        self.lies: Callable[[Status], Status] = lambda status: status

    def _ms(self) -> int:
        return self._clock() // 1_000_000

    def write(self, data: bytes) -> int:
        self.display.receive(data, self._ms())
        return len(data)

    def read(self, timeout_s: float) -> bytes:
        self.display.screen(self._ms())
        if self._ms() < self._due_ms:
            return b""
        self._due_ms = self._ms() + 1_000
        return self._sender.encode(self.lies(self.display.status(self._ms())))

    def wait_writable(self, timeout_s: float) -> None: ...
    def queued(self) -> int: return 0
    def discard_output(self) -> None: ...
    def close(self) -> None: ...


def test_a_link_logs_each_trouble_once_with_both_values_and_counts_every_mismatch(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    bed = Bedside(clock)
    sender = Sender(clock)
    with Link("bed", clock=clock, opener=lambda: bed) as link:

        def run(seconds):
            for _ in range(round(seconds * 2)):
                clock.advance(0.5)
                link.offer(sender.encode(vitals()), Vitals.TYPE)
                link.poll()

        run(10)
        assert (link.health().mismatches, link.health().distrusted) == (0, False)
        bed.lies = lambda status: replace(status, shown_pr_x10=1210)
        run(10)
        assert 9 <= link.health().mismatches <= 11 and link.health().distrusted
        bed.lies = lambda status: status
        run(10)
        assert link.health().distrusted
        run(60)
        assert not link.health().distrusted
    said = [(r.levelname, r.message) for r in caplog.records if "read-back" in r.message]
    assert [level for level, _ in said] == ["ERROR", "INFO"]
    assert "PR 121.0" in said[0][1] and "PR 120.0" in said[0][1]


def appliance(monkeypatch, tmp_path, lies_from_s, lies_to_s, stop_s):
    """The live loop with a display that lies for a while; returns (its VITALS with their time, the link)."""
    world = World(monkeypatch, [(0, 1000)], stop_s=stop_s)
    bed = Bedside(lambda: world.now_ns)
    lying = lambda: lies_from_s <= world.t_s < lies_to_s  # noqa: E731
    bed.lies = lambda status: replace(status, shown_pr_x10=777, shown_state=status.shown_state & ~3 | 1) if lying() else status
    links = []

    class BedsideLink(Link):
        def __init__(self, port, baud, stop_bits):
            super().__init__(port, baud, stop_bits, clock=lambda: world.now_ns, opener=lambda: bed)
            links.append(self)

    monkeypatch.setattr(runtime, "Link", BedsideLink)
    config = wire_config(tmp_path)
    world.live(replace(config, serial=replace(config.serial, port="bed")), FakeEngine()).run()
    return [(t - world.zero_ns / 1e9, m, flags) for t, m, flags in sent_of(tmp_path)], links[0]


def test_the_appliance_sends_fault_without_numbers_while_the_glass_is_wrong_and_goes_on_afterwards(monkeypatch, tmp_path):
    monkeypatch.setitem(DISTRUST_MS, Trouble.MISMATCH, 12_000)
    messages, link = appliance(monkeypatch, tmp_path, 20, 24, 42)
    assert any(map(shows, vitals_of(messages, 15, 20)))
    withheld = vitals_of(messages, 22, 34)
    assert withheld and not any(map(shows, withheld))
    assert {(m.pr_state, m.rr_state) for m in withheld} == {(VitalState.FAULT, VitalState.FAULT)}
    assert all(m.tech & Tech.SELF_TEST_FAILED for m in withheld)
    assert shows(vitals_of(messages)[-1]), "the run goes on, and with it the numbers"
    assert isinstance(messages[-1][1], Bye) and link.health().mismatches >= 3


def test_the_appliance_sends_the_same_where_status_is_honest(monkeypatch, tmp_path):
    messages, link = appliance(monkeypatch, tmp_path, 0, 0, 30)
    assert link.health().last_status is not None and link.health().mismatches == 0
    assert all(map(shows, vitals_of(messages, 16, 30)))
