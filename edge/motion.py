"""What imitates a rhythm: a thing that rocks is no pulse, nor is an overtone of a camera that sways; a lamp that swells is
neither pulse nor breath (pure).

A pulse changes the light of skin and hardly displaces it; something that rocks at a heart's rate displaces edges, and the
change of light follows from that. Both are in the stem's first features, the plain cell means of the normalised frames.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from edge.clip import FLOW_SCALE, LIGHT_SCALE

F32 = NDArray[np.float32]

GREEN, FLOW_X, FLOW_Y = 1, 3, 4
"""Channels of edge.clip's frames."""

STRONGEST_SHARE = 0.22
"""The cells that are looked at: those whose light beats most, where a pulse's skin or a rocking edge is."""

FLOW_PER_LIGHT = 8.0
"""Displacement (cells) per change of log light above which the rhythm moves. Rendered newborns have 1.5-4.5 (flow that
the pulse itself feigns on flat skin), rocking objects 11-55."""

FLOW_OVER_NOISE = 6.0
"""The displacement must stand this far above its neighbourhood in frequency: newborns 1.4-4.4, rocking objects above 10."""

NEIGHBOURS = (0.80, 0.88, 1.13, 1.22)
"""Multiples of the rate at which the neighbourhood is read: past the window's own width at 60 /min, short of harmonics."""

UNIFORM = 0.85
"""Share of a rhythm's change of light that all cells have in common, in the colour that changes most, above which it is the
lamp's: lamps have 1.00, rendered breathing 0.00-0.30, a real chest that fills the picture 0.74."""

RIGID = 0.85
"""How far the cells move in step (the square of their phases' mean, whatever each one's size), along x or y, above which the
camera sways: rendered sways that were read as a breath have 0.78-0.96, with the background in it; rendered breathing 0.00-0.45,
a real chest that fills the picture 0.48-0.72, and more than 0.85 in parts of it: it tells an overtone from a pulse, never a
sway from a breath."""

SWAY_HZ, SWAY_REACH_HZ = (0.1, 2.0), 0.042
"""Where a sway is looked for, and how near to a multiple of it its overtones are read (2.5 per minute)."""

_PADDED = 16  # a window's spectrum is read this much finer than its own width, or a sixth overtone would be missed

PULSE_UNIFORM, GREY = 0.93, 0.92
"""The same share, and the share of a rhythm that blue, green and red have in common, above both of which a pulse is the
lamp's: lamps and their glare have 0.96 and more of the first and, by their tint, 0.94 and more of the second. Skin that fills
the picture has up to 0.84 of the first, for perfusion is blotchy, in infrared too."""

def _turning(valid: F32, rate_hz: float, fs_hz: float) -> NDArray[np.complex64]:
    """Tapered turn (n,): a series times it is the series' complex amplitude at rate_hz, up to a constant."""
    t_s = np.arange(valid.size, dtype=np.float32) / np.float32(fs_hz)
    return np.hanning(valid.size).astype(np.float32) * valid * np.exp(np.complex64(-2j * np.pi * rate_hz) * t_s)


def lamp_swells(cells: F32, valid: F32, rate_hz: float, fs_hz: float) -> bool:
    """Whether the light at rate_hz swells alike everywhere, in the colour that swells most: where a white balance hunts, blue
    rises while red falls. cells, valid: as for rhythm_moves."""
    colours = _colours(cells, valid, rate_hz, fs_hz)
    return _in_common(colours[(np.abs(colours) ** 2).sum(axis=1).argmax()]) > UNIFORM


def camera_sways(cells: F32, valid: F32, rate_hz: float, fs_hz: float, sway_hz: float, times: Collection[int] = (1,)) -> bool:
    """Whether what goes on at rate_hz is the sway of the whole picture, or one of its overtones: so many times its rate.

    cells, valid: as for rhythm_moves. sway_hz: of these cells (`sway_rate`), the same whatever rate is asked about.
    """
    if 1 in times and _in_step(cells, valid, rate_hz, fs_hz) > RIGID:
        return True
    return any(abs(rate_hz - k * sway_hz) < SWAY_REACH_HZ for k in times) and _in_step(cells, valid, sway_hz, fs_hz) > RIGID


