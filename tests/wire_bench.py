"""A camera unit, a port and a clock for the simulator's tests: everything arrives when the test says so, in no time at all."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from collections.abc import Callable

from firmware_bridge.frame import Sender
from firmware_bridge.link import Link
from firmware_bridge.messages import Hello, Vitals, Wave
from firmware_bridge.schema import Channel, Flags, VitalState
from firmware_bridge.simulator import HEIGHT_PX, WIDTH_PX, Look, PythonDisplay, Simulator
from firmware_bridge.web import ADDRESS, WebPage

SHOWN = Vitals(1432, 418, VitalState.VALID, VitalState.VALID, 88, 75, 3, 5, 8, 16)
ANSWER_S = 30.0
"""How long an answer of the page's server is waited for, also on a machine that is busy with something else."""


class FlatDisplay(PythonDisplay):
    """The Python rules with a frame buffer of one colour that changes with everything on the screen."""

    def frame_buffer(self) -> bytes:
        return hashlib.sha256(repr(self._painted).encode()).digest()[:2] * (WIDTH_PX * HEIGHT_PX)


def unit(seconds: float, message: Vitals = SHOWN, start_ms: int = 0, unit_ms: int = 70_000,
         session: int | None = None) -> list[tuple[int, bytes]]:
    """What a camera unit sends and when: HELLO, VITALS twice and waves five times a second."""
    now_ms = [0]
    sender = Sender(lambda: (now_ms[0] + unit_ms) * 1_000_000, Flags.INVESTIGATIONAL, session)
    sent = [(start_ms, sender.encode(Hello(product="bench")))]
    for tick in range(round(seconds * 10)):
        now_ms[0] = 100 * tick
        if tick % 5 == 0:
            sent.append((start_ms + now_ms[0], sender.encode(message)))
        if tick % 2 == 0:
            for channel in (Channel.PULSE, Channel.RESP):
                samples = tuple((7 * (5 * tick // 2 + i)) % 200 - 100 for i in range(5))
                sent.append((start_ms + now_ms[0], sender.encode(Wave(5 * tick // 2, channel, 25, samples))))
    return sent


class Bench:
    """A port whose bytes come by a script, on a clock that only waiting moves."""

    def __init__(self, script: list[tuple[int, bytes]]) -> None:
        self.now_ns = 5_000_000_000
        self.start_ns = self.now_ns
        self.script = list(script)
        self.written: list[bytes] = []
        self.at: dict[int, Callable[[], object]] = {}  # ms -> what somebody does then
        self.link = Link("bench", clock=self.clock, opener=lambda: self)
        self.link.open()

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self._pass_to(self.now_ms + 1000 * seconds)

    @property
    def now_ms(self) -> float:
        return (self.now_ns - self.start_ns) / 1e6

    def _pass_to(self, ms: float) -> None:
        self.now_ns = max(self.now_ns, self.start_ns + round(ms * 1e6))
        while (due := min(self.at, default=None)) is not None and due <= self.now_ms:
            self.at.pop(due)()

    def read(self, timeout_s: float) -> bytes:
        until_ms = self.now_ms + 1000 * timeout_s
        self._pass_to(min(until_ms, max(self.now_ms, self.script[0][0])) if self.script else until_ms)
        data = b""
        while self.script and self.script[0][0] <= self.now_ms:
            data += self.script.pop(0)[1]
        return data

    def write(self, data: bytes) -> int:
        self.written.append(data)
        return len(data)

    def wait_writable(self, timeout_s: float) -> None: ...
    def queued(self) -> int: return 0
    def discard_output(self) -> None: ...
    def close(self) -> None: ...


class SteadyPort:
    """A camera unit that sends VITALS twice a second, in real time."""

    def __init__(self) -> None:
        self._sender = Sender(time.monotonic_ns)
        self._next_s = time.monotonic()

    def read(self, timeout_s: float) -> bytes:
        wait_s = min(timeout_s, max(0.0, self._next_s - time.monotonic()))
        time.sleep(wait_s)
        if time.monotonic() < self._next_s:
            return b""
        self._next_s += 0.5
        return self._sender.encode(SHOWN)

    def write(self, data: bytes) -> int: return len(data)
    def wait_writable(self, timeout_s: float) -> None: ...
    def queued(self) -> int: return 0
    def discard_output(self) -> None: ...
    def close(self) -> None: ...


class Served:
    """A simulator in a thread and in real time, with its page."""

    def __init__(self, make_display: Callable[[int], FlatDisplay] = FlatDisplay) -> None:
        link = Link("bench", opener=SteadyPort)
        link.open()
        self.simulator = Simulator(link, make_display, with_pixels=True, stays=True)
        self.page = WebPage(self.simulator)
        self.port = int(self.page.url.rsplit(":", 1)[1].strip("/"))
        self.looks: dict[str, Look] = {}  # the newest hundred, by what was on the glass
        self._thread = threading.Thread(target=self.simulator.run, args=(self._show,), daemon=True)
        self._thread.start()
        while not self.looks:
            time.sleep(0.01)

    def _show(self, look: Look) -> None:
        self.looks[look.glass] = look
        if len(self.looks) > 100:
            del self.looks[next(iter(self.looks))]
        self.page.show(look)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str):
        connection = http.client.HTTPConnection(ADDRESS, self.port, timeout=ANSWER_S)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, names)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer, data

    def post(self, path: str, body: bytes = b"", **headers: str):
        return self.ask("POST", path, body, **{"X_Physvlm_Token": self.page.token, **headers})

    def state(self) -> dict:
        """The first event about a look that is yet to come."""
        number = self.page._look.number + 1
        connection = http.client.HTTPConnection(ADDRESS, self.port, timeout=ANSWER_S)
        connection.request("GET", "/events")
        stream = connection.getresponse()
        while line := stream.readline():
            if line.startswith(b"data: ") and (state := json.loads(line[6:]))["number"] >= number:
                connection.close()
                return state
        raise AssertionError("the stream ended")

    def end(self) -> None:
        self.simulator.stop()
        self._thread.join()
        self.page.close()
