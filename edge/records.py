"""The records that cross the seams, validated where they are made.

Times are CLOCK_MONOTONIC nanoseconds. Rates are per minute here and outside vitals.py. Arrays inside a record are
never written to after the record is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class RecordError(ValueError):
    """A record was given values that it may not hold: the caller's bug, not signal trouble."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecordError(message)


class State(IntEnum):
    """Whether a vital may be shown; the numbers are those of the wire (firmware_bridge/PROTOCOL.md)."""

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
        return self in (State.VALID, State.QUESTIONABLE)


class Reason(IntEnum):
    """Why a vital is not shown, or shown as questionable. NONE belongs to VALID alone."""

    NONE = 0
    STARTING = 1
    NO_CAMERA = 2
    FRAMES_STALLED = 3
    TOO_DARK = 4
    OVEREXPOSED = 5
    MOTION = 6
    SUBJECT_LOST = 7
    LOW_SIGNAL = 8
    UNSTABLE = 9
    OUT_OF_BAND = 10
    LOW_FPS = 11
    GAP = 12
    MODEL_FAULT = 13
    CAMERA_SHAKE = 14
    LIGHT_FLICKER = 15


@dataclass(frozen=True)
class Frame:
    """One picture.

    seq: the camera's frame number; a step above 1 is a dropped frame.
    t_ns: when it was taken (sensor, container or grab), monotonic; never derived from a nominal rate.
    bgr: uint8 (H, W, 3).
    """

    seq: int
    t_ns: int
    bgr: NDArray[np.uint8]

    def __post_init__(self) -> None:
        shape_ok = self.bgr.ndim == 3 and self.bgr.shape[2] == 3 and self.bgr.size > 0
        _require(shape_ok and self.bgr.dtype == np.uint8,
                 f"frame {self.seq}: expected uint8 (H, W, 3), got {self.bgr.dtype} {self.bgr.shape}")


@dataclass(frozen=True)
class Clip:
    """Normalised frames on the model's uniform time grid, ready for the stem.

    frames: float32 (n, C, S, S), finite; zeros where `valid` is False.
    valid: bool (n,), False where no camera frame was near enough to interpolate from (a gap).
    t_end_ns: the time of the last grid point.
    """

    frames: NDArray[np.float32]
    valid: NDArray[np.bool_]
    fs_hz: float
    t_end_ns: int

    def __post_init__(self) -> None:
        _require(self.frames.ndim == 4 and self.frames.dtype == np.float32,
                 f"clip: expected float32 (n, C, S, S), got {self.frames.dtype} {self.frames.shape}")
        _require(self.valid.shape == self.frames.shape[:1], "clip: valid must have one entry per frame")
        _require(self.fs_hz > 0, f"clip: fs_hz must be positive, got {self.fs_hz}")
        _require(bool(np.isfinite(self.frames).all()), "clip: frames must be finite")


@dataclass(frozen=True)
class Waveform:
    """What the student saw in one window.

    pulse, resp: float32 (n,), dimensionless; rising pulse = more blood, rising resp = breathing in (sign not guaranteed).
    valid: bool (n,), False in gaps and before the first frame.
    pulse_presence, resp_presence: 0-1, the student's own belief that this rhythm is in the picture.
    attention: float32 (2, h, w), rows pulse and resp, each summing to 1 over the region.
    """

    pulse: NDArray[np.float32]
    resp: NDArray[np.float32]
    valid: NDArray[np.bool_]
    pulse_presence: float
    resp_presence: float
    attention: NDArray[np.float32]
    fs_hz: float
    t_end_ns: int

    def __post_init__(self) -> None:
        _require(self.pulse.ndim == 1 and self.pulse.shape == self.resp.shape == self.valid.shape,
                 f"waveform: lengths differ: pulse {self.pulse.shape}, resp {self.resp.shape}, valid {self.valid.shape}")
        _require(self.fs_hz > 0, f"waveform: fs_hz must be positive, got {self.fs_hz}")
        finite = np.isfinite(self.pulse).all() and np.isfinite(self.resp).all() and np.isfinite(self.attention).all()
        _require(bool(finite), "waveform: not finite")
        for name in ("pulse_presence", "resp_presence"):
            _require(0.0 <= getattr(self, name) <= 1.0, f"waveform: {name} {getattr(self, name)} outside 0-1")


@dataclass(frozen=True)
class Estimate:
    """Rates read from one window, before policy. A rate is None where no ridge stands out at all.

    A rate may lie outside the profile's band (the gate turns that into OUT_OF_RANGE); it is never folded into it.
    """

    hr_per_min: float | None
    hr_quality: float
    rr_per_min: float | None
    rr_quality: float
    t_end_ns: int

    def __post_init__(self) -> None:
        for name in ("hr_quality", "rr_quality"):
            _require(0.0 <= getattr(self, name) <= 1.0, f"estimate: {name} {getattr(self, name)} outside 0-1")
        for name in ("hr_per_min", "rr_per_min"):
            value = getattr(self, name)
            _require(value is None or (np.isfinite(value) and value > 0), f"estimate: {name} {value} is no rate")


@dataclass(frozen=True)
class VitalReading:
    """One vital as the display may show it. value_per_min is None exactly when the state may not show a number."""

    value_per_min: float | None
    state: State
    quality: float
    age_s: float
    averaging_s: float
    reason: Reason

    def __post_init__(self) -> None:
        _require((self.value_per_min is not None) == self.state.shows_number,
                 f"reading: state {self.state.name} with value {self.value_per_min}")
        _require(self.value_per_min is None or bool(np.isfinite(self.value_per_min)), "reading: value not finite")
        _require(0.0 <= self.quality <= 1.0, f"reading: quality {self.quality} outside 0-1")
        _require((self.reason == Reason.NONE) == (self.state == State.VALID),
                 f"reading: state {self.state.name} with reason {self.reason.name}")


@dataclass(frozen=True)
class Reading:
    """Both vitals at one moment. t_ns is when the newest frame behind them was taken."""

    hr: VitalReading
    rr: VitalReading
    t_ns: int
