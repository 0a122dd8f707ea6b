"""What a reading and its waveforms are on the wire: VITALS, and WAVE in pieces. No I/O and no clock in here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from edge.pipeline import HOP_S
from edge.records import Reading, Reason, Waveform
from firmware_bridge.messages import Vitals, Wave
from firmware_bridge.schema import NO_RATE, Channel, Tech, VitalState

WAVE_HZ = 25
WAVE_PIECE_S = 0.2
"""WAVE goes out five times a second (PROTOCOL.md), so that the trace scrolls and does not jump."""

WAVE_DELAY_SAMPLES = 15
"""The trace runs half a second behind: the newest samples still lack their right-hand context."""

WAVE_FULL_SCALE = 3.0
"""A wave has unit variance; three of them reach the trace's edge."""

WAVE_PRESENCE = 0.5
"""Below this belief the trace is a gap: a drawn noise beside dashes would look like a signal."""

TECH = {Reason.NO_CAMERA: Tech.NO_CAMERA, Reason.FRAMES_STALLED: Tech.FRAMES_STALLED, Reason.TOO_DARK: Tech.TOO_DARK,
        Reason.OVEREXPOSED: Tech.OVEREXPOSED, Reason.MOTION: Tech.MOTION, Reason.SUBJECT_LOST: Tech.SUBJECT_LOST,
        Reason.LOW_SIGNAL: Tech.LOW_SIGNAL, Reason.UNSTABLE: Tech.LOW_SIGNAL, Reason.LOW_FPS: Tech.LOW_FPS,
        Reason.GAP: Tech.FRAMES_STALLED, Reason.MODEL_FAULT: Tech.MODEL_FAULT, Reason.CAMERA_SHAKE: Tech.MOTION,
        Reason.LIGHT_FLICKER: Tech.LIGHT_FLICKER}


def vitals_message(reading: Reading) -> Vitals:
    tech = 0
    for reason in (reading.hr.reason, reading.rr.reason):
        tech |= int(TECH.get(reason, 0))
    return Vitals.from_readings(reading.hr, reading.rr, tech)


def withheld(vitals: Vitals) -> Vitals:
    """The same without numbers: what is sent while the display is known to show something else than what it was sent."""
    return replace(vitals, pr_x10=NO_RATE, rr_x10=NO_RATE, pr_state=VitalState.FAULT, rr_state=VitalState.FAULT,
                   tech=vitals.tech | int(Tech.SELF_TEST_FAILED))


class Traces:
    """The traces on their way out: what a hop brought leaves in short pieces at the trace's own pace."""

    def __init__(self) -> None:
        self._waiting: list[Wave] = []
        self._due_ns = 0

    def put(self, wave: Waveform, now_ns: int) -> list[Wave]:
        """Takes a new hop in; returns what the last one still had waiting."""
        late, self._waiting = self._waiting, list(wave_messages(wave))
        self._due_ns = now_ns
        return late

    def due(self, now_ns: int) -> list[Wave]:
        """The pieces whose time has come: one of each channel every WAVE_PIECE_S."""
        out: list[Wave] = []
        while self._waiting and now_ns >= self._due_ns:
            out, self._waiting = [*out, *self._waiting[:2]], self._waiting[2:]
            self._due_ns += round(WAVE_PIECE_S * 1e9)
        return out


def wave_messages(wave: Waveform, hop_s: float = HOP_S) -> Iterator[Wave]:
    """The newest hop of both traces at the wire's rate, in pieces, pulse and breathing in turn.

    Gaps where there is no sample or no belief.
    """
    n, count = round(hop_s * wave.fs_hz), round(hop_s * WAVE_HZ)
    stop = wave.pulse.size - WAVE_DELAY_SAMPLES
    at = np.linspace(stop - n, stop, count, endpoint=False)
    shown = wave.valid[np.rint(at).astype(int)]
    first = round(wave.t_end_ns / 1e9 * WAVE_HZ)
    traces = []
    for samples, presence in ((wave.pulse, wave.pulse_presence), (wave.resp, wave.resp_presence)):
        values = np.interp(at, np.arange(samples.size), samples) / WAVE_FULL_SCALE
        keep = shown & (presence >= WAVE_PRESENCE)
        traces.append([float(v) if ok else None for v, ok in zip(values, keep, strict=True)])
    piece = round(WAVE_PIECE_S * WAVE_HZ)
    for i in range(0, count, piece):
        for channel, trace in ((Channel.PULSE, traces[0]), (Channel.RESP, traces[1])):
            yield Wave.from_samples(channel, first + i, WAVE_HZ, trace[i:i + piece])
