"""Tells systemd (Type=notify) that the appliance gets on. Fed by progress alone, never by a timer or a thread of its own.

It is fed while both of these happened within the last STALE_NS:

* A frame went through the chain. Or: the camera is lost, is being opened again, and the display has just been told NO
  CAMERA. (A camera that is open and silent is no such thing: its thread may be stuck in the driver, and only a new process
  frees it.)
* The port took a write. Or: the port is gone and being reopened, for a restart brings no cable back. Or there is no port.

So a loop, an engine, a driver or a port that hangs is not fed for, and systemd kills the process WatchdogSec later.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

log = logging.getLogger("physvlm.watchdog")

STALE_NS = 1_000_000_000
"""Two periods of VITALS (PROTOCOL.md): one may be late, two may not."""

START_S = 60
"""What one sign of life buys while the appliance is still starting; the unit's TimeoutStartSec is the same."""


def notify(text: str, address: str) -> None:
    """One datagram to the supervisor. address: $NOTIFY_SOCKET, where @ stands for the abstract namespace. Raises OSError."""
    where = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.setblocking(False)  # a supervisor that does not listen must not hang us
        out.sendto(text.encode(), where)


class Watchdog:
    """The loop reports what it did (`frame`, `no_camera`, `port`) and asks for a sign of life (`feed`).

    address: $NOTIFY_SOCKET, empty or None where nobody supervises. clock_ns: monotonic.
    """

    def __init__(self, address: str | None = None, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._address = address
        self._clock_ns = clock_ns
        self._looked_ns: int | None = None
        self._spoke_ns: int | None = None
        self._seen = self._ready = False
        self._status = ""

    def starting(self, text: str) -> None:
        """Still getting there, such as while an engine is built: not hung."""
        self._tell(f"EXTEND_TIMEOUT_USEC={START_S * 1_000_000}", text)

    def frame(self) -> None:
        """A frame went through the chain."""
        self._looked_ns = self._clock_ns()
        self._seen = True

    def no_camera(self) -> None:
        """The camera is being opened again, and the display was told so."""
        self._looked_ns = self._clock_ns()

    def port(self, gets_on: bool) -> None:
        """gets_on: the port took a write, or is gone and being reopened, or there is none."""
        if gets_on:
            self._spoke_ns = self._clock_ns()

    def feed(self, status: str = "") -> bool:
        """Call it every period. READY=1 the first time after a frame, WATCHDOG=1 from then on; False where nothing moves."""
        now_ns = self._clock_ns()
        if any(t is None or now_ns - t > STALE_NS for t in (self._looked_ns, self._spoke_ns)):
            return False
        if self._ready:
            self._tell("WATCHDOG=1", status)
        elif self._seen:
            self._ready = True
            self._tell("READY=1\nWATCHDOG=1", status)
        else:
            self.starting(status)
        return True

    def stopping(self) -> None:
        """An orderly stop begins; BYE follows."""
        self._tell("STOPPING=1", "stopping")

    def _tell(self, text: str, status: str) -> None:
        if not self._address:
            return
        if status and status != self._status:
            self._status = status
            text += "\nSTATUS=" + status.replace("\n", " ")
        try:
            notify(text, self._address)
        except BlockingIOError:
            log.debug("the supervisor's queue is full; the next sign of life will do")
        except OSError as e:
            log.warning("the supervisor at %s does not hear us: %s", self._address, e)
            self._address = None
