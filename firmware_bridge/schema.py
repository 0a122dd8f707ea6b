"""The wire format of PVL/1 as Python: wire.toml read, checked, and given names and types.

Every value comes from wire.toml; what stands here are the names that other code uses, and an import fails where the two
differ. `python -m firmware_bridge.generate` makes the C header, PROTOCOL.md's tables and the test vectors from the same.
"""

from __future__ import annotations

import struct
import sys
import zlib
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from functools import cached_property
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCE = Path(__file__).with_name("wire.toml")


class SchemaError(ValueError):
    """wire.toml does not hold what this code was written for."""


class _Entries(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise SchemaError(f"{SOURCE.name} has no entry {name!r}, which schema.py needs. Bring the two together.")


def _named(entries: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return _Entries({entry["name"]: entry[key] for entry in entries})


_WIRE: dict[str, Any] = tomllib.loads(SOURCE.read_text(encoding="utf-8"))
_LIMITS: dict[str, int] = _Entries(_WIRE["limits"])
_TIMES: dict[str, int] = _Entries(_WIRE["display"])
_CODES: dict[str, Any] = _WIRE["codes"]
_MESSAGES = _named(_WIRE["message"], "code")
_FLAGS = _named(_CODES["flag"], "code")
_STATES = _named(_CODES["state"], "code")
_TECH = _Entries({name: 1 << bit for name, bit in _named(_CODES["tech"], "bit").items()})
_CHANNELS = _named(_CODES["channel"], "code")
_MODES = _named(_CODES["mode"], "code")

VERSION: int = _WIRE["version"]
MAX_BODY = _LIMITS["max_body"]
CRC_SIZE = _LIMITS["crc_size"]
MUST_UNDERSTAND = _LIMITS["must_understand"]
NO_RATE = _LIMITS["no_rate"]
NO_AGE = _LIMITS["no_age"]
NO_SQI = _LIMITS["no_sqi"]
NO_SAMPLE = _LIMITS["no_sample"]
PR_PAINTABLE_X10 = (_LIMITS["pr_min_x10"], _LIMITS["pr_max_x10"])
RR_PAINTABLE_X10 = (_LIMITS["rr_min_x10"], _LIMITS["rr_max_x10"])
MAX_RATE_HZ = _LIMITS["max_rate_hz"]

MAX_AGE_MS = _TIMES["max_age_ms"]
MAX_LAG_MS = _TIMES["max_lag_ms"]
LEAK_INTERVAL_MS = _TIMES["leak_interval_ms"]
SETTLE_MS = _TIMES["settle_ms"]
SETTLE_BAND_MS = _TIMES["settle_band_ms"]
SETTLE_PAUSE_MS = _TIMES["settle_pause_ms"]
BLANK_AFTER_MS = _TIMES["blank_after_ms"]
FAULT_BAD_FRAMES = _TIMES["fault_bad_frames"]
FAULT_WINDOW_MS = _TIMES["fault_window_ms"]
FAULT_CLEARING_FRAMES = _TIMES["fault_clearing_frames"]
FORGET_AFTER_MS = _TIMES["forget_after_ms"]
SEQ_TRUSTED_MS = _TIMES["seq_trusted_ms"]
TRACE_SLACK_MS = _TIMES["trace_slack_ms"]
TEST_MS = _TIMES["test_ms"]


class MessageType(IntEnum):
    """Codes 0x80-0xFF travel from the display to the camera unit, all others the other way."""

    VITALS = _MESSAGES["VITALS"]
    WAVE = _MESSAGES["WAVE"]
    HELLO = _MESSAGES["HELLO"]
    BYE = _MESSAGES["BYE"]
    STATUS = _MESSAGES["STATUS"]


class Flags(IntFlag):
    """Header flags. Bits 4-7 are "must understand": a receiver that does not know a set one shows no number."""

    DEMO = _FLAGS["DEMO"]
    INVESTIGATIONAL = _FLAGS["INVESTIGATIONAL"]


class VitalState(IntEnum):
    """Whether a vital may be shown. Any other code on the wire is read as INVALID."""

    OFF = _STATES["OFF"]
    SEARCHING = _STATES["SEARCHING"]
    VALID = _STATES["VALID"]
    QUESTIONABLE = _STATES["QUESTIONABLE"]
    INVALID = _STATES["INVALID"]
    STALE = _STATES["STALE"]
    OUT_OF_RANGE = _STATES["OUT_OF_RANGE"]
    FAULT = _STATES["FAULT"]

    @property
    def shows_number(self) -> bool:
        return self in _SHOWING


class Tech(IntFlag):
    """Technical conditions; bits 16-31 are reserved and sent as 0."""

    NO_CAMERA = _TECH["NO_CAMERA"]
    FRAMES_STALLED = _TECH["FRAMES_STALLED"]
    TOO_DARK = _TECH["TOO_DARK"]
    OVEREXPOSED = _TECH["OVEREXPOSED"]
    MOTION = _TECH["MOTION"]
    SUBJECT_LOST = _TECH["SUBJECT_LOST"]
    LOW_SIGNAL = _TECH["LOW_SIGNAL"]
    LIGHT_FLICKER = _TECH["LIGHT_FLICKER"]
    METHODS_DISAGREE = _TECH["METHODS_DISAGREE"]
    MODEL_FAULT = _TECH["MODEL_FAULT"]
    ENGINE_MISMATCH = _TECH["ENGINE_MISMATCH"]
    OVER_TEMPERATURE = _TECH["OVER_TEMPERATURE"]
    LOW_FPS = _TECH["LOW_FPS"]
    STORAGE = _TECH["STORAGE"]
    CONFIG = _TECH["CONFIG"]
    SELF_TEST_FAILED = _TECH["SELF_TEST_FAILED"]


class Channel(IntEnum):
    """What a WAVE carries."""

    PULSE = _CHANNELS["PULSE"]
    RESP = _CHANNELS["RESP"]


class ScreenMode(IntEnum):
    """What the display is doing as a whole; upper nibble of STATUS.shown_state. Numbers are painted only in LIVE."""

    LIVE = _MODES["LIVE"]
    WAITING = _MODES["WAITING"]
    LINK_LOST = _MODES["LINK_LOST"]
    LINK_FAULT = _MODES["LINK_FAULT"]
    STOPPED = _MODES["STOPPED"]
    UPDATE_REQUIRED = _MODES["UPDATE_REQUIRED"]
    SYNCHRONISING = _MODES["SYNCHRONISING"]
    DELAYED = _MODES["DELAYED"]


def _require_same(enum: type[Enum], codes: dict[str, int]) -> None:
    """Every name of the file has a member with its code, and the other way round."""
    ours = {name: int(member.value) for name, member in enum.__members__.items()}
    if ours != codes or len(set(codes.values())) != len(codes):
        odd = sorted(set(ours.items()) ^ set(codes.items()))
        raise SchemaError(f"{SOURCE.name}: {enum.__name__} and its entries differ, or a code stands twice: {odd}. "
                          "Bring schema.py and the file together.")


for _enum, _codes in ((MessageType, _MESSAGES), (Flags, _FLAGS), (VitalState, _STATES), (Tech, _TECH),
                      (Channel, _CHANNELS), (ScreenMode, _MODES)):
    _require_same(_enum, _codes)

_SHOWING = frozenset(VitalState[name] for name, shows in _named(_CODES["state"], "number").items() if shows)
# The verdicts in the order of their codes in C, and which of them mean that the CRC held.
VERDICTS: dict[str, bool] = _named(_CODES["verdict"], "intact")

MODE_TEXT = {ScreenMode[name]: text for name, text in _named(_CODES["mode"], "text").items()}
STATE_TEXT = {VitalState[name]: text for name, text in _named(_CODES["state"], "text").items()}
BANNER_TEXT = {Flags[name]: text for name, text in _named(_CODES["flag"], "text").items()}
# Most important first.
TECH_TEXT = {Tech[name]: text for name, text in _named(_CODES["tech"], "text").items()}
UNKNOWN_TECH_TEXT: str = _CODES["unknown_tech"]


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


def _layout(title: str, code: int | None, entry: dict[str, Any]) -> Layout:
    fields = tuple(Field(f["name"], f["kind"], f.get("unit", ""), f["rule"]) for f in entry["fields"])
    unknown = [f.name for f in fields if f.kind not in _FORMAT]
    if unknown:
        raise SchemaError(f"{SOURCE.name}: {title}: unknown kind of {unknown}; expected one of {sorted(_FORMAT)}")
    return Layout(title, code, fields, entry.get("tail"))


HEADER = _layout("Header", None, _WIRE["header"])
PAYLOADS = {MessageType(entry["code"]): _layout(entry["name"], MessageType(entry["code"]), entry)
            for entry in _WIRE["message"]}


def schema_hash() -> int:
    """CRC-32 over every name, code and kind that both ends must agree on; prose does not count."""
    parts = [f"{HEADER.title}:" + ",".join(f"{f.name}={f.kind}" for f in HEADER.fields)]
    for layout in PAYLOADS.values():
        parts.append(f"{layout.title}@{layout.code}:" + ",".join(f"{f.name}={f.kind}" for f in layout.fields)
                     + (f",{layout.tail}=i8*" if layout.tail else ""))
    for enum in (Flags, VitalState, Tech, Channel, ScreenMode):
        parts.append(f"{enum.__name__}:" + ",".join(f"{member.name}={member.value}" for member in enum))
    return zlib.crc32("\n".join(parts).encode("ascii"))
