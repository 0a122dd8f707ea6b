"""The serial link on real ptys: it never blocks, keeps no backlog, comes back, and shares its port with nobody."""

from __future__ import annotations

import gc
import logging
import os
import random
import select
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable
from dataclasses import replace

import pytest

from firmware_bridge import port as port_module
from firmware_bridge.frame import Decoder, Sender, Verdict
from firmware_bridge.link import BACKOFF_S, Link, LinkState
from firmware_bridge.messages import Bye, Hello, Message, Status, Vitals, Wave
from firmware_bridge.port import LinkError, PortMissing, PortTaken, open_pty
from firmware_bridge.schema import NO_RATE, Channel, MessageType, VitalState
from firmware_bridge.transmitter import FileLink, Transmitter
from tests.relay import Clock
from tests.supervised import OwnTime, until

pytestmark = pytest.mark.alone  # waits and timeouts in real time

SOON_S = 20.0
"""For what is to come, but not by when: a busy machine may take its time."""
STATUS = Status(1, 2, 3, 0, 0, 0, 0, 0, 9, NO_RATE, NO_RATE, 0)


def vitals(pr_x10: int = 1432) -> Vitals:
    return Vitals(pr_x10, NO_RATE, VitalState.VALID, VitalState.SEARCHING, 90, 0, 1, 1, 8, 16)


class Far:
    """The display's end of a pty, reachable for the link under a stable name that may move to a new pty."""

    def __init__(self, link) -> None:
        self.link = link
        self.master = -1
        self.plug()

    def plug(self) -> None:
        self.master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(self.master, False)
        if self.link.is_symlink():
            self.link.unlink()
        self.link.symlink_to(os.ttyname(slave))
        os.close(slave)

    def unplug(self, name_goes: bool = True) -> None:
        os.close(self.master)
        self.master = -1
        if name_goes:
            self.link.unlink()

    def read(self, enough: Callable[[bytes], bool] = bool) -> bytes:
        """What has come, once it is enough, and what follows right after it."""
        data = b""
        end_s = time.monotonic() + SOON_S
        while True:
            left_s = 0.02 if enough(data) else end_s - time.monotonic()
            if not select.select([self.master], [], [], max(0.0, left_s))[0]:
                return data
            try:
                data += os.read(self.master, 65536)
            except OSError:  # nobody has the other end open
                return data

    def frames(self, count: int) -> list[Message]:
        """At least so many messages, and what follows right after them."""
        return frames_of(self.read(lambda data: len(frames_of(data)) >= count))


@pytest.fixture
def far(tmp_path):
    far = Far(tmp_path / "display")
    yield far
    if far.master >= 0:
        os.close(far.master)


@pytest.fixture
def link(far):
    with Link(str(far.link)) as link:
        yield link


def frames_of(data: bytes) -> list[Message]:
    return [f.message for f in Decoder().feed(data) if f.verdict is Verdict.OK]


def wait_for(link: Link, state: LinkState, limit_s: float = SOON_S) -> float:
    start = time.monotonic()
    while link.health().state is not state:
        assert time.monotonic() - start < limit_s, f"{state} not reached: {link.health()}"
        link.poll()
        time.sleep(0.01)
    return time.monotonic() - start


def hears(link: Link, status: Status) -> bool:
    """Waits until this is the newest that the display has reported."""
    return until(lambda: link.health().last_status == status, SOON_S, link.poll, pause_s=0.001)


def one_frame(link: Link) -> bytes:
    """What has come, once it is a whole frame."""
    data = bytearray()
    until(lambda: bool(frames_of(data)), SOON_S, lambda: data.extend(link.read(0.05)))
    return bytes(data)


