"""The serial port of PVL/1.

A Link never blocks its caller beyond 100 ms and keeps no backlog: what cannot leave now is replaced by what is newer.
It reopens a lost port by itself, and holds what the display says it shows against what was sent (readback.py).
Not thread-safe: one thread owns a link and calls it at least twice a second, better ten times.
"""

from __future__ import annotations

import contextlib
import logging
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from types import TracebackType

from firmware_bridge.frame import MAX_ENCODED, DecodedFrame, Decoder, Verdict
from firmware_bridge.messages import Status, Wave
from firmware_bridge.port import LinkError, Port, PortMissing, open_serial
from firmware_bridge.readback import Finding, ReadBack, Trouble
from firmware_bridge.schema import MessageType

log = logging.getLogger(__name__)

MAX_WRITE_S = 0.1  # the longest that calls in a row may wait for room, all of them together
WAIT_SHARE = 0.2  # of the caller's time, in the long run: so the 100 ms are there again after half a second
PENDING_LIMIT_S = 0.3  # a frame kept back for longer is dropped: its t_ms would read as lag
FAREWELL_S = 0.3  # for BYE to leave: two largest frames before it at 9600 baud. Nothing is measured any more by then
QUEUE_LIMIT_BYTES = MAX_ENCODED + 2  # one largest frame may wait in the driver: 0.14 s at 9600 baud
WAVE_LIMIT_BYTES = 100  # with one piece more still below the above: VITALS never wait for a trace, which is thinned instead
BACKOFF_S = (0.25, 1.0)  # first and longest wait between attempts to reopen: within 2 s of the port's return, also
# where the caller comes by every half second only
SUMMARY_INTERVAL_S = 60.0
MIN_TAKEN = 0.95  # of the frames that left: a display that takes fewer has a bad line
# What leaves first when several frames wait.
_ORDER = (MessageType.BYE, MessageType.VITALS, MessageType.STATUS, MessageType.HELLO, MessageType.WAVE)


class LinkState(Enum):
    CLOSED = "closed"
    OPENING = "opening"
    UP = "up"
    BACKOFF = "backoff"


