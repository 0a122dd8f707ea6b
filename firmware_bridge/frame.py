"""PVL/1 messages <-> bytes. No I/O: bytes in, verdicts out; a message and a clock in, bytes out.

On the wire a frame is `00 | COBS(header 12 | payload len | CRC-32 LE) | 00`. PROTOCOL.md is the reference, schema.py
the source of every field. Whatever a Decoder passes as OK was sent as such, within what CRC-32 can promise.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from firmware_bridge.messages import Bye, Hello, Message, Status, Vitals, Wave, require
from firmware_bridge.schema import (
    CRC_SIZE,
    HEADER,
    MAX_BODY,
    MUST_UNDERSTAND,
    NO_RATE,
    NO_SQI,
    PAYLOADS,
    VERSION,
    MessageType,
    VitalState,
)

DELIMITER = b"\x00"
MAX_ENCODED = MAX_BODY + 1  # COBS adds one byte to anything shorter than 254
_MIN_BODY = HEADER.size + CRC_SIZE
_CRC = struct.Struct("<I")
_TYPES = {int(kind): kind for kind in MessageType}
_CLASSES: dict[MessageType, type[Message]] = {cls.TYPE: cls for cls in (Vitals, Wave, Hello, Bye, Status)}


@dataclass(frozen=True)
class Header:
    """The fields before every payload, as they stood on the wire."""

    ver: int
    type: int
    flags: int
    len: int
    session: int
    seq: int
    t_ms: int


def cobs_encode(data: bytes) -> bytes:
    """Consistent overhead byte stuffing for fewer than 254 bytes: each zero becomes the distance to the next one."""
    return b"".join(bytes((len(block) + 1,)) + block for block in data.split(DELIMITER))


def cobs_decode(encoded: bytes) -> bytes | None:
    """The inverse; None where a distance points past the end. `encoded` holds no zero and fewer than 255 bytes."""
    out = bytearray()
    index, end = 0, len(encoded)
    while index < end:
        code = encoded[index]
        if index + code > end:
            return None
        if index:
            out.append(0)
        out += encoded[index + 1:index + code]
        index += code
    return bytes(out)


def encode(message: Message, *, session: int, seq: int, t_ms: int, flags: int = 0) -> bytes:
    """One whole frame, both delimiters included. Raises FrameError where the header does not fit."""
    require(1 <= session <= 0xFFFF, f"session: expected 1-65535, got {session}")
    require(0 <= seq <= 0xFFFF and 0 <= t_ms <= 0xFFFFFFFF and 0 <= flags <= 0xFF, f"header: {seq=} {t_ms=} {flags=}")
    layout = PAYLOADS[message.TYPE]
    values = [getattr(message, name) for name in layout.names]
    payload = layout.struct.pack(*(v.encode("ascii") if isinstance(v, str) else v for v in values))
    if isinstance(message, Wave):
        payload += struct.pack(f"{len(message.samples)}b", *message.samples)
    body = HEADER.struct.pack(VERSION, message.TYPE, flags, len(payload), session, seq, t_ms) + payload
    return DELIMITER + cobs_encode(body + _CRC.pack(zlib.crc32(body))) + DELIMITER


class Verdict(Enum):
    """What became of the bytes between two delimiters. `intact`: the CRC held, so the link itself is good."""

    OK = "ok"
    BAD_COBS = "bad_cobs"
    BAD_CRC = "bad_crc"
    BAD_LEN = "bad_len"
    BAD_VERSION = "bad_version"
    UNKNOWN_TYPE = "unknown_type"
    UNKNOWN_FLAGS = "unknown_flags"

    @property
    def intact(self) -> bool:
        return self not in (Verdict.BAD_COBS, Verdict.BAD_CRC, Verdict.BAD_LEN)


@dataclass(frozen=True)
class DecodedFrame:
    """One verdict. `message` is there exactly when it is OK, `header` when the CRC held and the version is ours.

    raw: the COBS bytes between the delimiters (at most 129 kept); offset: of raw[0] in the stream;
    notes: what was mended in a payload that contradicted itself.
    """

    verdict: Verdict
    raw: bytes
    offset: int
    header: Header | None = None
    message: Message | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Counters:
    """How many frames met each verdict; `repaired`: OK frames whose fields contradicted each other."""

    ok: int = 0
    bad_cobs: int = 0
    bad_crc: int = 0
    bad_len: int = 0
    bad_version: int = 0
    unknown_type: int = 0
    unknown_flags: int = 0
    repaired: int = 0

    @property
    def bad(self) -> int:
        return self.bad_cobs + self.bad_crc + self.bad_len

    def as_dict(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Decoder:
    """Streaming: bytes in any portions, verdicts out. Holds at most one frame; never raises on what it is fed."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._buffer = bytearray()
        self._length = 0  # of the fragment so far, also beyond what the buffer keeps
        self._offset = 0

    def feed(self, data: bytes) -> list[DecodedFrame]:
        decoded = []
        start = 0
        while (end := data.find(DELIMITER, start)) >= 0:
            self._keep(data[start:end])
            if self._length:
                decoded.append(self._close())
            self._offset += 1
            start = end + 1
        self._keep(data[start:])
        return decoded

    @property
    def unfinished(self) -> int:
        """Bytes of a frame whose end has not come yet."""
        return self._length

    def _keep(self, chunk: bytes) -> None:
        self._length += len(chunk)
        self._offset += len(chunk)
        self._buffer += chunk[:MAX_ENCODED - len(self._buffer)]

    def _close(self) -> DecodedFrame:
        raw, length = bytes(self._buffer), self._length
        self._buffer.clear()
        self._length = 0
        frame = _judge(raw, length, self._offset - length)
        counters = self.counters
        setattr(counters, frame.verdict.value, getattr(counters, frame.verdict.value) + 1)
        counters.repaired += bool(frame.notes)
        return frame


