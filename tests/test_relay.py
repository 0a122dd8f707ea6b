"""The link on lines that have a speed: at 9600 baud VITALS stay fresh beside the traces, and a stall leaves nothing stale."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from edge.pipeline import HOP_S
from edge.records import Waveform
from edge.runtime import VITALS_PERIOD_NS
from edge.wire import Traces, wave_messages
from firmware_bridge.frame import Sender, Verdict
from firmware_bridge.link import Link
from firmware_bridge.messages import Hello, Vitals, Wave
from firmware_bridge.port import open_serial
from firmware_bridge.rules import DisplayRules
from firmware_bridge.schema import NO_RATE, Channel, MessageType, ScreenMode, VitalState
from firmware_bridge.transmitter import HELLO_INTERVAL_S, Transmitter
from tests.relay import Clock, Line, LinePort, Relay
from tests.supervised import OwnTime, until

pytestmark = pytest.mark.alone  # waits and timeouts in real time

TICK_S = 0.02


def vitals(n: int) -> Vitals:
    """The n-th message; no two within twenty minutes carry the same rate."""
    return Vitals(300 + n % 2700, NO_RATE, VitalState.VALID, VitalState.SEARCHING, 90, 0, 3, 3, 8, 16)


def a_hop(n: int) -> Waveform:
    """The n-th second of a student's output, as the runtime hands it to its traces."""
    wave = np.sin(np.arange(90, dtype=np.float32))
    return Waveform(wave, wave, np.ones(90, bool), 1.0, 1.0, np.zeros((2, 1, 1), np.float32), 30.0, n * 1_000_000_000)


class Unit:
    """The camera unit's loop: VITALS twice a second, the traces at the pace of the runtime's own `Traces`."""

    def __init__(self, voice: Transmitter, clock, waves: int = 1) -> None:
        self.voice, self._clock = voice, clock
        self.sent_ns: list[int] = []  # when the n-th VITALS was made
        self._start_ns = clock()
        self._hops = 0
        self._traces = [Traces() for _ in range(waves)]

    def turn(self) -> None:
        now_ns = self._clock()
        if now_ns - self._start_ns >= self._hops * 1_000_000_000:
            for traces in self._traces:
                for wave in traces.put(a_hop(self._hops), now_ns):
                    self.voice.send(wave)
            self._hops += 1
        for traces in self._traces:
            for wave in traces.due(now_ns):
                self.voice.send(wave)
        if now_ns - self._start_ns >= len(self.sent_ns) * VITALS_PERIOD_NS:
            self.sent_ns.append(now_ns)
            self.voice.send(vitals(len(self.sent_ns) - 1))
        self.voice.poll()


class Display:
    """The rules behind a port, with an account of what they showed, and when it had been sent."""

    def __init__(self, port, clock, unit: Unit) -> None:
        self._port, self._clock, self._unit = port, clock, unit
        self._start_ns = clock()
        self.rules = DisplayRules(self._ms())
        self._sender = Sender(clock)
        self._status_ns = clock()
        self.modes: list[tuple[float, ScreenMode]] = []  # every look
        self.ages_s: list[float] = []  # of the number on the glass, at every look that had one
        self.travel_s: list[float] = []  # of each VITALS
        self.kinds: Counter = Counter()

    def _ms(self) -> int:
        return self._clock() // 1_000_000

    def look(self) -> None:
        now_ns = self._clock()
        for frame in self.rules.receive(self._port.read(0.0), self._ms()):
            if frame.verdict is not Verdict.OK:
                self.kinds["bad"] += 1
                continue
            self.kinds[frame.message.channel if isinstance(frame.message, Wave) else frame.message.TYPE] += 1
            if isinstance(frame.message, Vitals):
                self.travel_s.append((now_ns - self._sent(frame.message.pr_x10)) / 1e9)
        screen = self.rules.screen(self._ms())
        self.modes.append(((now_ns - self._start_ns) / 1e9, screen.mode))
        if screen.pr.x10 != NO_RATE:
            self.ages_s.append((now_ns - self._sent(screen.pr.x10)) / 1e9)
        if now_ns >= self._status_ns:
            self._status_ns = now_ns + 1_000_000_000
            self._port.write(self._sender.encode(self.rules.status(self._ms())))

    def _sent(self, x10: int) -> int:
        """When the newest VITALS with this rate was made."""
        last = len(self._unit.sent_ns) - 1
        return self._unit.sent_ns[last - (last - (x10 - 300)) % 2700]

    def shown(self, mode: ScreenMode, from_s: float = 0.0) -> bool:
        return any(seen is mode for t_s, seen in self.modes if t_s >= from_s)