@dataclass(frozen=True)
class Health:
    """Counts since the link was made. drops: frames that never left; torn: frames that left in part.

    mismatches: STATUS that contradict what was sent. distrusted: the glass was wrong or old a moment ago, so no number
    should be sent (ReadBack.distrusts).
    """

    state: LinkState
    frames: int = 0
    bytes: int = 0
    drops: int = 0
    torn: int = 0
    write_timeouts: int = 0
    reopens: int = 0
    received: int = 0
    received_bad: int = 0
    mismatches: int = 0
    distrusted: bool = False
    last_status: Status | None = None


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
        self._read_back = ReadBack()
        self._trouble = Trouble.NONE
        # Newest frame of each kind (of each channel, with WAVE), and when it was offered; the latest offered stands last.
        self._pending: dict[tuple[MessageType, int], tuple[bytes, int]] = {}
        self._stalled = False
        self._wait_ns, self._wait_at_ns = int(MAX_WRITE_S * 1e9), clock()  # what may still be waited, as of when
        self._backoff_s = BACKOFF_S[0]
        self._retry_ns = 0
        self._summary_ns = clock()
        self._counts: list[tuple[int, Status]] = []  # frames sent when a STATUS came: the last before each summary, and now

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
        lane = self._note(frame, now_ns)
        if (kind, lane) in self._pending or self._device is None:
            self._count(drops=1)
        if self._device is None:
            return False
        self._pending.pop((kind, lane), None)
        self._pending[kind, lane] = (frame, now_ns)
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
        now_ms = self._clock() // 1_000_000
        status = next((f.message for f in reversed(decoded) if isinstance(f.message, Status)), None)
        if status is not None:
            self._health = replace(self._health, last_status=status)
            self._counts = [*self._counts[:1], (self._health.frames, status)]
            self._report(self._read_back.check(status, now_ms))
        distrusted, counters, known = self._read_back.distrusts(now_ms), self._decoder.counters, self._health
        if (distrusted, counters.ok, counters.bad) != (known.distrusted, known.received, known.received_bad):
            self._health = replace(known, distrusted=distrusted, received=counters.ok, received_bad=counters.bad)
        return decoded

    def health(self) -> Health:
        return self._health

    def close(self, farewell: bytes | None = None) -> None:
        """Says farewell (a BYE frame), gives it 0.3 s to leave, and closes. May be called again."""
        if self._device is not None and farewell is not None:
            self._pending = {(MessageType.BYE, 0): (farewell, self._clock())}
            deadline_ns = self._clock() + int(FAREWELL_S * 1e9)
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

    def _note(self, frame: bytes, now_ns: int) -> int:
        """Takes down for the read-back what these bytes say. Returns the lane that the frame may wait in."""
        for sent in Decoder().feed(frame):
            if sent.header is not None and sent.message is not None and not isinstance(sent.message, Status):
                self._read_back.sent(sent.header, sent.message, now_ns // 1_000_000)
            if isinstance(sent.message, Wave):
                return sent.message.channel
        return 0

    def _report(self, finding: Finding) -> None:
        """Counts every mismatch, and logs each trouble once, when it begins and when it is over."""
        self._count(mismatches=int(finding.trouble is Trouble.MISMATCH))
        if finding.trouble is self._trouble:
            return
        self._trouble = finding.trouble
        if finding.trouble is Trouble.NONE:
            log.info("link %s: read-back: the display shows what is sent again", self.port)
        else:
            level = logging.ERROR if finding.trouble is Trouble.MISMATCH else logging.WARNING
            log.log(level, "link %s: read-back: %s", self.port, finding.text)

    def _pump(self) -> bool:
        """Writes what waits, most important first, unless the driver still has enough to send."""
        for key in sorted(self._pending, key=lambda key: _ORDER.index(key[0])):
            if self._device is None:
                break
            if key not in self._pending:  # overtaken
                continue
            frame, offered_ns = self._pending[key]
            if self._clock() - offered_ns > PENDING_LIMIT_S * 1e9:
                del self._pending[key]
                self._count(drops=1)
                continue
            with self._losing():
                if self._device.queued() > (WAVE_LIMIT_BYTES if key[0] is MessageType.WAVE else QUEUE_LIMIT_BYTES):
                    return False
                self._forget_older(key)
                self._write(self._device, frame)
        return not self._pending

    def _forget_older(self, key: tuple[MessageType, int]) -> None:
        """Takes a frame out together with those numbered before it: the display drops what was overtaken (rule 5)."""
        for older in list(self._pending):
            del self._pending[older]
            if older == key:
                return
            self._count(drops=1)

    def _write(self, device: Port, frame: bytes) -> None:
        """One frame by an own deadline. What could not leave is dropped: the next frame's first 00 ends a torn one."""
        # A peer that took nothing the last time is not waited for again until it takes something.
        started_ns = self._clock()
        refilled_ns = int(WAIT_SHARE * (started_ns - self._wait_at_ns))
        self._wait_ns = min(int(MAX_WRITE_S * 1e9), self._wait_ns + refilled_ns)
        deadline_ns = started_ns + (0 if self._stalled else self._wait_ns)
        sent = device.write(frame)
        while sent < len(frame) and (left_ns := deadline_ns - self._clock()) > 0:
            device.wait_writable(left_ns / 1e9)
            sent += device.write(frame[sent:])
        self._wait_at_ns = self._clock()
        self._wait_ns = max(0, self._wait_ns - (self._wait_at_ns - started_ns))
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
            self._compare_counts()
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
        if s is None:
            return f"{text}; display: no STATUS"
        return (f"{text}; display: ok {s.frames_ok}, bad cobs {s.bad_cobs} crc {s.bad_crc} length {s.bad_len}, lost {s.lost}, "
                f"late {s.late}, up {s.uptime_s} s, mismatches {h.mismatches}")

    def _compare_counts(self) -> None:
        """Says when the display took clearly fewer frames since the last minute than left in it."""
        if len(self._counts) < 2:
            return
        (frames_then, then), (frames_now, now) = self._counts
        self._counts = self._counts[1:]
        left, taken = frames_now - frames_then, now.frames_ok - then.frames_ok & 0xFFFF
        if now.uptime_s >= then.uptime_s and taken < MIN_TAKEN * left:
            log.warning("link %s: the display took %d of %d frames; check cable, ground, baud rate and stop bits",
                        self.port, taken, left)