def _judge(raw: bytes, length: int, offset: int) -> DecodedFrame:
    """The checks in the order PROTOCOL.md gives them."""
    if length > MAX_ENCODED:
        return DecodedFrame(Verdict.BAD_LEN, raw, offset)
    body = cobs_decode(raw)
    if body is None:
        return DecodedFrame(Verdict.BAD_COBS, raw, offset)
    if len(body) < _MIN_BODY:
        return DecodedFrame(Verdict.BAD_LEN, raw, offset)
    if zlib.crc32(body[:-CRC_SIZE]) != _CRC.unpack_from(body, len(body) - CRC_SIZE)[0]:
        return DecodedFrame(Verdict.BAD_CRC, raw, offset)
    if body[0] != VERSION:
        return DecodedFrame(Verdict.BAD_VERSION, raw, offset)
    header = Header(*HEADER.struct.unpack_from(body))
    kind = _TYPES.get(header.type)
    too_short = kind is not None and header.len < PAYLOADS[kind].size
    if header.len != len(body) - _MIN_BODY or too_short or header.session == 0:
        return DecodedFrame(Verdict.BAD_LEN, raw, offset, header)
    if header.flags & MUST_UNDERSTAND:
        return DecodedFrame(Verdict.UNKNOWN_FLAGS, raw, offset, header)
    if kind is None:
        return DecodedFrame(Verdict.UNKNOWN_TYPE, raw, offset, header)
    message, notes = _parse(kind, body[HEADER.size:-CRC_SIZE])
    return DecodedFrame(Verdict.OK, raw, offset, header, message, notes)


def _parse(kind: MessageType, payload: bytes) -> tuple[Message, tuple[str, ...]]:
    """A payload whose CRC held. Contradictions inside it are resolved towards showing less, and noted."""
    layout = PAYLOADS[kind]
    values: dict[str, Any] = dict(zip(layout.names, layout.struct.unpack_from(payload), strict=True))
    notes: list[str] = []
    if kind == MessageType.VITALS:
        _mend_vital(values, "pr", notes)
        _mend_vital(values, "rr", notes)
    elif kind == MessageType.WAVE:
        values["samples"] = struct.unpack(f"{len(payload) - layout.size}b", payload[layout.size:])
        if not 1 <= values["rate_hz"] <= 100:
            notes.append(f"rate_hz {values['rate_hz']}: samples dropped")
            values.update(rate_hz=1, samples=())
    elif kind == MessageType.HELLO:
        text = values["product"].split(DELIMITER)[0].decode("ascii", "replace")
        values["product"] = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return _CLASSES[kind](**values), tuple(notes)


def _mend_vital(values: dict[str, Any], name: str, notes: list[str]) -> None:
    code, rate = values[f"{name}_state"], values[f"{name}_x10"]
    state = VitalState(code) if code <= VitalState.FAULT else VitalState.INVALID
    if state != code:
        notes.append(f"{name}_state {code} read as INVALID")
    if state.shows_number and rate in (0, NO_RATE):
        notes.append(f"{name}: {state.name} without a number read as INVALID")
        state = VitalState.INVALID
    if not state.shows_number and rate != NO_RATE:
        notes.append(f"{name}_x10 {rate} dropped: {state.name} shows none")
        rate = NO_RATE
    if 100 < values[f"{name}_sqi"] < NO_SQI:
        notes.append(f"{name}_sqi {values[f'{name}_sqi']} read as not stated")
        values[f"{name}_sqi"] = NO_SQI
    values[f"{name}_state"], values[f"{name}_x10"] = state, rate


class Sender:
    """Gives frames their session, seq and time. One per run of the process: a new one is a new session.

    clock_ns: a monotonic clock at the speed of real time; flags: DEMO, INVESTIGATIONAL as they apply to the run.
    """

    def __init__(self, clock_ns: Callable[[], int], flags: int = 0, session: int | None = None) -> None:
        self.session = session if session is not None else secrets.randbelow(0xFFFF) + 1
        self.flags = int(flags)
        self._clock_ns = clock_ns
        self._seq = 0

    def encode(self, message: Message) -> bytes:
        t_ms = (self._clock_ns() // 1_000_000) & 0xFFFFFFFF
        frame = encode(message, session=self.session, seq=self._seq, t_ms=t_ms, flags=self.flags)
        self._seq = (self._seq + 1) & 0xFFFF
        return frame
