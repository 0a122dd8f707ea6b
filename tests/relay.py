"""A serial line that has a speed: bytes take their time, a small FIFO and a driver's 4 KB wait before it.

`Line` is the model, in any clock. `LinePort` is a link's port on two of them in simulated time; `Relay` joins two ptys by two
of them in real time, since a pty alone passes 115,200 bytes in a tenth of a second and keeps what nobody reads.
"""

from __future__ import annotations

import os
import select
import threading
import time
import tty

from firmware_bridge.port import Port, open_serial

TICK_S = 0.002


class Line:
    """One direction. Times in ns. overrun: bytes that the receiver had no room for, which a UART loses."""

    def __init__(self, baud: int, stop_bits: int = 1, buffer: int = 4096, fifo: int = 16) -> None:
        self.byte_ns = round((1 + 8 + stop_bits) * 1e9 / baud)
        self.overrun = 0
        self._buffer, self._fifo = buffer, fifo
        self._waiting = bytearray()
        self._arrived = bytearray()
        self._start_ns = 0  # when the first of what waits began to leave
        self._stopped = False

    def put(self, data: bytes, now_ns: int) -> int:
        """How many bytes the driver took."""
        self._run(now_ns)
        taken = min(len(data), self._buffer + self._fifo - len(self._waiting))
        if not self._waiting:
            self._start_ns = now_ns
        self._waiting += data[:taken]
        return taken

    def take(self, now_ns: int) -> bytes:
        """What has arrived since the last call."""
        self._run(now_ns)
        data = bytes(self._arrived)
        self._arrived.clear()
        return data

    def queued(self, now_ns: int) -> int:
        """What TIOCOUTQ tells: the driver's buffer, without the FIFO."""
        self._run(now_ns)
        return max(0, len(self._waiting) - self._fifo)

    def discard(self, now_ns: int) -> None:
        """What TCOFLUSH does."""
        self._run(now_ns)
        del self._waiting[self._fifo:]

    def stop(self, now_ns: int) -> None:
        """The far end takes nothing (flow control, a converter that hangs): what is sent waits."""
        self._run(now_ns)
        self._stopped = True

    def go(self, now_ns: int) -> None:
        self._stopped, self._start_ns = False, now_ns

    def _run(self, now_ns: int) -> None:
        if self._stopped or not self._waiting:
            return
        n = min(len(self._waiting), (now_ns - self._start_ns) // self.byte_ns)
        self._arrived += self._waiting[:n]
        del self._waiting[:n]
        self._start_ns += n * self.byte_ns


class Clock:
    """A time that only moves when told to."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


class LinePort:
    """A link's port on two lines, in simulated time. tells: whether the driver says how much waits."""

    def __init__(self, out: Line, back: Line, clock: Clock, tells: bool = True) -> None:
        self._out, self._back, self._clock, self._tells = out, back, clock, tells

    def write(self, data: bytes) -> int:
        return self._out.put(data, self._clock.ns)

    def wait_writable(self, timeout_s: float) -> None:
        self._clock.advance(min(timeout_s, TICK_S))

    def read(self, timeout_s: float) -> bytes:
        return self._back.take(self._clock.ns)

    def queued(self) -> int:
        return self._out.queued(self._clock.ns) if self._tells else 0

    def discard_output(self) -> None:
        self._out.discard(self._clock.ns)

    def close(self) -> None: ...


class _DriverPort:
    """open_serial's port on a Relay, with what a pty lacks: a driver that holds 4 KB and says how much waits."""

    def __init__(self, port: Port, relay: Relay) -> None:
        self._port, self._relay = port, relay
        self.wait_writable, self.read = port.wait_writable, port.read

    def write(self, data: bytes) -> int:
        with self._relay.lock:
            taken = self._port.write(data[:max(0, 4096 - self._relay.waiting())])
            self._relay.written += taken
        return taken

    def queued(self) -> int:
        with self._relay.lock:
            return self._relay.waiting()

    def discard_output(self) -> None:
        with self._relay.lock:
            self._relay.there.discard(time.monotonic_ns())

    def close(self) -> None:
        """As Port.close does: what has not left by now is forgotten."""
        if self.queued():
            self.discard_output()
        self._port.close()


class Relay:
    """Two ptys with a thread between them: `unit` and `display` are the names of their ends. A context manager."""

    def __init__(self, baud: int, stop_bits: int = 1) -> None:
        self.baud, self.stop_bits = baud, stop_bits
        self.there, self.back = Line(baud, stop_bits), Line(baud, stop_bits)
        self.lock = threading.RLock()
        self.written = self._passed = 0  # by the unit; on from its pty into the line
        self._end = threading.Event()

    def __enter__(self) -> Relay:
        (self._unit, unit), (self._display, display) = os.openpty(), os.openpty()
        self._slaves = (unit, display)  # kept open, so that both sides may come and go
        for slave in self._slaves:
            tty.setraw(slave)
        self.unit, self.display = os.ttyname(unit), os.ttyname(display)
        for master in (self._unit, self._display):
            os.set_blocking(master, False)
        self._thread = threading.Thread(target=self._pass, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for fd in (self._unit, self._display, *self._slaves):
            os.close(fd)

    def unit_port(self) -> _DriverPort:
        """The opener for a unit whose driver tells how much waits."""
        return _DriverPort(open_serial(self.unit, self.baud, self.stop_bits), self)

    def waiting(self) -> int:
        return self.written - self._passed + self.there.queued(time.monotonic_ns())

    def _pass(self) -> None:
        while not self._end.is_set():
            select.select([self._unit, self._display], [], [], TICK_S)
            with self.lock:
                now_ns = time.monotonic_ns()
                self._passed += _move(self._unit, self.there, self._display, now_ns)
                _move(self._display, self.back, self._unit, now_ns)
            time.sleep(TICK_S)  # one tick a turn, also while bytes wait for room


def _move(source: int, line: Line, sink: int, now_ns: int) -> int:
    """Into the line what it has room for, out of it what has arrived; returns how much went in."""
    entered = 0
    room = 4096 - line.queued(now_ns)
    if room > 0:
        try:
            entered = line.put(os.read(source, room), now_ns)
        except BlockingIOError:
            entered = 0
    data = line.take(now_ns)
    if data:
        try:
            line.overrun += len(data) - os.write(sink, data)
        except BlockingIOError:
            line.overrun += len(data)
    return entered