def test_what_is_offered_arrives_and_what_the_display_says_comes_back(far, link):
    sender, display = Sender(time.monotonic_ns), Sender(time.monotonic_ns)
    assert link.offer(sender.encode(vitals()), MessageType.VITALS)
    assert far.frames(1) == [vitals()]
    wire = display.encode(STATUS)
    os.write(far.master, wire[:7])
    time.sleep(0.02)
    assert link.poll() == []
    os.write(far.master, wire[7:])
    got = []
    assert until(lambda: bool(got), SOON_S, lambda: got.extend(link.poll()))
    assert [f.message for f in got] == [STATUS]
    health = link.health()
    assert (health.frames, health.drops, health.received, health.last_status) == (1, 0, 1, STATUS)
    newer = replace(STATUS, uptime_s=10)
    os.write(far.master, display.encode(STATUS) + display.encode(newer))
    assert hears(link, newer)


def longest_offer_to_nobody_s(far: Far) -> float:
    """Of 3000 VITALS, 25 minutes of them, 117 kB."""
    sender = Sender(time.monotonic_ns)
    longest_s = 0.0
    with Link(str(far.link), clock=OwnTime()) as link:
        for n in range(3000):
            frame = sender.encode(vitals(300 + n % 2000))
            start = time.monotonic()
            link.offer(frame, MessageType.VITALS)
            longest_s = max(longest_s, time.monotonic() - start)
        health = link.health()
        assert health.frames + health.drops == 3000 and health.write_timeouts > 0
        # What is left ends with the newest frame.
        newest = vitals(300 + 2999 % 2000)
        backlog = far.read(lambda data: frames_of(data)[-1:] == [newest])
        # A pty holds some 16 kB before it says no; what was stuck then has been forgotten, not queued behind.
        assert len(backlog) < 25_000 and frames_of(backlog)[-1] == newest
        # Reading again: the link is as good as new, and a torn frame cost at most one.
        for n in range(20):
            link.offer(sender.encode(vitals(1000 + n)), MessageType.VITALS)
        decoder = Decoder()
        rest = far.read(lambda data: frames_of(data)[-1:] == [vitals(1019)])
        got = [f.message for f in decoder.feed(backlog + rest) if f.message]
        assert got[-19:] == [vitals(1001 + n) for n in range(19)]
        assert decoder.counters.bad <= 1 + link.health().torn
    return longest_s


def test_nobody_reading_never_blocks_and_leaves_no_backlog(far):
    # a write may wait for 100 ms, and a busy machine a little longer; where it stalls, not each time
    assert any(longest_offer_to_nobody_s(far) <= 0.15 for _ in range(5))


class SlowPort:
    """A UART whose driver reports what it has not sent."""

    def __init__(self) -> None:
        self.waiting, self.written, self.takes = 0, [], 131  # takes: of a whole frame; its rest then never

    def write(self, data):
        taken = min(len(data), self.takes) if len(data) == 39 or self.takes == 131 else 0
        self.written.append(bytes(data[:taken]))
        return taken

    def wait_writable(self, timeout_s): ...
    def read(self, timeout_s): return b""
    def queued(self): return self.waiting
    def discard_output(self): ...
    def close(self): ...


def test_a_stuck_peer_is_waited_for_once_until_it_moves_again():
    clock, port = Clock(), SlowPort()
    port.takes = 10  # bytes of each frame, then nothing
    port.wait_writable = clock.advance
    with Link("uart", clock=clock, opener=lambda: port) as link:
        assert not link.offer(b"x" * 39, MessageType.VITALS)
        assert clock() == 100_000_000
        for _ in range(50):
            assert not link.offer(b"x" * 39, MessageType.VITALS)
        assert clock() == 100_000_000
        assert (link.health().write_timeouts, link.health().torn) == (51, 51)
        port.takes = 39
        assert link.offer(b"y" * 39, MessageType.VITALS) and port.written[-1] == b"y" * 39


def test_behind_a_slow_uart_only_the_newest_vitals_wait_and_not_for_long():
    now_ns = [0]
    port = SlowPort()
    link = Link("uart", clock=lambda: now_ns[0], opener=lambda: port)
    link.open()
    port.waiting = 1000
    for n in range(5):
        assert not link.offer(b"vitals %d" % n, MessageType.VITALS)
    link.offer(b"wave", MessageType.WAVE)
    assert port.written == [] and link.health().drops == 4
    port.waiting = 0
    link.poll()
    assert port.written == [b"vitals 4", b"wave"], "newest only, and VITALS first"
    port.waiting = 1000
    link.offer(b"old", MessageType.VITALS)
    now_ns[0] += 400_000_000
    port.waiting = 0
    link.poll()
    assert b"old" not in port.written and link.health().drops == 5