def sway_rate(cells: F32, valid: F32, fs_hz: float) -> float:
    """Hz: where the picture's mean displacement is strongest, within SWAY_HZ."""
    n = _PADDED * valid.size
    taper = np.hanning(valid.size).astype(np.float32) * valid
    moved = cells[:, :, (FLOW_X, FLOW_Y)].mean(axis=1) * taper[:, None]
    hz = np.fft.rfftfreq(n, 1 / fs_hz)
    inside = (hz >= SWAY_HZ[0]) & (hz <= SWAY_HZ[1])
    power = (np.abs(np.fft.rfft(moved, n, axis=0)) ** 2).sum(axis=1)
    return float(hz[inside][power[inside].argmax()])


def _in_step(cells: F32, valid: F32, rate_hz: float, fs_hz: float) -> float:
    """How far all cells move in step along x or y (0-1), whatever each one's size."""
    turning = _turning(valid, rate_hz, fs_hz)
    moves = [turning @ cells[:, :, k] for k in (FLOW_X, FLOW_Y)]
    return max(_in_common(axis / np.maximum(np.abs(axis), 1e-12)) for axis in moves)


def lamp_beats(cells: F32, valid: F32, rate_hz: float, fs_hz: float) -> bool:
    """Whether what pulses at rate_hz is the lamp: alike everywhere and in every colour. cells, valid: as for rhythm_moves."""
    colours = _colours(cells, valid, rate_hz, fs_hz)
    return _grey(colours) > GREY and _in_common(colours.mean(axis=0)) > PULSE_UNIFORM


def _colours(cells: F32, valid: F32, rate_hz: float, fs_hz: float) -> NDArray[np.complexfloating]:
    """Complex amplitude of each colour in each cell: (3, cells)."""
    turning = _turning(valid, rate_hz, fs_hz)
    return np.stack([turning @ cells[:, :, k] for k in range(3)])


def _grey(colours: NDArray[np.complexfloating]) -> float:
    """Share (0-1) of the colours' power that all three have alike; 0 where nothing changes."""
    power = float((np.abs(colours) ** 2).sum())
    return float((np.abs(colours.sum(axis=0)) ** 2).sum()) / (3 * power) if power > 0 else 0.0


def _in_common(amplitudes: NDArray[np.complexfloating]) -> float:
    """Share (0-1) of the cells' complex amplitudes (n,) that all of them have alike; 0 where nothing moves."""
    whole = float((np.abs(amplitudes) ** 2).sum()) * amplitudes.size
    return float(np.abs(amplitudes.sum()) ** 2) / whole if whole > 0 else 0.0


def rhythm_moves(cells: F32, valid: F32, rate_hz: float, fs_hz: float) -> bool:
    """Whether the rhythm at rate_hz is displacement rather than light.

    cells: (n, cells, >= 5), channel means of normalised frames, zeros where valid (n,) is 0.
    """
    light_flow = np.ascontiguousarray(cells[:, :, (GREEN, FLOW_X, FLOW_Y)]).reshape(cells.shape[0], -1)

    def amplitude(at_hz: float) -> F32:
        """(3, cells)"""
        return np.abs(_turning(valid, at_hz, fs_hz) @ light_flow).reshape(-1, 3).T

    def flow(amplitudes: F32) -> float:
        return float(np.hypot(amplitudes[1], amplitudes[2])[strongest].mean())

    here = amplitude(rate_hz)
    strongest = np.argsort(-here[0])[:max(1, round(STRONGEST_SHARE * here.shape[1]))]
    displaced = flow(here)
    around = sum(flow(amplitude(k * rate_hz)) for k in NEIGHBOURS) / len(NEIGHBOURS)
    per_light = displaced / FLOW_SCALE / max(float(here[0][strongest].mean()) / LIGHT_SCALE, 1e-9)
    return per_light > FLOW_PER_LIGHT and displaced > FLOW_OVER_NOISE * max(around, 1e-9)
