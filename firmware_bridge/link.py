"""The serial port of PVL/1, and the file that keeps its bytes.

A Link never blocks its caller beyond 100 ms and keeps no backlog: what cannot leave now is replaced by what is newer.
It reopens a lost port by itself. Not thread-safe: one thread owns a link and calls it at least a few times a second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Protocol

from firmware_bridge.frame import MAX_ENCODED, DecodedFrame, Decoder, Sender, Verdict
from firmware_bridge.messages import Bye, Hello, Message, Status
from firmware_bridge.port import LinkError, Port, PortMissing, open_serial
from firmware_bridge.schema import MessageType

log = logging.getLogger(__name__)

MAX_WRITE_S = 0.1  # the longest that one call may wait for room
PENDING_LIMIT_S = 0.3  # a frame kept back for longer is dropped: its t_ms would read as lag
QUEUE_LIMIT_BYTES = MAX_ENCODED + 2  # one largest frame may wait in the driver: 0.14 s at 9600 baud
BACKOFF_S = (0.25, 2.0)  # first and longest wait between attempts to reopen
SUMMARY_INTERVAL_S = 60.0
HELLO_INTERVAL_S = 5.0
# What leaves first when several frames wait.
_ORDER = (MessageType.BYE, MessageType.VITALS, MessageType.STATUS, MessageType.HELLO, MessageType.WAVE)


class LinkState(Enum):
    CLOSED = "closed"
    OPENING = "opening"
    UP = "up"
    BACKOFF = "backoff"


@dataclass(frozen=True)
class Health:
    """Counts since the link was made. drops: frames that never left; torn: frames that left in part."""

    state: LinkState
    frames: int = 0
    bytes: int = 0
    drops: int = 0
    torn: int = 0
    write_timeouts: int = 0
    reopens: int = 0
    received: int = 0
    received_bad: int = 0
    last_status: Status | None = None


class Outlet(Protocol):
    """Where frames go."""

    def open(self) -> None: ...
    def offer(self, frame: bytes, kind: MessageType) -> bool: ...
    def poll(self) -> list[DecodedFrame]: ...
    def health(self) -> Health: ...
    def close(self, farewell: bytes | None = None) -> None: ...


class Link:
    """One serial port: CLOSED -> OPENING -> UP -> BACKOFF -> OPENING ...

    port: a device path, best a stable one (/dev/serial/by-path/..., a udev name). clock: monotonic nanoseconds.
    opener: replaces the serial port by another way to get a Port. open() raises LinkError, later losses do not.
    """

    def __init__(self, port: str, baud: int = 115200, stop_bits: int = 1, clock: Callable[[], int] = time.monotonic_ns,
                 opener: Callable[[], Port] | None = None) -> None:
        self.port = port
        self._opener = opener or (lambda: open_serial(port, baud, stop_bits))
        self._clock = clock
        self._device: Port | None = None
        self._health = Health(LinkState.CLOSED)
        self._decoder = Decoder()
        self._pending: dict[MessageType, tuple[bytes, int]] = {}  # newest frame of each kind, and when it was offered
        self._stalled = False
        self._backoff_s = BACKOFF_S[0]
        self._retry_ns = 0
        self._summary_ns = clock()

    def __enter__(self) -> Link:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def open(self, wait: bool = False) -> None:
        """The first opening. A wrong name or a taken port is an error, unless a missing port may be waited for."""
        if self._device is not None:
            return
        self._count(state=LinkState.OPENING)
        try:
            self._device = self._opener()
        except LinkError as error:
            if wait and isinstance(error, PortMissing):
                self._count(state=LinkState.BACKOFF)
                return
            self._count(state=LinkState.CLOSED)
            raise
        self._count(state=LinkState.UP)
        log.info("link %s: open", self.port)

    def offer(self, frame: bytes, kind: MessageType) -> bool:
        """Takes a frame in place of any older one of its kind. True when everything that waited has left."""
        now_ns = self._clock()
        self._tend(now_ns)
        if kind in self._pending or self._device is None:
            self._count(drops=1)
        if self._device is None:
            return False
        self._pending[kind] = (frame, now_ns)
        return self._pump() and not self._stalled

    def read(self, timeout_s: float = 0.0) -> bytes:
        """Whatever has arrived, b"" when nothing came in time or the port is away."""
        self._tend(self._clock())
        if self._device is None:
            time.sleep(min(timeout_s, BACKOFF_S[0]))
            return b""
        data = b""
        with self._losing():
            data = self._device.read(timeout_s)
        return data

    def poll(self) -> list[DecodedFrame]:
        """Sends what still waits, and returns the good frames that the other side sent."""
        self._pump()
        decoded = [frame for frame in self._decoder.feed(self.read()) if frame.verdict is Verdict.OK]
        for frame in decoded:
            if isinstance(frame.message, Status):
                self._health = replace(self._health, last_status=frame.message)
        counters = self._decoder.counters
        self._health = replace(self._health, received=counters.ok, received_bad=counters.bad)
        return decoded

    def health(self) -> Health:
        return self._health

    def close(self, farewell: bytes | None = None) -> None:
        """Says farewell (a BYE frame), gives it 100 ms to leave, and closes. May be called again."""
        if self._device is not None and farewell is not None:
            self._pending = {MessageType.BYE: (farewell, self._clock())}
            deadline_ns = self._clock() + int(MAX_WRITE_S * 1e9)
            while not self._pump() and self._device is not None and self._clock() < deadline_ns:
                time.sleep(0.005)
            with self._losing():
                while self._device is not None and self._device.queued() and self._clock() < deadline_ns:
                    time.sleep(0.005)
        if self._device is not None:
            self._device.close()
            self._device = None
            log.info("link %s: closed; %s", self.port, self._summary())
        self._count(state=LinkState.CLOSED)

    def _pump(self) -> bool:
        """Writes what waits, most important first, unless the driver still has enough to send."""
        for kind in _ORDER:
            if kind not in self._pending or self._device is None:
                continue
            frame, offered_ns = self._pending[kind]
            if self._clock() - offered_ns > PENDING_LIMIT_S * 1e9:
                del self._pending[kind]
                self._count(drops=1)
                continue
            with self._losing():
                if self._device.queued() > QUEUE_LIMIT_BYTES:
                    return False
                del self._pending[kind]
                self._write(self._device, frame)
        return not self._pending

    def _write(self, device: Port, frame: bytes) -> None:
        """One frame by an own deadline. What could not leave is dropped: the next frame's first 00 ends a torn one."""
        # A peer that took nothing the last time is not waited for again until it takes something.
        deadline_ns = self._clock() + (0 if self._stalled else int(MAX_WRITE_S * 1e9))
        sent = device.write(frame)
        while sent < len(frame) and (left_ns := deadline_ns - self._clock()) > 0:
            device.wait_writable(left_ns / 1e9)
            sent += device.write(frame[sent:])
        self._stalled = sent < len(frame)
        if not self._stalled:
            self._count(frames=1, bytes=sent)
            return
        # Nobody reads. All that waits is older than what comes next; where the driver can, it forgets it.
        device.discard_output()
        self._count(bytes=sent, drops=1, torn=int(sent > 0), write_timeouts=1)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """Turns the loss of the device into BACKOFF."""
        try:
            yield
        except (OSError, termios.error) as error:
            log.warning("link %s: lost (%s); reopening", self.port, error)
            if self._device is not None:
                self._device.close()
            self._device = None
            self._count(drops=len(self._pending), state=LinkState.BACKOFF)
            self._pending.clear()
            self._decoder.feed(b"\x00")
            self._backoff_s = BACKOFF_S[0]
            self._retry_ns = self._clock() + int(self._backoff_s * 1e9)

    def _tend(self, now_ns: int) -> None:
        """Reopens when it is time, and writes the minute's line."""
        if now_ns - self._summary_ns >= SUMMARY_INTERVAL_S * 1e9:
            self._summary_ns = now_ns
            log.info("link %s: %s", self.port, self._summary())
        if self._health.state is not LinkState.BACKOFF or now_ns < self._retry_ns:
            return
        self._count(state=LinkState.OPENING)
        try:
            self._device = self._opener()
        except LinkError as error:
            log.debug("link %s: %s", self.port, error)
            self._backoff_s = min(BACKOFF_S[1], 2 * self._backoff_s)
            self._retry_ns = now_ns + int(self._backoff_s * 1e9)
            self._count(state=LinkState.BACKOFF)
            return
        self._stalled = False
        self._count(state=LinkState.UP, reopens=1)
        log.info("link %s: open again", self.port)

    def _count(self, state: LinkState | None = None, **more: int) -> None:
        grown = {name: getattr(self._health, name) + n for name, n in more.items()}
        self._health = replace(self._health, state=state or self._health.state, **grown)

    def _summary(self) -> str:
        h, s = self._health, self._health.last_status
        text = (f"{h.state.value}, frames {h.frames}, bytes {h.bytes}, drops {h.drops}, torn {h.torn}, write timeouts "
                f"{h.write_timeouts}, reopens {h.reopens}, received ok {h.received} bad {h.received_bad}")
        if s is not None:
            bad = s.bad_cobs + s.bad_crc + s.bad_len
            text += f"; display: ok {s.frames_ok}, bad {bad}, lost {s.lost}, late {s.late}"
        return text