def test_what_is_overtaken_by_something_more_important_is_not_sent_after_it():
    """The display would drop it as older (rule 5), so it would only take the line from what comes next."""
    port = SlowPort()
    sender = Sender(lambda: 0)
    frames = [sender.encode(m) for m in (Hello(), Wave(0, Channel.PULSE, 25, (1,)), vitals(), Wave(0, Channel.RESP, 25, (2,)))]
    with Link("uart", clock=Clock(), opener=lambda: port) as link:
        port.waiting = 1000
        for frame, kind in zip(frames, ["HELLO", "WAVE", "VITALS", "WAVE"], strict=True):
            link.offer(frame, MessageType[kind])
        port.waiting = 0
        link.poll()
        assert port.written == frames[2:] and link.health().drops == 2


def test_both_traces_may_wait_and_leave_room_for_vitals():
    """A WAVE does not replace that of the other channel, and goes no deeper into the driver than VITALS can follow."""
    port = SlowPort()
    sender = Sender(lambda: 0)
    waves = [sender.encode(Wave(i, channel, 25, (i,) * 5)) for i in (0, 1) for channel in (Channel.PULSE, Channel.RESP)]
    with Link("uart", clock=Clock(), opener=lambda: port) as link:
        port.waiting = 110
        for wave in waves:
            assert not link.offer(wave, MessageType.WAVE)
        assert port.written == [] and link.health().drops == 2
        port.waiting = 100
        link.poll()
        assert port.written == waves[2:], "the newest of each channel"
        port.waiting = 110
        link.offer(waves[0], MessageType.WAVE)
        assert link.offer(b"vitals", MessageType.VITALS) and port.written[2:] == [b"vitals"]


def test_calls_in_a_row_wait_100_ms_together_also_when_the_port_takes_a_little_all_the_time():
    clock, port = Clock(), SlowPort()
    port.write = lambda data: min(len(data), 1)  # a byte every 3 ms: each frame alone would be done in 90 ms
    port.wait_writable = lambda timeout_s: clock.advance(min(timeout_s, 0.003))
    with Link("uart", clock=clock, opener=lambda: port) as link:
        for turn in range(3):
            start_ns = clock()
            for kind in (MessageType.HELLO, MessageType.VITALS, MessageType.WAVE, MessageType.WAVE):
                link.offer(b"x" * 30, kind)
            link.poll()
            assert clock() - start_ns <= 100_000_000, turn
            clock.advance(0.1)
        assert link.health().frames >= 1 and link.health().torn >= 1


def test_hang_up_is_noticed_and_the_port_reopened_under_its_name(far):
    clock = Clock()
    sender = Sender(clock)
    with Link(str(far.link), clock=clock) as link:
        far.unplug()
        wait_for(link, LinkState.BACKOFF)
        assert not link.offer(sender.encode(vitals()), MessageType.VITALS)
        clock.advance(0.6)
        link.poll()
        far.plug()
        plugged_ns = clock()
        assert until(lambda: link.health().state is LinkState.UP, SOON_S, link.poll, lambda: clock.advance(0.01), pause_s=0.0)
        assert clock() - plugged_ns <= (BACKOFF_S[1] + 0.2) * 1e9
        link.offer(sender.encode(vitals()), MessageType.VITALS)
        assert far.frames(1) == [vitals()]
        assert link.health().reopens == 1


