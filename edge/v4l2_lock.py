"""Switches a V4L2 camera's automatisms off once they have settled, and reads back whether it obeyed.

An exposure or white balance that hunts moves the picture's light in steps many times the pulse. Controls are addressed by
number: their names changed with the kernel.
"""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass

from edge.v4l2_device import Control, Device

# linux/v4l2-controls.h
AUTO_EXPOSURE, EXPOSURE, DYNAMIC_FRAME_RATE = 0x9A0901, 0x9A0902, 0x9A0903
AUTO_WHITE_BALANCE, WHITE_BALANCE = 0x98090C, 0x98091A
AUTO_GAIN, GAIN = 0x980912, 0x980913
MAINS, BACKLIGHT, HUE_AUTO, AUTO_FOCUS, FOCUS = 0x980918, 0x98091C, 0x980919, 0x9A090C, 0x9A090A
EXPOSURE_MANUAL = 1
_MAINS_MENU = {50: 1, 60: 2}
_EXPOSURE_UNIT_S = 100e-6

NAMES = {AUTO_EXPOSURE: "auto exposure", EXPOSURE: "exposure", DYNAMIC_FRAME_RATE: "dynamic frame rate",
         AUTO_WHITE_BALANCE: "auto white balance", WHITE_BALANCE: "white balance", AUTO_GAIN: "auto gain", GAIN: "gain",
         MAINS: "mains frequency", BACKLIGHT: "backlight compensation", HUE_AUTO: "auto hue", AUTO_FOCUS: "auto focus",
         FOCUS: "focus"}
# What the pulse needs; the others are told of only where they refuse.
_NEEDED = (AUTO_EXPOSURE, EXPOSURE, AUTO_WHITE_BALANCE, GAIN, MAINS)
_SETTLED = (EXPOSURE, GAIN, WHITE_BALANCE, FOCUS)


@dataclass(frozen=True)
class Locked:
    """What came of it. kept: control -> value read back; lacking: the camera has none; refused: why, by control.

    settled_exposure: where the automatism had it, None where that cannot be read.
    """

    kept: dict[int, int]
    lacking: tuple[int, ...]
    refused: dict[int, str]
    settled_exposure: int | None

    def notes(self) -> tuple[str, ...]:
        """Lines for the log and the doctor; one that begins with "refused" is a fault, the others are for information."""
        out = []
        if self.kept:
            out.append("locked: " + ", ".join(f"{NAMES[n]} {_with_unit(n, value)}" for n, value in self.kept.items()))
        before, after = self.settled_exposure, self.kept.get(EXPOSURE)
        if before is not None and after is not None and before != after:
            out.append(f"moved: exposure from {_with_unit(EXPOSURE, before)} to {_with_unit(EXPOSURE, after)}, "
                       "whole half-periods of the mains")
        lacking = [NAMES[n] for n in self.lacking if n in _NEEDED]
        if lacking:
            out.append(f"lacking: the camera has no control for {', '.join(lacking)}")
        return (*out, *(f"refused: {NAMES[n]}: {why}" for n, why in self.refused.items()))


def prepare(device: Device, mains_hz: int) -> None:
    """Before settling: what the automatisms must know in order to settle well. Whether it was kept, `lock` tells."""
    _apply(device, _conditions(mains_hz))


def settled_values(device: Device) -> dict[int, int]:
    """Where the automatisms stand now, by control; for telling whether they still move."""
    values = {}
    for number in _SETTLED:
        if device.control(number) is not None:
            value = _read(device, number)
            if value is not None:
                values[number] = value
    return values


def lock(device: Device, mains_hz: int, fps: float | None) -> Locked:
    """Read what has settled, switch the automatisms off, write it back and read it again.

    Order matters: a control answers EACCES while its automatism is on. Raises OSError only for a camera that is gone.
    """
    settled = settled_values(device)
    settled_exposure = settled.get(EXPOSURE)
    exposure = device.control(EXPOSURE)
    if exposure is not None and EXPOSURE in settled:
        settled[EXPOSURE] = whole_half_periods(settled[EXPOSURE], exposure, mains_hz, fps)
    wanted = _conditions(mains_hz) | {AUTO_EXPOSURE: EXPOSURE_MANUAL}
    for automatic, number in ((None, EXPOSURE), (AUTO_GAIN, GAIN), (AUTO_WHITE_BALANCE, WHITE_BALANCE),
                              (AUTO_FOCUS, FOCUS)):
        if automatic is not None:
            wanted[automatic] = 0
        if number in settled:
            wanted[number] = settled[number]
    kept, refused = _apply(device, wanted)
    lacking = tuple(number for number in NAMES if device.control(number) is None)
    return Locked(kept, lacking, refused, settled_exposure)


def whole_half_periods(settled: int, control: Control, mains_hz: int, fps: float | None) -> int:
    """The exposure (in the control's 100 us) to lock at: whole half-periods of the mains, at or below the settled one.

    Light from the mains swells twice a period. An exposure of whole half-periods holds the same light whenever it begins,
    so any frame rate is free of flicker. At least one half-period; more only as far as they fit into a frame.
    """
    half_s = 1 / (2 * mains_hz)
    longest_s = control.maximum * _EXPOSURE_UNIT_S if fps is None else min(control.maximum * _EXPOSURE_UNIT_S, 1 / fps)
    # a unit of tolerance: 16.667 ms are written as 166 units
    count = math.floor((min(settled * _EXPOSURE_UNIT_S, longest_s) + _EXPOSURE_UNIT_S) / half_s)
    return round(max(count, 1) * half_s / _EXPOSURE_UNIT_S)


def _conditions(mains_hz: int) -> dict[int, int]:
    return {MAINS: _MAINS_MENU[mains_hz], DYNAMIC_FRAME_RATE: 0, BACKLIGHT: 0, HUE_AUTO: 0}


def _apply(device: Device, wanted: dict[int, int]) -> tuple[dict[int, int], dict[int, str]]:
    """Write each in order, then read all back: (kept, refused). Those that the camera lacks are passed over."""
    refused, written = {}, {}
    for number, value in wanted.items():
        control = device.control(number)
        if control is None:
            continue
        if control.read_only:
            refused[number] = "read-only"
            continue
        try:
            device.set(number, value)
            written[number] = value
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise
            refused[number] = f"{value} not taken: {error.strerror}"
    kept = {}
    for number, value in written.items():
        found = _read(device, number)
        control = device.control(number)
        if found is not None and control is not None and abs(found - value) < control.step:
            kept[number] = found
        else:
            refused[number] = f"{value} written, reads {found}"
    return kept, refused


def _read(device: Device, number: int) -> int | None:
    """None where it cannot be read (some cameras refuse while an automatism holds it)."""
    try:
        return device.get(number)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise
        return None


def _with_unit(number: int, value: int) -> str:
    if number == EXPOSURE:
        return f"{value * _EXPOSURE_UNIT_S * 1e3:.1f} ms"
    if number == WHITE_BALANCE:
        return f"{value} K"
    if number == MAINS:
        return {0: "off", 1: "50 Hz", 2: "60 Hz", 3: "auto"}.get(value, str(value))
    if number == AUTO_EXPOSURE:
        return "off" if value == EXPOSURE_MANUAL else str(value)
    return "off" if value == 0 and number not in _SETTLED else str(value)
