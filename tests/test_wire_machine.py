"""A state machine of everything that can befall the wire: what is on the glass is dashes, or was really sent 5 s ago at most.

The real Sender, a line that is a queue with a speed, a display with a clock of its own, and the read-back on the way home, in
one true time that none of them can see.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from firmware_bridge.frame import Decoder, Sender, Verdict
from firmware_bridge.messages import Bye, Hello, Status, Vitals, Wave
from firmware_bridge.readback import ReadBack, Trouble
from firmware_bridge.rules import DisplayRules
from firmware_bridge.schema import BANNER_TEXT, NO_RATE, PR_PAINTABLE_X10, RR_PAINTABLE_X10, Flags, VitalState

BYTE_MS = 10_000 / 9600  # the slowest line that must work; its load is 40 %
LOOK_MS = 100
MAX_SENT_MS = 5_000  # how long ago what is on the glass may have been sent
MAX_SEEN_MS = 5_400  # and the picture behind it taken: a quick frame's travel and the settling band are no lag
BLANK_MS = 3_000
DRIFT = 200e-6  # between the two crystals


def display_under_test(name: str):
    if name == "rules":
        return DisplayRules
    core = pytest.importorskip("firmware_bridge.core", reason="the C core's binding is not there")
    try:
        core.library()
    except core.CoreError as error:
        pytest.skip(str(error))
    return core.CoreDisplay


class Scene:
    """Camera unit, line and display. Every time here is true time, in ms since the beginning, but for the two clocks."""

    def __init__(self, make_display, seed: int, counts: Counter) -> None:
        self._make_display = make_display
        self.dice = random.Random(seed)
        self.counts = counts
        self.t_ms = 0
        self.host_on = True
        self.state = VitalState.VALID
        self.flags = 0
        self.ages_ds = [0, 3, 3, 3, 10, 30, 49, 60]
        self.delay_ms = 0  # of the line, beside its speed
        self.plugged = True
        self.stopped_until_ms = 0
        self.faults: deque[str] = deque()  # what befalls the next frames
        self.line: deque[tuple[float, bytes, bool]] = deque()  # when each has left the line at the earliest, bytes, whole?
        self.free_ms = 0.0  # when the line has carried what was put on it
        self.kept: deque[bytes] = deque(maxlen=64)  # old frames, to be repeated
        self.sent: deque[tuple[int, Vitals, int]] = deque()  # (when, message, flags)
        self.n = self.dice.randrange(2000)
        self.good_ms = -BLANK_MS  # when the display last got a whole VITALS
        self.dirty = False  # bytes that are no frame reached it since its last whole frame
        self.ok = 0  # frames that the display accepted
        self.findings: Counter = Counter()
        self.status: list[Status] = []
        self.start_host()
        self.start_display()

    # --- the camera unit

    def start_host(self) -> None:
        self.host_zero_ms = self.dice.choice([0, 2**32 - 20_000, self.dice.randrange(2**32)]) - self.t_ms
        self.sender = Sender(lambda: (self.t_ms + self.host_zero_ms) * 1_000_000, self.flags)
        self.read_back = ReadBack()
        self.host_on = True
        self.next_send_ms = self.t_ms
        self.put(Hello(product="machine"))

    def put(self, message) -> None:
        frame = self.sender.encode(message)
        decoded = Decoder().feed(frame)[0]
        self.read_back.sent(decoded.header, message, self.t_ms)
        if isinstance(message, Vitals):
            self.sent.append((self.t_ms, message, self.flags))
        if not self.plugged:
            return
        fault = self.faults.popleft() if self.faults else ""
        for bytes_, whole in broken(frame, fault, self.dice, self.kept):
            self.free_ms = max(self.free_ms, self.t_ms, self.stopped_until_ms) + len(bytes_) * BYTE_MS
            self.line.append((self.free_ms + self.delay_ms, bytes_, whole))
        self.kept.append(frame)

    def speak(self) -> None:
        """Twice a second, with a number that nobody else has within twenty minutes."""
        self.n += 1
        rates = PR_PAINTABLE_X10[0] + self.n % 2701, RR_PAINTABLE_X10[0] + self.n % 1481
        shows = self.state.shows_number
        age_ds = self.dice.choice(self.ages_ds)
        rr_state = self.dice.choice([self.state, self.state, VitalState.SEARCHING])
        self.put(Wave(self.n * 12, 1 + self.n % 2, 25, (self.n % 100,) * 12))
        self.put(Vitals(rates[0] if shows else NO_RATE, rates[1] if rr_state.shows_number else NO_RATE, self.state, rr_state,
                        90, 80, age_ds, age_ds, 8, 16))
        if self.n % 10 == 0:
            self.put(Hello(product="machine"))
        if self.status:
            self.findings[self.read_back.check(self.status[-1], self.t_ms).trouble] += 1
            self.status.clear()

    # --- the display

    def start_display(self) -> None:
        self.rate = 1 + self.dice.uniform(-DRIFT, DRIFT)
        self.display_zero_ms = self.dice.choice([0, 2**32 - 30_000, self.dice.randrange(2**31)])
        self.display = self._make_display(self.local_ms())
        self.good_ms = self.t_ms - BLANK_MS
        self.dirty = True  # it may have been switched on in the middle of a frame
        self.looked_ms = self.status_ms = self.t_ms

    def local_ms(self) -> int:
        return self.display_zero_ms + int(self.t_ms * self.rate)

    def deliver(self) -> None:
        while self.line and self.line[0][0] <= self.t_ms and self.t_ms >= self.stopped_until_ms:
            _, data, whole = self.line.popleft()
            verdicts = [frame.verdict for frame in self.display.receive(data, self.local_ms())]
            if whole:
                accepted = Verdict.OK in verdicts
                assert accepted or self.dirty, f"a good frame was refused ({verdicts}) though none before it was broken"
                self.counts["lost to garbage"] += not accepted
                self.dirty = False
                decoded = Decoder().feed(data)[-1]
                if accepted and isinstance(decoded.message, Vitals):
                    self.good_ms = self.t_ms
            else:
                self.dirty = True

    def look(self) -> None:
        self.looked_ms = self.t_ms
        self.display.receive(b"", self.local_ms())
        screen = self.display.screen(self.local_ms())
        numbers = [numeral for numeral in (screen.pr, screen.rr) if numeral.text != "---"]
        self.counts["looks"] += 1
        self.counts["looks with a number"] += bool(numbers)
        for numeral in (screen.pr, screen.rr):
            assert (numeral.text == "---") == (numeral.x10 == NO_RATE)
        if numbers:
            self._explain(screen)
            silent_ms = self.t_ms - self.good_ms
            assert silent_ms <= BLANK_MS * (1 + DRIFT) + 1, f"a number {silent_ms} ms after the last good VITALS"
        if self.t_ms - self.status_ms >= 1_000:
            self.status_ms = self.t_ms
            self.status.append(self.display.status(self.local_ms()))

    def _explain(self, screen) -> None:
        """The one rule: what is on the glass stood in one message, as valid, and that was sent 5 s ago at most."""
        while self.sent and self.t_ms - self.sent[0][0] > MAX_SENT_MS:
            self.sent.popleft()
        for sent_ms, message, flags in self.sent:
            if all(numeral.text == "---" or stood(numeral, getattr(message, f"{name}_x10"), getattr(message, f"{name}_state"))
                   for name, numeral in (("pr", screen.pr), ("rr", screen.rr))):
                assert not flags & Flags.DEMO or BANNER_TEXT[Flags.DEMO] in screen.banners
                assert self.t_ms - sent_ms + 100 * message.pr_age_ds <= MAX_SEEN_MS
                return
        raise AssertionError(f"PR {screen.pr} RR {screen.rr} on the glass, and nothing sent since {MAX_SENT_MS} ms has them")

    # --- time

    def drain(self) -> None:
        """Until the line has caught up."""
        while self.free_ms > self.t_ms + 300:
            self.run(1_000)

    def run(self, ms: int) -> None:
        end_ms = self.t_ms + ms
        while self.t_ms < end_ms:
            due = [self.looked_ms + LOOK_MS, end_ms]
            if self.line:
                due.append(int(max(self.line[0][0], self.stopped_until_ms)) + 1)
            if self.host_on:
                due.append(self.next_send_ms)
            self.t_ms = max(self.t_ms, min(due))
            if self.host_on and self.t_ms >= self.next_send_ms:
                self.next_send_ms += 500
                self.speak()
            self.deliver()
            if self.t_ms >= self.looked_ms + LOOK_MS:
                self.look()
        self.look()


def stood(numeral, x10: int, state: VitalState) -> bool:
    mark = state == VitalState.QUESTIONABLE
    return state.shows_number and (numeral.x10, numeral.text, numeral.questionable) == (x10, str((x10 + 5) // 10), mark)


def broken(frame: bytes, fault: str, dice: random.Random, kept: deque[bytes]) -> list[tuple[bytes, bool]]:
    """What the line makes of a frame: pieces of bytes, and whether each is a whole frame."""
    if fault == "drop":
        return []
    if fault == "flip":
        data = bytearray(frame)
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        return [(bytes(data), bytes(data) == frame)]
    if fault == "tear":
        return [(frame[:dice.randrange(1, len(frame) - 1)], False)]
    if fault == "lose a byte":
        i = dice.randrange(1, len(frame) - 1)
        return [(frame[:i] + frame[i + 1:], False)]
    if fault == "garbage":
        return [(dice.randbytes(dice.randint(1, 200)), False), (frame, True)]
    if fault == "twice":
        return [(frame, True), (frame, True)]
    if fault == "an old one":
        return [(dice.choice(kept), True), (frame, True)] if kept else [(frame, True)]
    return [(frame, True)]


FAULTS = ("drop", "flip", "tear", "lose a byte", "garbage", "twice", "an old one", "")


class WireMachine(RuleBasedStateMachine):
    make_display = DisplayRules
    counts: Counter = Counter()
    wall_step_s = 0

    def __init__(self) -> None:
        super().__init__()
        WireMachine.wall_step_s = 0
        self.scene = Scene(type(self).make_display, 0, type(self).counts)

    @rule(seed=st.integers(0, 2**32 - 1))
    def other_luck(self, seed):
        self.scene.dice.seed(seed)

    @rule(ms=st.sampled_from([1, 40, 300, 1_000, 3_000, 8_000]))
    def time_passes(self, ms):
        self.scene.run(ms)

    @rule(faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=8))
    def frames_are_broken(self, faults):
        self.scene.faults.extend(faults)
        self.scene.run(500 * len(faults) // 2)

    @rule(ms=st.sampled_from([100, 700, 1_500, 2_900, 6_000, 20_000, 60_000]))
    def the_line_stalls_and_the_backlog_comes_late(self, ms):
        self.scene.stopped_until_ms = self.scene.t_ms + ms
        self.shift_line(ms)
        self.scene.run(ms + self.scene.dice.choice([0, 500, 4_000]))

    def shift_line(self, ms) -> None:
        scene = self.scene
        scene.line = deque((at_ms + ms, data, whole) for at_ms, data, whole in scene.line)
        scene.free_ms = max(scene.free_ms, scene.t_ms) + ms

    @rule(ms=st.sampled_from([200, 2_000, 3_500, 10_000]))
    def the_plug_is_pulled_and_put_back(self, ms):
        scene = self.scene
        scene.plugged = False
        scene.line.clear()
        scene.free_ms, scene.dirty = scene.t_ms, True
        scene.run(ms)
        scene.plugged = True

    @rule(says_bye=st.booleans(), away_ms=st.sampled_from([0, 100, 2_500, 5_000]), demo=st.booleans())
    def the_camera_unit_restarts(self, says_bye, away_ms, demo):
        scene = self.scene
        if says_bye and scene.plugged:
            scene.put(Bye())
        scene.host_on = False
        scene.run(away_ms)
        scene.flags = int(Flags.DEMO) if demo else 0
        scene.start_host()

    @rule()
    def the_display_restarts(self):
        self.scene.start_display()

    @rule(ms=st.sampled_from([1_000, 5_000]))
    def the_camera_unit_hangs(self, ms):
        self.scene.host_on = False
        self.scene.run(ms)
        self.scene.host_on, self.scene.next_send_ms = True, self.scene.t_ms

    @rule(step_s=st.sampled_from([-3600, 3600]))
    def the_wall_clock_steps_by_an_hour(self, step_s):
        WireMachine.wall_step_s += step_s
        self.scene.run(1_000)

    @rule(state=st.sampled_from([VitalState.VALID, VitalState.QUESTIONABLE, VitalState.INVALID]),
          ms=st.sampled_from([0, 1_000, 6_000]))
    def what_the_gate_says_changes(self, state, ms):
        self.scene.state = state
        self.scene.run(ms)

    @rule()
    def after_ten_calm_seconds_the_number_is_there(self):
        scene = self.scene
        scene.faults.clear()
        scene.state = VitalState.VALID
        scene.drain()  # a backlog is no calm
        scene.run(10_000)
        before = scene.counts["looks with a number"]
        scene.run(2_000)  # in which some messages are themselves too old to be shown
        assert scene.counts["looks with a number"] > before, scene.display.screen(scene.local_ms())
        scene.counts["calm"] += 1

    @invariant()
    def the_glass_is_honest(self):
        self.scene.look()

    @invariant()
    def an_honest_display_is_never_accused(self):
        assert self.scene.findings[Trouble.MISMATCH] == 0


@pytest.fixture
def stepping_wall_clock(monkeypatch):
    """Whoever reads the wall clock sees it step; no code under test may."""
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + WireMachine.wall_step_s)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + WireMachine.wall_step_s * 10**9)


@pytest.mark.parametrize("display", ["rules", "core"])
@pytest.mark.parametrize("examples", [12, pytest.param(1_000, marks=pytest.mark.soak)])
@pytest.mark.usefixtures("stepping_wall_clock")
def test_no_fault_on_the_wire_ever_becomes_a_number(display, examples):
    class Machine(WireMachine):
        make_display = display_under_test(display)
        counts: Counter = Counter()

    run_state_machine_as_test(Machine, settings=settings(
        max_examples=examples, stateful_step_count=30, deadline=None, database=None,
        derandomize=examples < 1_000, phases=[Phase.generate],  # to shrink minutes of simulated time takes minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]))
    counts = Machine.counts
    print(dict(counts))
    assert counts["looks with a number"] > 2_000 and counts["calm"] > 20, "or this would prove nothing"


@pytest.mark.parametrize("display", ["rules", "core"])
def test_a_backlog_of_200_s_shows_nothing_stale(display):
    scene = Scene(display_under_test(display), 3, Counter())
    scene.run(10_000)
    assert scene.counts["looks with a number"] > 20
    scene.stopped_until_ms = scene.free_ms = scene.t_ms + 200_000
    scene.run(200_000)
    during = scene.counts["looks with a number"]
    assert len(scene.line) > 500
    scene.drain()  # looks all the time, and so asserts
    scene.run(5_000)
    assert scene.counts["looks with a number"] > during


@pytest.mark.parametrize("display", ["rules", "core"])
def test_a_lag_that_is_not_late_yet_still_makes_a_number_older(display):
    scene = Scene(display_under_test(display), 3, Counter())
    scene.ages_ds = [44]
    scene.run(10_000)
    shown = scene.counts["looks with a number"]
    assert shown > 20
    scene.delay_ms = 800
    scene.run(1_500)
    before = scene.counts["looks with a number"]
    scene.run(10_000)
    assert scene.counts["looks with a number"] == before, "4.4 s old when it was sent, and 0.8 s on the way"
