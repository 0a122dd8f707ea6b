"""Random scenes at the bedside: a camera unit, a bad wire, two clocks. The same steps go to every display under test."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from firmware_bridge.frame import cobs_encode
from firmware_bridge.schema import HEADER, PAYLOADS, VERSION, MessageType

VITALS = PAYLOADS[MessageType.VITALS].struct
# Around every limit of the rules, and far from all of them.
PAUSES_MS = (0, 1, 20, 50, 100, 249, 251, 400, 500, 999, 1000, 1001, 1999, 2000, 2500, 2999, 3000, 3001, 4999, 5001, 10_000,
             10_001, 29_999, 30_000, 60_000)
# Between two calls; two of the longest wrap the display's clock.
LONG_PAUSES_MS = (7_199_999, 7_200_000, 7_200_001, 2**31 - 1, 2**31, 2**31 + 3_600_000)
RATES_X10 = (0, 1, 19, 20, 25, 299, 300, 304, 305, 418, 1432, 1500, 1501, 3000, 3001, 0xFFFE, 0xFFFF)
AGES_DS = (0, 1, 3, 10, 20, 29, 30, 40, 49, 50, 51, 0xFFFE, 0xFFFF)


@dataclass(frozen=True)
class Step:
    """What happens at a moment of the display's clock: bytes come in (none, too), or somebody looks at the glass."""

    now_ms: int
    data: bytes | None  # None: a look


def frame(kind: int, payload: bytes, *, session: int, seq: int, t_ms: int, flags: int = 0, ver: int = VERSION,
          length: int | None = None) -> bytes:
    """A whole frame of any values, also such as no sender sends."""
    body = HEADER.struct.pack(ver, kind, flags, len(payload) if length is None else length, session, seq & 0xFFFF,
                              t_ms & 0xFFFFFFFF) + payload
    return b"\0" + cobs_encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


