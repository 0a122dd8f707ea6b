"""The wire format of PVL/1 as data: the one place where fields, enums and their order stand.

From these tables come the struct formats of frame.py, the schema hash that HELLO carries, and the tables of PROTOCOL.md
(`python -m firmware_bridge.schema firmware_bridge/PROTOCOL.md` rewrites them there; a test compares).
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cached_property
from pathlib import Path

VERSION = 1
MAX_BODY = 128  # bytes: header + payload + CRC. Keeps every COBS code below 255 and the display's buffer small
CRC_SIZE = 4
NO_RATE = 0xFFFF  # u16: no number. 0 never means "none"
NO_AGE = 0xFFFF  # u16: age unknown
NO_SQI = 0xFF  # u8: quality not stated
NO_SAMPLE = -128  # i8: a gap in a wave
PR_PAINTABLE_X10 = (300, 3000)  # 30.0-300.0 /min: wider than any profile's band, narrower than nonsense
RR_PAINTABLE_X10 = (20, 1500)  # 2.0-150.0 /min: a number under 2 would claim apnoea, which this link never does


class MessageType(IntEnum):
    """Codes 0x80-0xFF travel from the display to the camera unit, all others the other way."""

    VITALS = 0x10
    WAVE = 0x11
    HELLO = 0x12
    BYE = 0x1F
    STATUS = 0x81


class Flags(IntFlag):
    """Header flags. Bits 4-7 are "must understand": a receiver that does not know a set one shows no number."""

    DEMO = 0x01
    INVESTIGATIONAL = 0x02


MUST_UNDERSTAND = 0xF0


class VitalState(IntEnum):
    """Whether a vital may be shown. Any other code on the wire is read as INVALID."""

    OFF = 0
    SEARCHING = 1
    VALID = 2
    QUESTIONABLE = 3
    INVALID = 4
    STALE = 5
    OUT_OF_RANGE = 6
    FAULT = 7

    @property
    def shows_number(self) -> bool:
        return self in (VitalState.VALID, VitalState.QUESTIONABLE)


class Tech(IntFlag):
    """Technical conditions; bits 16-31 are reserved and sent as 0."""

    NO_CAMERA = 1 << 0
    FRAMES_STALLED = 1 << 1
    TOO_DARK = 1 << 2
    OVEREXPOSED = 1 << 3
    MOTION = 1 << 4
    SUBJECT_LOST = 1 << 5
    LOW_SIGNAL = 1 << 6
    LIGHT_FLICKER = 1 << 7
    METHODS_DISAGREE = 1 << 8
    MODEL_FAULT = 1 << 9
    ENGINE_MISMATCH = 1 << 10
    OVER_TEMPERATURE = 1 << 11
    LOW_FPS = 1 << 12
    STORAGE = 1 << 13
    CONFIG = 1 << 14
    SELF_TEST_FAILED = 1 << 15


class Channel(IntEnum):
    """What a WAVE carries."""

    PULSE = 1
    RESP = 2


class ScreenMode(IntEnum):
    """What the display is doing as a whole; upper nibble of STATUS.shown_state. Numbers are painted only in LIVE."""

    LIVE = 0
    WAITING = 1
    LINK_LOST = 2
    LINK_FAULT = 3
    STOPPED = 4
    UPDATE_REQUIRED = 5
    SYNCHRONISING = 6
    DELAYED = 7


MODE_TEXT = {
    ScreenMode.LIVE: "",
    ScreenMode.WAITING: "WAITING FOR CAMERA UNIT",
    ScreenMode.LINK_LOST: "CAMERA LINK LOST",
    ScreenMode.LINK_FAULT: "LINK FAULT",
    ScreenMode.STOPPED: "MONITORING STOPPED",
    ScreenMode.UPDATE_REQUIRED: "DISPLAY UPDATE REQUIRED",
    ScreenMode.SYNCHRONISING: "SYNCHRONISING",
    ScreenMode.DELAYED: "DATA DELAYED",
}

# Most important first: what is broken, then what a nurse can change, then the signal.
TECH_TEXT = {
    Tech.SELF_TEST_FAILED: "SELF TEST FAILED",
    Tech.ENGINE_MISMATCH: "CAMERA UNIT SOFTWARE FAULT",
    Tech.MODEL_FAULT: "CAMERA UNIT SOFTWARE FAULT",
    Tech.CONFIG: "CAMERA UNIT SETTINGS FAULT",
    Tech.NO_CAMERA: "NO CAMERA",
    Tech.FRAMES_STALLED: "CAMERA PICTURE STOPPED",
    Tech.OVER_TEMPERATURE: "CAMERA UNIT TOO HOT",
    Tech.TOO_DARK: "TOO DARK",
    Tech.OVEREXPOSED: "TOO BRIGHT",
    Tech.SUBJECT_LOST: "BABY NOT IN VIEW",
    Tech.MOTION: "MOTION",
    Tech.LIGHT_FLICKER: "FLICKERING LIGHT",
    Tech.LOW_FPS: "CAMERA TOO SLOW",
    Tech.METHODS_DISAGREE: "UNCERTAIN SIGNAL",
    Tech.LOW_SIGNAL: "LOW SIGNAL",
    Tech.STORAGE: "CAMERA UNIT STORAGE FULL",
}
UNKNOWN_TECH_TEXT = "CHECK CAMERA UNIT"

STATE_TEXT = {
    VitalState.OFF: "OFF",
    VitalState.SEARCHING: "SEARCHING",
    VitalState.VALID: "",
    VitalState.QUESTIONABLE: "UNCERTAIN",
    VitalState.INVALID: "NO RELIABLE SIGNAL",
    VitalState.STALE: "NO RECENT PICTURE",
    VitalState.OUT_OF_RANGE: "OUT OF RANGE",
    VitalState.FAULT: "CAMERA UNIT FAULT",
}

BANNER_TEXT = {
    Flags.DEMO: "DEMO - NOT PATIENT DATA",
    Flags.INVESTIGATIONAL: "INVESTIGATIONAL - NOT FOR DIAGNOSIS OR ALARMS",
}


@dataclass(frozen=True)
class Field:
    """One field: wire kind (u8, u16, u32, or text16 = 16 bytes ASCII padded with 0), unit, and the rule it obeys."""

    name: str
    kind: str
    unit: str
    rule: str


_FORMAT = {"u8": "B", "u16": "H", "u32": "I", "text16": "16s"}


@dataclass(frozen=True)
class Layout:
    """The fields of a header or payload, in order, without padding. `tail` names int8 samples that run to the end."""

    title: str
    code: int | None
    fields: tuple[Field, ...]
    tail: str | None = None

    @cached_property
    def struct(self) -> struct.Struct:
        return struct.Struct("<" + "".join(_FORMAT[field.kind] for field in self.fields))

    @property
    def size(self) -> int:
        return self.struct.size

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    def rows(self) -> list[tuple[int, Field]]:
        """Every field with its byte offset."""
        offset, rows = 0, []
        for field in self.fields:
            rows.append((offset, field))
            offset += struct.calcsize("<" + _FORMAT[field.kind])
        return rows


HEADER = Layout("Header", None, (
    Field("ver", "u8", "", "1. Any other value: DISPLAY UPDATE REQUIRED, no number"),
    Field("type", "u8", "", "message type; an unknown one is counted and ignored"),
    Field("flags", "u8", "bits", "b0 DEMO, b1 INVESTIGATIONAL, b2-b3 reserved and ignored, b4-b7 must understand"),
    Field("len", "u8", "bytes", "payload length; the body is exactly 12 + len + 4"),
    Field("session", "u16", "", "random, not 0, one per run of the sender; a change means: forget everything"),
    Field("seq", "u16", "", "+1 per frame of any type, wraps; gaps are counted, equal or older ones dropped"),
    Field("t_ms", "u32", "ms", "sender's monotonic clock when the frame was encoded, wraps; never wall clock"),
))

PAYLOADS = {
    MessageType.VITALS: Layout("VITALS", MessageType.VITALS, (
        Field("pr_x10", "u16", "0.1 /min", "pulse rate; 0xFFFF = none; 0 is never sent"),
        Field("rr_x10", "u16", "0.1 /min", "respiratory rate; 0xFFFF = none; 0 is never sent"),
        Field("pr_state", "u8", "state", "see states; a number is there exactly when the state is 2 or 3"),
        Field("rr_state", "u8", "state", "likewise"),
        Field("pr_sqi", "u8", "%", "signal quality 0-100; 255 = not stated"),
        Field("rr_sqi", "u8", "%", "likewise"),
        Field("pr_age_ds", "u16", "0.1 s", "age of the newest video frame used; 0xFFFF = unknown"),
        Field("rr_age_ds", "u16", "0.1 s", "likewise"),
        Field("pr_avg_s", "u8", "s", "averaging time, shown on the screen"),
        Field("rr_avg_s", "u8", "s", "likewise"),
        Field("tech", "u32", "bits", "technical conditions; an unknown bit reads CHECK CAMERA UNIT"),
        Field("gap_ds", "u16", "0.1 s", "since the last detected breath; 0xFFFF = not offered; not an apnoea alarm"),
    )),
    MessageType.WAVE: Layout("WAVE", MessageType.WAVE, (
        Field("first_index", "u32", "", "number of the first sample since the session began, wraps"),
        Field("channel", "u8", "", "1 pulse, 2 resp; others ignored"),
        Field("rate_hz", "u8", "Hz", "samples per second, 1-100"),
    ), tail="samples"),
    MessageType.HELLO: Layout("HELLO", MessageType.HELLO, (
        Field("min_ver", "u8", "", "oldest version the sender can speak"),
        Field("max_ver", "u8", "", "newest version the sender can speak"),
        Field("schema", "u32", "", "CRC-32 of the field tables"),
        Field("build", "u32", "", "sender's software build"),
        Field("model", "u32", "", "model bundle"),
        Field("product", "text16", "", "ASCII, padded with 0"),
    )),
    MessageType.BYE: Layout("BYE", MessageType.BYE, ()),
    MessageType.STATUS: Layout("STATUS", MessageType.STATUS, (
        Field("last_session", "u16", "", "session of the newest frame taken; 0 = none yet"),
        Field("last_seq", "u16", "", "its seq"),
        Field("frames_ok", "u16", "", "frames that passed every check; all counters wrap"),
        Field("bad_cobs", "u16", "", "framing broken"),
        Field("bad_crc", "u16", "", "CRC-32 wrong"),
        Field("bad_len", "u16", "", "too short, too long, or len does not fit"),
        Field("lost", "u16", "", "gaps in seq"),
        Field("late", "u16", "", "frames dropped as older, or too late to show"),
        Field("uptime_s", "u16", "s", "display's uptime, wraps after 18.2 h"),
        Field("shown_pr_x10", "u16", "0.1 /min", "the number behind what is on the glass now; 0xFFFF = dashes"),
        Field("shown_rr_x10", "u16", "0.1 /min", "likewise"),
        Field("shown_state", "u8", "bits", "b0-b1 PR and b2-b3 RR: 0 dashes, 1 plain, 2 with '?'; b4-b7 screen mode"),
        Field("fw_id", "u8", "", "display firmware's release; 0 = not stated"),
    )),
}


def schema_hash() -> int:
    """CRC-32 over every name, code and kind that both ends must agree on; prose does not count."""
    parts = [f"{HEADER.title}:" + ",".join(f"{f.name}={f.kind}" for f in HEADER.fields)]
    for layout in PAYLOADS.values():
        parts.append(f"{layout.title}@{layout.code}:" + ",".join(f"{f.name}={f.kind}" for f in layout.fields)
                     + (f",{layout.tail}=i8*" if layout.tail else ""))
    for enum in (Flags, VitalState, Tech, Channel, ScreenMode):
        parts.append(f"{enum.__name__}:" + ",".join(f"{member.name}={member.value}" for member in enum))
    return zlib.crc32("\n".join(parts).encode("ascii"))


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def markdown() -> dict[str, str]:
    """The tables of PROTOCOL.md by name; the document holds each of them word for word."""
    tables = {}
    for layout in (HEADER, *PAYLOADS.values()):
        rows: list[tuple[object, ...]] = []
        rows += [(offset, f.kind, f"`{f.name}`", f.unit, f.rule) for offset, f in layout.rows()]
        if layout.tail:
            rule = "to the end of the payload; -128 = no sample"
            rows.append((layout.size, "i8...", f"`{layout.tail}`", "relative", rule))
        if rows:
            tables[layout.title] = _table(("offset", "kind", "field", "unit", "rule"), rows)
    types: list[tuple[object, ...]] = [
        (f"0x{layout.code:02X}", layout.title, f"{layout.size}{' + n' if layout.tail else ''}")
        for layout in PAYLOADS.values()
    ]
    tables["Types"] = _table(("code", "message", "payload bytes"), types)
    states: list[tuple[object, ...]] = []
    states += [(s.value, s.name, "yes" if s.shows_number else "no", text) for s, text in STATE_TEXT.items()]
    tables["States"] = _table(("code", "state", "number", "words on the screen"), states)
    modes: list[tuple[object, ...]] = [(mode.value, mode.name, MODE_TEXT[mode]) for mode in ScreenMode]
    tables["Modes"] = _table(("code", "screen mode", "message line"), modes)
    tech: list[tuple[object, ...]] = [(bit.value.bit_length() - 1, bit.name, text) for bit, text in TECH_TEXT.items()]
    tables["Tech"] = _table(("bit", "condition", "words on the screen"), tech)
    tables["Hash"] = f"Schema hash: `0x{schema_hash():08X}`"
    return tables


def fill(document: str) -> str:
    """The document with what stands between `<!-- table NAME -->` and `<!-- end -->` replaced by the tables."""
    tables = markdown()
    return re.sub(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)",
                  lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", document, flags=re.DOTALL)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(fill(path.read_text()))