def test_vitals_take_15_percent_of_9600_baud_at_most_and_everything_10_of_115200():
    """Computed from frames as they are encoded; COBS makes all of a kind equally long."""
    sender = Sender(lambda: 0)
    waves = list(wave_messages(a_hop(1)))
    size = {m.TYPE: len(sender.encode(m)) for m in (vitals(0), waves[0], Hello(product="x" * 16))}
    per_s = {MessageType.VITALS: 1e9 / VITALS_PERIOD_NS, MessageType.WAVE: len(waves) / HOP_S,
             MessageType.HELLO: 1 / HELLO_INTERVAL_S}
    bits = {kind: 10 * size[kind] * per_s[kind] for kind in size}
    assert bits[MessageType.VITALS] <= 0.15 * 9600
    assert sum(bits.values()) <= 0.10 * 115200
    assert sum(bits.values()) <= 0.50 * 9600, "a line must carry twice what is sent over it (display rule 2)"
    assert (size[MessageType.VITALS], size[MessageType.WAVE], size[MessageType.HELLO]) == (39, 30, 49)


@pytest.mark.parametrize(("baud", "stop_bits", "expected_s"), [(9600, 1, 0.5), (9600, 2, 0.55), (115200, 1, 0.0417)])
def test_the_relay_passes_bytes_at_the_rate_of_the_line(baud, stop_bits, expected_s):
    def passing_s() -> float:
        with Relay(baud, stop_bits) as relay:
            unit, display = (open_serial(name, baud, stop_bits) for name in (relay.unit, relay.display))
            start_s, got = time.monotonic(), b""
            sent = os.urandom(480)
            assert unit.write(sent) == 480
            while len(got) < 480:
                got += display.read(1.0)
            passed_s = time.monotonic() - start_s
            unit.close(), display.close()
        assert got == sent and passed_s >= 0.9 * expected_s - 0.03
        return passed_s

    assert any(passing_s() <= 1.1 * expected_s + 0.03 for _ in range(5))  # on a machine that stalls some take longer


def test_over_real_ptys_at_9600_and_115200_every_vitals_is_fresh_beside_the_traces(caplog, monkeypatch):
    """Seven seconds of the live loop: with a driver that tells how much waits, with one that does not, with two stop bits.

    While this machine stalls, time stands still for all of them.
    """
    clock = OwnTime()
    monkeypatch.setattr("tests.relay.time", SimpleNamespace(monotonic_ns=clock, sleep=time.sleep))
    caplog.set_level(logging.INFO)
    relays = [Relay(9600), Relay(9600, 2), Relay(115200)]
    links, rigs = [], []
    for relay, tells in zip(relays, (True, False, True), strict=True):
        relay.__enter__()
        links.append(Link(relay.unit, relay.baud, relay.stop_bits, clock, relay.unit_port if tells else None))
        voice = Transmitter(Sender(clock), [links[-1]], Hello(product="test"), clock).__enter__()
        unit = Unit(voice, clock)
        port = open_serial(relay.display, relay.baud, relay.stop_bits)
        rigs.append((unit, Display(port, clock, unit), port))
    end_ns = clock() + 7_000_000_000
    while clock() < end_ns:
        for unit, display, _ in rigs:
            unit.turn()
            display.look()
        time.sleep(TICK_S / 2)
    for unit, _, _ in rigs:
        unit.voice.close()  # right after a burst: BYE has to get through the bytes before it
    displays = [display for _, display, _ in rigs]
    assert until(lambda: all(display.modes[-1][1] is ScreenMode.STOPPED for display in displays), 10.0,
                 *(display.look for display in displays))
    for relay, link, (unit, display, port) in zip(relays, links, rigs, strict=True):
        health = link.health()
        quick = [s for s in display.travel_s if s < 0.25]  # the rest is a busy machine; the display settles within this
        assert len(quick) >= 0.8 * len(display.travel_s), display.travel_s
        modes = [mode for mode, _ in itertools.groupby(mode for t_s, mode in display.modes if t_s > 4.0)]
        assert modes == [ScreenMode.LIVE, ScreenMode.STOPPED]
        assert (display.rules.late, display.rules.lost, health.drops, health.torn, display.kinds["bad"]) == (0, 0, 0, 0, 0)
        assert display.kinds[MessageType.VITALS] == len(unit.sent_ns) >= 12
        assert display.kinds[Channel.PULSE] == display.kinds[Channel.RESP] >= 28
        assert health.last_status is not None and health.mismatches == 0 and not health.distrusted
        port.close()
        relay.__exit__()
        print(f"{relay.baud} baud, {relay.stop_bits} stop bits: VITALS take {1e3 * max(quick):.0f} ms")
    assert not [r.message for r in caplog.records if "read-back" in r.message]