class Scene:
    """A camera unit whose frames may be kept back, lost, damaged, repeated and swapped on their way."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now_ms = rng.choice((0, 5_000, 2**32 - 4_000, 2**32 - 20_000, rng.randrange(2**32)))
        self.start_ms = self.now_ms
        self.unit_ms = rng.choice((0, 77_000, 2**32 - 6_000, 2**31, rng.randrange(2**32)))
        self.drift_ppm = rng.choice((0, 0, 0, 100, -100, 50_000, -50_000))
        self.session, self.seq, self.index = rng.randrange(1, 0x10000), rng.choice((0, 0xFFF0, rng.randrange(0x10000))), 0
        self.flags = rng.choice((0, 0, 1, 2, 3, 0x0C))
        self.held: list[bytes] = []
        self.sent: list[bytes] = []

    def steps(self, acts: int) -> Iterator[Step]:
        """The display is to be made at start_ms; steps come in the order of time."""
        rng = self.rng
        names = ("regular", "regular", "regular", "pause", "burst", "hold", "release", "noise", "damage", "repeat", "odd",
                 "session", "clock", "jump", "flag", "strange", "bye", "swap")
        for _ in range(acts):
            yield from getattr(self, "_" + rng.choice(names))()
            yield from self._look()

    def _look(self) -> Iterator[Step]:
        for _ in range(self.rng.choice((0, 1, 1, 2))):
            yield Step(self.now_ms, None)

    def _arrive(self, data: bytes) -> Iterator[Step]:
        """In one piece or in several, at one moment."""
        cuts = sorted(self.rng.randrange(len(data) + 1) for _ in range(self.rng.choice((0, 0, 0, 1, 3))))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            yield Step(self.now_ms, data[start:end])

    def _pass(self, ms: int) -> None:
        self.now_ms += ms
        self.unit_ms += ms + ms * self.drift_ppm // 1_000_000

    def _make(self, kind: int, payload: bytes, **odd: int) -> bytes:
        header = {"session": self.session, "seq": self.seq, "t_ms": self.unit_ms, "flags": self.flags} | odd
        self.seq += 1
        wire = frame(kind, payload, **header)
        self.sent = [*self.sent[-20:], wire]
        return wire

    def _vitals(self, plain: bool = False) -> bytes:
        rng = self.rng
        if plain:
            values = (rng.randrange(900, 1800), rng.randrange(300, 700), 2, 2, 90, 70, 3, 5, 8, 15, 0, 0xFFFF)
        else:
            x10 = [rng.choice((*RATES_X10, rng.randrange(0x10000))) for _ in range(2)]
            states = [rng.choice((2, 2, 2, 3, 3, rng.randrange(10), 255)) for _ in range(2)]
            tech = rng.choice((0, 0, 1 << rng.randrange(16), rng.randrange(1 << 16), 1 << rng.randrange(32),
                               rng.randrange(1 << 32)))
            values = (*x10, *states, *(rng.choice((0, 1, 19, 20, 21, 99, 100, 101, 254, 255)) for _ in range(2)),
                      *(rng.choice(AGES_DS) for _ in range(2)), rng.randrange(256), rng.randrange(256), tech,
                      rng.randrange(0x10000))
        return self._make(MessageType.VITALS, VITALS.pack(*values) + rng.choice((b"", b"", b"\0tail")))

    def _wave(self) -> bytes:
        rng = self.rng
        count = rng.choice((0, 1, 5, 5, 5, 40))
        channel, rate_hz = rng.choice((1, 1, 2, 2, 0, 3)), rng.choice((25, 25, 25, 25, 50, 0, 1, 100, 101))
        head = struct.pack("<IBB", self.index & 0xFFFFFFFF, channel, rate_hz)
        self.index += rng.choice((count, count, count, count + 5, count - 3, 10_000))
        return self._make(MessageType.WAVE, head + bytes(rng.choice((0x80, 0x81, 0, 5, 127)) for _ in range(count)))

    def _any(self) -> bytes:
        rng = self.rng
        kind = rng.randrange(8)
        if kind < 4:
            return self._vitals(plain=rng.random() < 0.3)
        if kind < 6:
            return self._wave()
        if kind == 6:
            name = rng.choice((b"PhysVLM Edge", b"a\x7f\x1f~ \xff\0zz", b"0123456789abcdef", b""))
            return self._make(MessageType.HELLO, struct.pack("<BBIII16s", 1, 1, 2, 3, 4, name))
        return self._make(rng.choice((0x33, 0x81, 0x90)), rng.choice((b"", bytes(24), b"\1" * 100)))

    def _regular(self) -> Iterator[Step]:
        """Frames that keep pace: this is what brings numbers onto the glass."""
        period = self.rng.choice((100, 250, 500, 500, 500, 900, 1000, 1001))
        jitter = self.rng.choice((0, 0, 0, 120, 260))
        plain = self.rng.random() < 0.7
        for _ in range(self.rng.choice((1, 4, 6, 6, 12))):
            yield from self._arrive(self._vitals(plain) if self.rng.random() < 0.8 else self._any())
            if self.rng.random() < 0.2:
                yield from self._look()
            self._pass(period + self.rng.randint(-jitter, jitter) if period > jitter else period)

    def _pause(self) -> Iterator[Step]:
        often = self.rng.random() < 0.97
        for _ in range(1 if often else self.rng.choice((1, 2))):
            self._pass(self.rng.choice(PAUSES_MS if often else LONG_PAUSES_MS))
            yield Step(self.now_ms, b"")

    def _burst(self) -> Iterator[Step]:
        yield from self._arrive(b"".join(self._any() for _ in range(self.rng.randint(1, 6))))

    def _hold(self) -> Iterator[Step]:
        """The line stalls, the unit goes on."""
        for _ in range(self.rng.randint(1, 12)):
            self.held.append(self._vitals(plain=True))
            self._pass(500)
        yield Step(self.now_ms, b"")

    def _release(self) -> Iterator[Step]:
        """What was held comes at once, or drains faster than real time."""
        pace_ms = self.rng.choice((0, 0, 20, 250, 440, 490))
        for wire in self.held:
            yield from self._arrive(wire)
            self._pass(pace_ms)
        self.held.clear()

    def _noise(self) -> Iterator[Step]:
        length = self.rng.choice((1, 3, 15, 40, 129, 130, 131, 300))
        yield from self._arrive(bytes(self.rng.choice((0, 0, 1, 2, 5, self.rng.randrange(256))) for _ in range(length)))

    def _damage(self) -> Iterator[Step]:
        wire = bytearray(self._any())
        for _ in range(self.rng.randint(1, 3)):
            wire[self.rng.randrange(len(wire))] ^= 1 << self.rng.randrange(8)
        if self.rng.random() < 0.3:
            del wire[self.rng.randrange(len(wire)):]
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            yield from self._arrive(bytes(wire))

    def _repeat(self) -> Iterator[Step]:
        if self.sent:
            yield from self._arrive(self.rng.choice(self.sent))

    def _swap(self) -> Iterator[Step]:
        first, second = self._vitals(plain=True), self._any()
        yield from self._arrive(second + first)

    def _odd(self) -> Iterator[Step]:
        """What a display must not understand, or must not take."""
        odd = self.rng.choice(({"ver": 2}, {"flags": 0x10}, {"flags": 0x83}, {"session": 0}, {"length": 3}, {"length": 21}))
        yield from self._arrive(self._make(MessageType.VITALS, bytes(20), **odd))

    def _session(self) -> Iterator[Step]:
        """The unit starts anew: another session, and perhaps another clock."""
        self.session, self.seq, self.index = self.rng.randrange(1, 0x10000), 0, 0
        self.flags = self.rng.choice((0, 1, 2, 3))
        if self.rng.random() < 0.5:
            self.unit_ms = self.rng.randrange(2**32)
        yield Step(self.now_ms, b"")

    def _clock(self) -> Iterator[Step]:
        """The unit's clock steps, which a monotonic one never does."""
        self.unit_ms += self.rng.choice((-3_600_000, 3_600_000, -251, -249, 249, 251, 1_001, -1_001, -1, 30_000, 2**31))
        yield Step(self.now_ms, b"")

    def _jump(self) -> Iterator[Step]:
        self.seq += self.rng.choice((1, 5, 0x7FFE, 0x7FFF, 0x8000, 0x8001, -1, -5))
        yield Step(self.now_ms, b"")

    def _flag(self) -> Iterator[Step]:
        """Flags change within a session: what was a demonstration once stays one."""
        self.flags = self.rng.choice((0, 1, 2, 3, 0x0C))
        yield Step(self.now_ms, b"")

    def _strange(self) -> Iterator[Step]:
        """Another unit on the same line."""
        yield from self._arrive(self._make(MessageType.VITALS, bytes(20), session=self.rng.randrange(1, 0x10000)))

    def _bye(self) -> Iterator[Step]:
        if self.rng.random() < 0.4:
            yield from self._arrive(self._make(MessageType.BYE, b""))