class FileLink:
    """Keeps the wire's bytes in a file for `dump` and `display`. A full disk ends the recording, not the monitoring."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: int | None = None
        self._health = Health(LinkState.CLOSED)

    def open(self) -> None:
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LinkError(f"wire file {self.path} cannot be written ({error.strerror}); choose another.") from error
        self._health = replace(self._health, state=LinkState.UP)

    def offer(self, frame: bytes, kind: MessageType) -> bool:
        if self._file is None:
            self._health = replace(self._health, drops=self._health.drops + 1)
            return False
        try:
            written = os.write(self._file, frame)
        except OSError as error:
            log.error("wire file %s: %s; the recording ends here", self.path, error.strerror)
            self.close()
            return False
        self._health = replace(self._health, frames=self._health.frames + 1, bytes=self._health.bytes + written)
        return True

    def poll(self) -> list[DecodedFrame]:
        return []

    def health(self) -> Health:
        return self._health

    def close(self, farewell: bytes | None = None) -> None:
        if self._file is not None and farewell is not None:
            self.offer(farewell, MessageType.BYE)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._health = replace(self._health, state=LinkState.CLOSED)


class Transmitter:
    """A run's voice: numbers and stamps each message once and offers the same bytes to every outlet.

    Says HELLO on open, after a reopening and every 5 s by itself, and BYE when the context ends without an Exception: a
    crash shall read CAMERA LINK LOST.
    """

    def __init__(self, sender: Sender, outlets: Sequence[Outlet], hello: Hello,
                 clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.sender = sender
        self.outlets = tuple(outlets)
        self._hello = hello
        self._clock = clock
        self._hello_ns: int | None = None
        self._reopens = 0

    def __enter__(self) -> Transmitter:
        with contextlib.ExitStack() as undo:
            for outlet in self.outlets:
                outlet.open()
                undo.callback(outlet.close)
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close(orderly=not isinstance(error, Exception))

    def send(self, message: Message) -> None:
        now_ns = self._clock()
        reopens = sum(outlet.health().reopens for outlet in self.outlets)
        if self._hello_ns is None or now_ns - self._hello_ns >= HELLO_INTERVAL_S * 1e9 or reopens != self._reopens:
            self._hello_ns, self._reopens = now_ns, reopens
            self._offer(self._hello)
        self._offer(message)

    def poll(self) -> list[DecodedFrame]:
        """Call it a few times a second: drains what waits, returns what the display sent (STATUS)."""
        return [frame for outlet in self.outlets for frame in outlet.poll()]

    def close(self, orderly: bool = True) -> None:
        farewell = self.sender.encode(Bye()) if orderly else None
        for outlet in self.outlets:
            outlet.close(farewell)

    def _offer(self, message: Message) -> None:
        frame = self.sender.encode(message)
        for outlet in self.outlets:
            outlet.offer(frame, message.TYPE)
