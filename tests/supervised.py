"""systemd's part in a test: starts a real `physvlm run`, hears its signs of life, kills and restarts it as the unit says.

Run as a program it is the child: `run` over an engine of a few numpy lines, which hangs while the file PHYSVLM_TEST_HANG is
there.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class OwnTime:
    """Monotonic nanoseconds without the moments in which this process stood still, as on a machine that stalls: what is judged
    by them is late by its own fault alone. To be asked often: a longer pause than most_s between two calls counts as most_s."""

    def __init__(self, most_s: float = 0.1) -> None:
        self._most_ns = round(most_s * 1e9)
        self._lock = threading.Lock()
        self._ns = self._asked_ns = time.monotonic_ns()

    def __call__(self) -> int:
        with self._lock:
            now_ns = time.monotonic_ns()
            self._ns += min(now_ns - self._asked_ns, self._most_ns)
            self._asked_ns = now_ns
            return self._ns


class Supervisor:
    """heard: (seconds since the start, pid, text) of every datagram. died: (seconds, pid) of every child's end."""

    def __init__(self, command: Sequence[str], address: str, watchdog_s: float, environment: dict[str, str] | None = None,
                 restart_s: float = 0.5, abort_s: float = 1.0) -> None:
        self.heard: list[tuple[float, int, str]] = []
        self.died: list[tuple[float, int]] = []
        self._command, self._watchdog_s, self._restart_s, self._abort_s = list(command), watchdog_s, restart_s, abort_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self._environment = os.environ | {"NOTIFY_SOCKET": address, "PYTHONPATH": str(ROOT)} | (environment or {})
        self._clock = OwnTime()
        self._start_ns = self._clock()
        self._spawn()

    @property
    def now_s(self) -> float:
        return (self._clock() - self._start_ns) / 1e9

    def _spawn(self) -> None:
        self.child = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stderr=subprocess.PIPE, text=True)
        self._fed_s: float | None = None  # the watchdog runs from READY=1 on
        self._aborted_s: float | None = None
        self._dead_s: float | None = None

    def step(self) -> None:
        """Call it often."""
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except BlockingIOError:
                break
            self.heard.append((self.now_s, self.child.pid, text))
            if "READY=1" in text or "WATCHDOG=1" in text:
                self._fed_s = self.now_s
        if self._dead_s is None and self.child.poll() is not None:
            self._dead_s = self.now_s
            self.died.append((self.now_s, self.child.pid))
        if self._dead_s is not None:
            if self.now_s - self._dead_s >= self._restart_s:
                self._spawn()
        elif self._aborted_s is not None:
            if self.now_s - self._aborted_s >= self._abort_s:
                self.child.kill()
        elif self._fed_s is not None and self.now_s - self._fed_s > self._watchdog_s:
            self._aborted_s = self.now_s
            self.child.send_signal(signal.SIGABRT)

    def ready_at(self) -> list[float]:
        return [t_s for t_s, _, text in self.heard if "READY=1" in text]

    def end(self) -> None:
        self.child.kill()
        self.child.wait()
        if self.child.stderr is not None:
            self.child.stderr.close()
        self._socket.close()


def until(seen: Callable[[], bool], timeout_s: float, *steps: Callable[[], None], pause_s: float = 0.02) -> bool:
    """Whether it was seen in time; calls every step meanwhile. Looks once more after the last moment: this process may have
    stood still."""
    end_s = time.monotonic() + timeout_s
    while True:
        late = time.monotonic() >= end_s
        for step in steps:
            step()
        if seen():
            return True
        if late:
            return False
        time.sleep(pause_s)


def _child() -> int:
    from edge import runtime
    from edge.__main__ import main
    from tests.fake_engine import FakeEngine

    class Hangs(FakeEngine):
        def stem(self, frames):  # type: ignore[no-untyped-def]
            while os.path.exists(os.environ.get("PHYSVLM_TEST_HANG", "")):
                time.sleep(0.05)
            return super().stem(frames)

    runtime.make_engine = lambda config, say=None: (Hangs(), "fake")  # type: ignore[assignment]
    return main(["run", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(_child())
