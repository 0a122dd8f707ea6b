"""The messages of PVL/1 in wire units, validated where they are made, and the way there from natural units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from firmware_bridge.schema import (
    CRC_SIZE,
    HEADER,
    MAX_BODY,
    NO_AGE,
    NO_RATE,
    NO_SAMPLE,
    NO_SQI,
    PAYLOADS,
    PR_PAINTABLE_X10,
    RR_PAINTABLE_X10,
    VERSION,
    Channel,
    MessageType,
    VitalState,
    schema_hash,
)

MAX_WAVE_SAMPLES = MAX_BODY - HEADER.size - CRC_SIZE - PAYLOADS[MessageType.WAVE].size
_LIMIT = {"u8": 0xFF, "u16": 0xFFFF, "u32": 0xFFFFFFFF}


class FrameError(ValueError):
    """A message was given values that it may not hold: the caller's bug, never trouble on the wire."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise FrameError(message)


def _check_ranges(message: Message) -> None:
    layout = PAYLOADS[message.TYPE]
    for field in layout.fields:
        value = getattr(message, field.name)
        if field.kind == "text16":
            ok = isinstance(value, str) and value.isascii() and value.isprintable() and len(value) <= 16
            require(ok, f"{layout.title}.{field.name}: expected at most 16 printable ASCII characters, got {value!r}")
        else:
            limit = _LIMIT[field.kind]
            require(isinstance(value, int) and 0 <= value <= limit,
                    f"{layout.title}.{field.name}: expected an integer 0-{limit} ({field.unit or field.kind}), "
                    f"got {value!r}")


class VitalLike(Protocol):
    """A vital as the sender's own code knows it. value_per_min is None exactly when the state shows no number."""

    @property
    def value_per_min(self) -> float | None: ...
    @property
    def state(self) -> int: ...
    @property
    def quality(self) -> float: ...
    @property
    def age_s(self) -> float: ...
    @property
    def averaging_s(self) -> float: ...


@dataclass(frozen=True)
class Vitals:
    """Both vitals in wire units. A number stands here exactly when its state may show one."""

    TYPE = MessageType.VITALS

    pr_x10: int
    rr_x10: int
    pr_state: VitalState
    rr_state: VitalState
    pr_sqi: int
    rr_sqi: int
    pr_age_ds: int
    rr_age_ds: int
    pr_avg_s: int
    rr_avg_s: int
    tech: int = 0
    gap_ds: int = NO_AGE

    def __post_init__(self) -> None:
        _check_ranges(self)
        for name in ("pr", "rr"):
            value, state, sqi = (getattr(self, f"{name}_{part}") for part in ("x10", "state", "sqi"))
            require(isinstance(state, VitalState), f"VITALS.{name}_state: expected a VitalState, got {state!r}")
            require((value != NO_RATE) == state.shows_number, f"VITALS.{name}: state {state.name} with value {value}")
            require(value != 0, f"VITALS.{name}_x10: 0 is never sent; none is 0xFFFF")
            require(sqi <= 100 or sqi == NO_SQI, f"VITALS.{name}_sqi: expected 0-100 or 255, got {sqi}")

    @classmethod
    def from_readings(cls, pr: VitalLike, rr: VitalLike, tech: int = 0, breath_gap_s: float | None = None) -> Vitals:
        """Converts readings in natural units; a rate that the display may not paint raises FrameError."""
        return cls(
            pr_x10=rate_to_wire(pr.value_per_min, PR_PAINTABLE_X10, "pulse rate"),
            rr_x10=rate_to_wire(rr.value_per_min, RR_PAINTABLE_X10, "respiratory rate"),
            pr_state=VitalState(int(pr.state)), rr_state=VitalState(int(rr.state)),
            pr_sqi=quality_to_wire(pr.quality), rr_sqi=quality_to_wire(rr.quality),
            pr_age_ds=age_to_wire(pr.age_s), rr_age_ds=age_to_wire(rr.age_s),
            pr_avg_s=min(255, round(pr.averaging_s)), rr_avg_s=min(255, round(rr.averaging_s)),
            tech=int(tech), gap_ds=age_to_wire(breath_gap_s),
        )