def simulated(baud: int, tells: bool, waves: int = 1) -> tuple[Clock, Line, Unit, Display]:
    clock = Clock()
    there, back = Line(baud), Line(baud)
    link = Link("line", clock=clock, opener=lambda: LinePort(there, back, clock, tells))
    voice = Transmitter(Sender(clock), [link], Hello(product="test"), clock).__enter__()
    unit = Unit(voice, clock, waves)
    return clock, there, unit, Display(LinePort(back, there, clock), clock, unit)


def run(clock: Clock, unit: Unit, display: Display, seconds: float) -> None:
    end_ns = clock.ns + seconds * 1e9
    while clock.ns < end_ns:
        unit.turn()
        display.look()
        clock.advance(TICK_S)


@pytest.mark.parametrize("tells", [True, False])
def test_five_minutes_at_9600_baud_show_a_number_without_a_break(tells):
    clock, _, unit, display = simulated(9600, tells)
    run(clock, unit, display, 300.0)
    assert max(display.travel_s) < 0.2
    assert {mode for t_s, mode in display.modes if t_s > 3.0} == {ScreenMode.LIVE}
    assert unit.voice.outlets[0].health().drops == display.rules.lost == display.rules.late == display.kinds["bad"] == 0


def test_where_the_traces_are_too_much_for_the_line_they_give_way_and_vitals_stay_fresh():
    """Three times the traces: 104 % of 9600 baud. Both channels are thinned alike; every VITALS arrives, none late."""
    clock, _, unit, display = simulated(9600, tells=True, waves=3)
    run(clock, unit, display, 120.0)
    assert display.kinds[MessageType.VITALS] >= len(unit.sent_ns) - 1
    assert max(display.travel_s) < 0.25
    assert {mode for t_s, mode in display.modes if t_s > 3.0} == {ScreenMode.LIVE}
    assert unit.voice.outlets[0].health().drops > 50
    pulse, resp = display.kinds[Channel.PULSE], display.kinds[Channel.RESP]
    assert pulse + resp > 1500 and pulse == pytest.approx(resp, rel=0.2)


@pytest.mark.parametrize("baud", [9600, 115200])
@pytest.mark.parametrize("tells", [True, False])
def test_a_line_that_stood_still_for_200_s_brings_nothing_stale_and_soon_a_number_again(baud, tells):
    clock, there, unit, display = simulated(baud, tells)
    run(clock, unit, display, 10.0)
    assert display.rules.screen(clock.ns // 1_000_000).pr.x10 != NO_RATE
    there.stop(clock.ns)
    run(clock, unit, display, 200.0)
    assert display.modes[-1][1] is ScreenMode.LINK_LOST
    there.go(clock.ns)
    t_s = display.modes[-1][0]
    run(clock, unit, display, 15.0)
    back_s = next(t for t, mode in display.modes if t > t_s and mode is ScreenMode.LIVE) - t_s
    assert max(display.ages_s) <= 5.0
    assert back_s <= 8.0
    assert {mode for t, mode in display.modes if t > t_s + back_s} == {ScreenMode.LIVE}
    print(f"{baud} tells={tells}: number back after {back_s:.2f} s, oldest shown {max(display.ages_s):.2f} s")