def test_attempts_to_reopen_are_a_second_apart_at_most():
    now_ns, tries = [0], []

    def opener():
        tries.append(now_ns[0] / 1e9)
        if len(tries) > 1:
            raise PortMissing("gone")
        port = SlowPort()
        port.read = lambda timeout_s: (_ for _ in ()).throw(OSError(5, "gone"))
        return port

    link = Link("x", clock=lambda: now_ns[0], opener=opener)
    link.open()
    for _ in range(1200):
        link.poll()
        now_ns[0] += 10_000_000
    gaps = [b - a for a, b in zip(tries[1:], tries[2:], strict=False)]
    assert tries[1] == pytest.approx(0.25, abs=0.02)
    assert gaps[:3] == pytest.approx([0.5, 1.0, 1.0], abs=0.02) and max(gaps) <= 1.02


@pytest.mark.parametrize("away_s", [0.3, 1.1, 3.7, 3.8, 4.0, 4.2, 61.3])
def test_the_port_is_open_again_within_2_s_of_its_return_also_for_a_caller_that_comes_by_twice_a_second(away_s):
    now_ns, away = [0], [True]

    def opener():
        if away[0] and now_ns[0]:
            raise PortMissing("gone")
        port = SlowPort()
        port.read = lambda timeout_s: (_ for _ in ()).throw(OSError(5, "gone")) if away[0] else b""
        return port

    link = Link("x", clock=lambda: now_ns[0], opener=opener)
    link.open()
    link.poll()
    while link.health().state is not LinkState.UP:
        away[0] = now_ns[0] < away_s * 1e9
        link.poll()
        now_ns[0] += 500_000_000
    assert now_ns[0] / 1e9 - 0.5 - away_s <= 2.0


@pytest.mark.parametrize("cycles", [50, pytest.param(1000, marks=pytest.mark.soak)])
def test_replugs_leave_no_descriptor_behind_and_memory_as_it_was(far, link, cycles, monkeypatch):
    sender = Sender(time.monotonic_ns)
    monkeypatch.setattr(logging.getLogger("firmware_bridge.link"), "disabled", True)  # pytest would keep every line
    link._clock = lambda: time.monotonic_ns() * 20  # replug quickly: back-off runs twenty times as fast

    def cycle():
        far.unplug(name_goes=False)
        wait_for(link, LinkState.BACKOFF)
        far.plug()
        wait_for(link, LinkState.UP)
        link.offer(sender.encode(vitals()), MessageType.VITALS)

    for _ in range(10):  # whatever is made once is made by then
        cycle()
    before, memory_before = len(os.listdir("/proc/self/fd")), resident_bytes()
    for _ in range(cycles):
        cycle()
    assert len(os.listdir("/proc/self/fd")) == before
    assert link.health().reopens == cycles + 10
    grown = resident_bytes() - memory_before
    print(f"{cycles} cycles: {grown / 1024:.0f} KiB more memory")
    assert grown <= 1_000_000


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_taken_port_is_refused_and_its_holder_named(far, link, monkeypatch):
    monkeypatch.setattr(port_module, "HOLDER_SEARCH_S", SOON_S)
    with pytest.raises(PortTaken, match=rf"taken by process {os.getpid()} \(.+\).*Stop the other process"):
        Link(str(far.link)).open()