@dataclass(frozen=True)
class Wave:
    """A run of samples of one trace: int8, relative, -128 where there is none."""

    TYPE = MessageType.WAVE

    first_index: int
    channel: int
    rate_hz: int
    samples: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_ranges(self)
        require(1 <= self.rate_hz <= 100, f"WAVE.rate_hz: expected 1-100, got {self.rate_hz}")
        require(len(self.samples) <= MAX_WAVE_SAMPLES,
                f"WAVE.samples: expected at most {MAX_WAVE_SAMPLES} a frame, got {len(self.samples)}; split them")
        require(all(-128 <= sample <= 127 for sample in self.samples), "WAVE.samples: expected -128 to 127")

    @classmethod
    def from_samples(cls, channel: Channel, first_index: int, rate_hz: int, samples: Sequence[float | None]) -> Wave:
        """Samples from -1 to 1 (clipped: the trace is relative); None or a non-finite value becomes a gap."""
        wire = tuple(NO_SAMPLE if x is None or not math.isfinite(x) else int(round(127 * max(-1.0, min(1.0, x))))
                     for x in samples)
        return cls(first_index=int(first_index) & 0xFFFFFFFF, channel=int(channel), rate_hz=rate_hz, samples=wire)


@dataclass(frozen=True)
class Hello:
    """Who is sending. Sent on open and every 5 s."""

    TYPE = MessageType.HELLO

    min_ver: int = VERSION
    max_ver: int = VERSION
    schema: int = schema_hash()
    build: int = 0
    model: int = 0
    product: str = ""

    def __post_init__(self) -> None:
        _check_ranges(self)


@dataclass(frozen=True)
class Bye:
    """An orderly stop: the display says MONITORING STOPPED instead of CAMERA LINK LOST."""

    TYPE = MessageType.BYE


@dataclass(frozen=True)
class Status:
    """What the display received and what is on its glass; display to camera unit, once a second, optional."""

    TYPE = MessageType.STATUS

    last_session: int
    last_seq: int
    frames_ok: int
    bad_cobs: int
    bad_crc: int
    bad_len: int
    lost: int
    late: int
    uptime_s: int
    shown_pr_x10: int
    shown_rr_x10: int
    shown_state: int
    fw_id: int = 0

    def __post_init__(self) -> None:
        _check_ranges(self)


Message = Vitals | Wave | Hello | Bye | Status


def rate_to_wire(value_per_min: float | None, paintable_x10: tuple[int, int], name: str) -> int:
    """Rate per minute -> 0.1 /min; None -> 0xFFFF. A rate outside what a display may paint raises FrameError."""
    if value_per_min is None:
        return NO_RATE
    low, high = paintable_x10
    wire = int(round(value_per_min * 10)) if math.isfinite(value_per_min) else -1
    require(low <= wire <= high, f"{name}: expected {low / 10:g}-{high / 10:g} /min or None, got {value_per_min}; "
                                  "the gate must turn such a value into OUT_OF_RANGE without a number")
    return wire


def quality_to_wire(quality: float | None) -> int:
    """0-1 -> percent; None -> 255 (not stated)."""
    if quality is None:
        return NO_SQI
    require(0.0 <= quality <= 1.0, f"quality: expected 0-1 or None, got {quality}")
    return int(round(100 * quality))


def age_to_wire(age_s: float | None) -> int:
    """Seconds -> 0.1 s, rounded up: nothing may look fresher than it is; None or over 6553 s -> 0xFFFF, unknown."""
    if age_s is None or not math.isfinite(age_s):
        return NO_AGE
    require(age_s >= 0, f"age: expected 0 s or more, got {age_s}")
    return min(NO_AGE, math.ceil(round(age_s * 10, 6)))
