"""A wire that can be broken on purpose: lost frames, flipped bits, delay, a cable that is out. Pure and seeded.

Bytes and the time of their arrival in, bytes out; no clock and no I/O of its own. The same bytes at the same times with the
same seed give the same result, however they were cut into portions.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, fields

MAX_BIT_ERRORS = 0.5  # beyond one half a line only inverts
MAX_DELAY_MS = 60_000
MAX_HELD_BYTES = 1 << 20  # what a delayed wire keeps: 60 s at 115200 baud are 691 kB


class FaultError(ValueError):
    """A fault outside of what can be simulated."""


@dataclass(frozen=True)
class Faults:
    """What is wrong with the wire from the camera unit to the display.

    drop: share of frames that vanish, 0-1; bit_errors: probability that a bit arrives flipped; delay_ms: by how much all
    arrives late; unplugged: the cable is out, what is on its way is lost.
    """

    drop: float = 0.0
    bit_errors: float = 0.0
    delay_ms: int = 0
    unplugged: bool = False

    def __post_init__(self) -> None:
        for name, value, limit in (("drop", self.drop, 1.0), ("bit_errors", self.bit_errors, MAX_BIT_ERRORS),
                                   ("delay_ms", self.delay_ms, MAX_DELAY_MS)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= limit:
                raise FaultError(f"{name}: expected a number from 0 to {limit:g}, got {value!r}")
        if not isinstance(self.delay_ms, int):
            raise FaultError(f"delay_ms: expected whole milliseconds, got {self.delay_ms!r}")
        if not isinstance(self.unplugged, bool):
            raise FaultError(f"unplugged: expected true or false, got {self.unplugged!r}")

    @property
    def any(self) -> bool:
        return self != Faults()


@dataclass
class Damage:
    """What was done to the wire so far. bytes_lost: unplugged, or more than a delayed wire keeps."""

    frames_dropped: int = 0
    bits_flipped: int = 0
    bytes_lost: int = 0

    def as_dict(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class FaultyWire:
    """put() what was sent, take() what has arrived. Faults may change at any time; what waits stays in order."""

    def __init__(self, faults: Faults | None = None, seed: int = 1) -> None:
        self.damage = Damage()
        self._faults = faults or Faults()
        # one stream each: which frames are dropped must not depend on how many bits were flipped before
        self._drops, self._flips = random.Random(f"drop {seed}"), random.Random(f"flip {seed}")
        self._held: deque[tuple[int, bytes]] = deque()
        self._held_bytes = 0
        self._in_frame = False  # between the first byte of a frame and its closing 00
        self._content = False  # a byte other than 00 of this frame went by
        self._dropping = False
        self._bits_to_flip = self._gap()

    @property
    def faults(self) -> Faults:
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        if faults.bit_errors != self._faults.bit_errors:
            self._faults = faults
            self._bits_to_flip = self._gap()
        self._faults = faults

    def put(self, data: bytes, now_ms: int) -> None:
        kept = bytearray(self._thinned(data))
        if self._faults.unplugged:
            self.damage.bytes_lost += len(kept)
            return
        self._flip(kept)
        if kept:
            self._held.append((now_ms, bytes(kept)))
            self._held_bytes += len(kept)
        while self._held_bytes > MAX_HELD_BYTES:
            self._lose()

    def take(self, now_ms: int) -> bytes:
        """What has arrived by now. A delay made shorter delivers the backlog at once, as a real one would."""
        while self._faults.unplugged and self._held:
            self._lose()
        arrived = []
        while self._held and self._held[0][0] + self._faults.delay_ms <= now_ms:
            arrived.append(self._held.popleft()[1])
        data = b"".join(arrived)
        self._held_bytes -= len(data)
        return data

    def clear(self) -> None:
        """Forgets what is on its way: the clock starts anew."""
        self._held.clear()
        self._held_bytes = 0

    def _lose(self) -> None:
        lost = len(self._held.popleft()[1])
        self._held_bytes -= lost
        self.damage.bytes_lost += lost

    def _thinned(self, data: bytes) -> bytes:
        """Without the frames that vanish. A frame is what goes up to and with the 00 after its content."""
        if not self._faults.drop and not self._dropping:
            self._follow(data)
            return data
        kept = bytearray()
        for byte in data:
            if not self._in_frame:
                self._in_frame, self._content = True, False
                self._dropping = self._faults.drop > 0 and self._drops.random() < self._faults.drop
            if not self._dropping:
                kept.append(byte)
            if byte:
                self._content = True
            elif self._content:
                self.damage.frames_dropped += self._dropping
                self._in_frame = self._dropping = False
        return bytes(kept)

    def _follow(self, data: bytes) -> None:
        """Where in a frame the wire is, without looking at every byte."""
        if not data:
            return
        content = self._in_frame and self._content
        head, zero, tail = data.rpartition(b"\0")
        if not zero or tail:
            self._in_frame = self._content = True
        else:
            ends = bool(head[-1]) if head else content
            self._in_frame, self._content = not ends, False

    def _flip(self, data: bytearray) -> None:
        bits = 8 * len(data)
        at = self._bits_to_flip
        while at < bits:
            data[at // 8] ^= 1 << at % 8
            self.damage.bits_flipped += 1
            at += 1 + self._gap()
        self._bits_to_flip = at - bits

    def _gap(self) -> int:
        """Good bits before the next flipped one: a geometric draw, so that a rare error costs nothing per bit."""
        rate = self._faults.bit_errors
        return 1 << 62 if rate == 0 else int(math.log(1.0 - self._flips.random()) / math.log1p(-rate))