def test_a_port_taken_by_another_process_is_refused_too(far, monkeypatch):
    monkeypatch.setattr(port_module, "HOLDER_SEARCH_S", SOON_S)
    code = ("import sys, time\nfrom firmware_bridge.link import Link\n"
            "with Link(sys.argv[1]): print('up', flush=True); time.sleep(300)")
    with subprocess.Popen([sys.executable, "-c", code, str(far.link)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "up\n"
            with pytest.raises(PortTaken, match=f"process {holder.pid}"):
                Link(str(far.link)).open()
        finally:
            holder.kill()
    Link(str(far.link)).open()  # what a killed process held is free again


def test_not_even_one_who_asks_for_no_lock_gets_in(far, link):
    device = os.path.realpath(far.link)
    os.chmod(device, 0o666)
    # TIOCEXCL does not bind root, so root asks as somebody else.
    other = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    result = subprocess.run(["/bin/sh", "-c", f": <> {device}"], capture_output=True, text=True, cwd="/",
                            env={"LC_ALL": "C"}, **other)
    assert result.returncode != 0 and "busy" in result.stderr
    link.close()
    result = subprocess.run(["/bin/sh", "-c", f": <> {device}"], cwd="/", **other)
    assert result.returncode == 0


def test_looking_for_the_holder_of_a_port_never_takes_long(far, link, monkeypatch):
    """It happens at every attempt to reopen."""
    monkeypatch.setattr(port_module, "HOLDER_SEARCH_S", -1.0)
    with pytest.raises(PortTaken, match="taken by another process"):
        Link(str(far.link)).open()


@pytest.mark.parametrize("stop_bits", [1, 2])
def test_stop_bits_reach_the_port(far, stop_bits):
    with Link(str(far.link), 9600, stop_bits) as link:
        attributes = termios.tcgetattr(link._device._fd)
        assert bool(attributes[2] & termios.CSTOPB) == (stop_bits == 2)
        assert attributes[5] == termios.B9600


def test_a_missing_port_is_an_error_at_start_unless_waiting_was_asked_for(tmp_path):
    link = Link(str(tmp_path / "nothing"))
    with pytest.raises(PortMissing, match="nothing is not there .*expected the display's port. Check cable"):
        link.open()
    assert link.health().state is LinkState.CLOSED
    link.open(wait=True)
    assert link.health().state is LinkState.BACKOFF
    far = Far(tmp_path / "nothing")
    wait_for(link, LinkState.UP)
    link.close()
    far.unplug()


def test_what_is_no_serial_port_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LinkError, match="cannot be used as a serial port"):
        Link(str(tmp_path / "file")).open()
    with pytest.raises(LinkError, match="baud rate 12345: expected one of 9600"):
        Link(str(tmp_path / "file"), baud=12345).open()
    with pytest.raises(LinkError, match="stop bits 3"):
        Link(str(tmp_path / "file"), stop_bits=3).open()


def test_orderly_end_says_bye_and_a_crash_does_not(far):
    def transmitter():
        return Transmitter(Sender(time.monotonic_ns), [Link(str(far.link))], Hello())
    with transmitter() as wire:
        wire.send(vitals())
    assert far.frames(3) == [Hello(), vitals(), Bye()]
    with pytest.raises(ValueError), transmitter() as wire:
        wire.send(vitals())
        raise ValueError
    assert far.frames(2) == [Hello(), vitals()]
    with pytest.raises(KeyboardInterrupt), transmitter():
        raise KeyboardInterrupt
    assert far.frames(1) == [Bye()]


def test_hello_comes_first_every_5_s_and_after_a_reopening(far):
    now_ns = [1]
    with Transmitter(Sender(lambda: now_ns[0]), [Link(str(far.link))], Hello(), clock=lambda: now_ns[0]) as wire:
        for _ in range(22):
            wire.send(vitals())
            now_ns[0] += 500_000_000
        kinds = [m.TYPE.name[0] for m in far.frames(25)]
        assert "".join(kinds) == "H" + "V" * 10 + "H" + "V" * 10 + "HVV"
        far.unplug()
        wait_for(wire.outlets[0], LinkState.BACKOFF)
        far.plug()
        wait_for(wire.outlets[0], LinkState.UP)
        wire.send(vitals())
        assert far.frames(2) == [Hello(), vitals()]


def test_the_wire_file_holds_the_very_bytes_of_the_port(far, tmp_path):
    file = tmp_path / "wire.bin"
    with Transmitter(Sender(time.monotonic_ns), [Link(str(far.link)), FileLink(file)], Hello()) as wire:
        for n in range(10):
            wire.send(vitals(1000 + n))
    assert file.read_bytes() == far.read(lambda data: frames_of(data)[-1:] == [Bye()])


def test_a_wire_file_that_cannot_be_written_is_an_error_at_start_and_no_harm_later(far, tmp_path):
    with pytest.raises(LinkError, match="cannot be written"):
        FileLink(tmp_path / "no" / "such").open()
    full = FileLink("/dev/full")
    with Transmitter(Sender(time.monotonic_ns), [full, Link(str(far.link))], Hello()) as wire:
        wire.send(vitals())
        assert full.health().state is LinkState.CLOSED
        wire.send(vitals())
    assert far.frames(4) == [Hello(), vitals(), vitals(), Bye()]


def test_a_port_that_fails_to_open_closes_those_opened_before(far, tmp_path):
    first = Link(str(far.link))
    with pytest.raises(PortMissing):
        Transmitter(Sender(time.monotonic_ns), [first, Link(str(tmp_path / "none"))], Hello()).__enter__()
    assert first.health().state is LinkState.CLOSED


def a_minute(far, link, now_ns, display, status, taken):
    """Sixty seconds of VITALS of which the display says it took so many."""
    sender = Sender(lambda: now_ns[0])
    for n in range(60):
        link.offer(sender.encode(vitals()), MessageType.VITALS)
        status = replace(status, frames_ok=status.frames_ok + (n < taken) & 0xFFFF, uptime_s=status.uptime_s + 1)
        os.write(far.master, display.encode(status))
        assert hears(link, status)
        now_ns[0] += 1_000_000_000
    return status


def test_counters_go_to_the_log_once_a_minute_with_what_the_display_reports(far, caplog):
    now_ns = [0]
    caplog.set_level(logging.INFO, "firmware_bridge.link")
    display = Sender(lambda: 0)
    status = replace(STATUS, frames_ok=0xFFF0, bad_crc=4, lost=2, late=1)
    with Link(str(far.link), clock=lambda: now_ns[0]) as link:
        for _ in range(3):
            status = a_minute(far, link, now_ns, display, status, 60)
        lines = [r.message for r in caplog.records if "drops" in r.message]
        assert len(lines) == 2 and "frames 60" in lines[0] and "write timeouts 0" in lines[0]
        assert f"display: ok {0xFFF0 + 60 & 0xFFFF}, bad cobs 0 crc 4 length 0, lost 2, late 1, up 69 s" in lines[0]
        assert not [r.message for r in caplog.records if "frames;" in r.message]


def test_a_display_that_takes_clearly_less_than_leaves_is_in_the_log(far, caplog):
    now_ns = [0]
    display, status = Sender(lambda: 0), STATUS
    with Link(str(far.link), clock=lambda: now_ns[0]) as link:
        status = a_minute(far, link, now_ns, display, status, 60)
        status = a_minute(far, link, now_ns, display, status, 50)
        a_minute(far, link, now_ns, display, status, 60)
    said = [r.message for r in caplog.records if "frames;" in r.message]
    assert len(said) == 1 and "the display took 50 of 60 frames; check cable, ground, baud rate and stop bits" in said[0]


def test_without_a_display_that_reports_the_log_says_so(far, caplog):
    caplog.set_level(logging.INFO, "firmware_bridge.link")
    now_ns = [0]
    with Link(str(far.link), clock=lambda: now_ns[0]) as link:
        now_ns[0] += 61_000_000_000
        link.poll()
        assert any("display: no STATUS" in r.message for r in caplog.records)


def test_a_display_can_offer_its_own_pty_and_the_unit_may_come_and_go(tmp_path):
    name = tmp_path / "display"
    display = Link(str(name), opener=lambda: open_pty(str(name)))
    with display:
        for n in range(3):
            with Link(str(name)) as unit:
                unit.offer(Sender(time.monotonic_ns).encode(vitals(1000 + n)), MessageType.VITALS)
            assert frames_of(one_frame(display)) == [vitals(1000 + n)]
    assert not name.is_symlink()
    name.write_text("somebody's file")
    with pytest.raises(LinkError, match="no symbolic link"):
        open_pty(str(name))


def test_steps_of_the_wall_clock_change_nothing(far, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: random.uniform(-1, 1) * 1e9)
    with Transmitter(Sender(time.monotonic_ns), [Link(str(far.link))], Hello()) as wire:
        wire.send(vitals())
        wire.poll()
    assert len(far.read(lambda data: len(data) > 80)) > 80
