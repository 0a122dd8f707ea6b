"""One picture of a run: waveforms, scalograms with their ridges, and the numbers shown (against truth where it is known).

Drawn with OpenCV, which the runtime has anyway; the lab's reports use better tools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.pipeline import Hop
from edge.records import Waveform
from edge.scalogram import scalogram
from edge.vitals import Profile, Track, analyse

WIDTH_PX, HEIGHT_PX = 1280, 1040
GREEN, YELLOW, WHITE, GREY, CYAN = (90, 220, 90), (60, 220, 240), (235, 235, 235), (140, 140, 140), (220, 200, 60)
"""BGR; pulse green and breathing yellow as on the display."""

CYCLES = 6.0
"""Width of the drawn wavelet, in periods: a compromise between time and frequency for the eye."""

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Truth:
    """The true rates per minute as functions of time since the first frame, in seconds."""

    hr: Callable[[float], float] | None
    rr: Callable[[float], float] | None


@dataclass(frozen=True)
class _Panel:
    """A plot area on the canvas and its data range."""

    image: Image
    x: int
    y: int
    w: int
    h: int
    t: tuple[float, float]
    v: tuple[float, float]

    def at(self, t: NDArray, v: NDArray) -> NDArray[np.int32]:
        px = self.x + (np.asarray(t) - self.t[0]) / (self.t[1] - self.t[0]) * self.w
        py = self.y + self.h - (np.asarray(v) - self.v[0]) / (self.v[1] - self.v[0]) * self.h
        return np.stack([px, py], axis=-1).round().astype(np.int32)

    def line(self, t: NDArray, v: NDArray, colour: tuple[int, int, int], thick: int = 1) -> None:
        cv2.polylines(self.image, [self.at(t, v)], False, colour, thick, cv2.LINE_AA)

    def frame(self, title: str, ticks: Sequence[float], unit: str) -> None:
        cv2.rectangle(self.image, (self.x, self.y), (self.x + self.w, self.y + self.h), GREY, 1)
        _text(self.image, title, self.x + 4, self.y - 7, WHITE)
        for tick in ticks:
            y = int(self.at(np.array([self.t[0]]), np.array([tick]))[0, 1])
            cv2.line(self.image, (self.x - 4, y), (self.x, y), GREY, 1)
            _text(self.image, f"{tick:g}", self.x - 44, y + 4, GREY)
        _text(self.image, unit, self.x + self.w - 60, self.y - 7, GREY)


def _text(image: Image, text: str, x: int, y: int, colour: tuple[int, int, int], size: float = 0.45) -> None:
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def draw(hops: Sequence[Hop], path: Path, profile: Profile, truth: Truth | None) -> None:
    """Write the picture as PNG. With no hops it says so instead of drawing axes."""
    canvas = np.full((HEIGHT_PX, WIDTH_PX, 3), 24, np.uint8)
    _text(canvas, "PhysVLM Edge - investigational, not for diagnosis or alarms", 60, 28, CYAN, 0.6)
    if not hops:
        _text(canvas, "no reading: the video is shorter than one second", 60, 80, WHITE, 0.7)
    else:
        _draw_last_window(canvas, hops[-1], profile)
        _draw_numbers(canvas, hops, truth)
    ok, data = cv2.imencode(".png", canvas)
    if not ok:
        raise OSError(f"{path}: the picture could not be encoded")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data.tobytes())
    partial.replace(path)


def _draw_last_window(canvas: Image, hop: Hop, profile: Profile) -> None:
    wave = hop.waveform
    pulse_track, breath_track = analyse(wave, profile)
    n = wave.pulse.size
    seconds = np.arange(n) / wave.fs_hz - n / wave.fs_hz
    rows = ((60, "pulse", wave.pulse, GREEN, (40.0, 270.0), pulse_track, (60, 120, 180, 240)),
            (670, "breathing", wave.resp, YELLOW, (5.0, 125.0), breath_track, (15, 30, 60, 90, 120)))
    for x, name, samples, colour, band, track, ticks in rows:
        top = _Panel(canvas, x, 70, 550, 150, (seconds[0], 0.0), (-4.0, 4.0))
        shown = np.where(wave.valid, samples, np.nan)
        top.frame(f"{name}, last {n / wave.fs_hz:.0f} s (gaps stay gaps)", (), "relative")
        for piece in _runs(np.isfinite(shown)):
            top.line(seconds[piece], shown[piece].clip(-4, 4), colour)
        panel = _Panel(canvas, x, 270, 550, 260, (seconds[0], 0.0), band)
        _draw_scalogram(panel, wave, samples, band)
        rate = track.rate_hz if track else None
        panel.frame(f"{name} scalogram, ridge (ungated): {'none' if rate is None else f'{60 * rate:.1f} /min'}", ticks, "/min")
        if track is not None:
            _draw_ridge(panel, track, band)


def _draw_scalogram(panel: _Panel, wave: Waveform, samples: NDArray[np.float32], band: tuple[float, float]) -> None:
    freqs_hz = np.linspace(band[0], band[1], 130) / 60
    power = np.sqrt(scalogram(np.where(wave.valid, samples, 0).astype(float), wave.fs_hz, freqs_hz,
                              CYCLES / (2 * np.pi * freqs_hz)))
    level = np.clip(power / max(float(power.max()), 1e-12) * 255, 0, 255).astype(np.uint8)
    picture = cv2.applyColorMap(cv2.resize(level[::-1], (panel.w, panel.h)), cv2.COLORMAP_INFERNO)
    panel.image[panel.y:panel.y + panel.h, panel.x:panel.x + panel.w] = picture


def _draw_ridge(panel: _Panel, track: Track, band: tuple[float, float]) -> None:
    """The followed rhythm: dots outside the cone of influence, where it counts."""
    for t_s, rate_hz, counts in zip(track.times_s, track.ridge_hz, track.usable, strict=True):
        if counts and panel.t[0] <= t_s <= panel.t[1] and band[0] <= 60 * rate_hz <= band[1]:
            x, y = panel.at(np.array([t_s]), np.array([60 * rate_hz]))[0]
            cv2.circle(panel.image, (int(x), int(y)), 2, WHITE, -1, cv2.LINE_AA)


def _draw_numbers(canvas: Image, hops: Sequence[Hop], truth: Truth | None) -> None:
    start_ns = hops[0].reading.t_ns
    t = np.array([(h.reading.t_ns - start_ns) / 1e9 + 1 for h in hops])
    span = (0.0, max(float(t[-1]), 1.0))
    rows = ((590, "PR camera, shown", "hr", GREEN, (40.0, 250.0), (60, 120, 180, 240), truth.hr if truth else None),
            (830, "RR camera, shown", "rr", YELLOW, (0.0, 125.0), (30, 60, 90, 120), truth.rr if truth else None))
    for y, title, name, colour, band, ticks, true_rate in rows:
        panel = _Panel(canvas, 60, y, 1160, 180, span, band)
        values = [getattr(h.reading, name).value_per_min for h in hops]
        shown = sum(v is not None for v in values)
        ending = ", truth in white" if true_rate else ""
        panel.frame(f"{title} in {100 * shown / len(values):.0f} % of readings{ending}", ticks, "/min")
        if true_rate is not None:
            panel.line(t, np.array([true_rate(float(s)) for s in t]).clip(*band), WHITE)
        for t_s, value in zip(t, values, strict=True):
            if value is not None:
                px, py = panel.at(np.array([t_s]), np.array([np.clip(value, *band)]))[0]
                cv2.circle(canvas, (int(px), int(py)), 4, colour, -1, cv2.LINE_AA)
    _text(canvas, f"time, s (0 to {span[1]:.0f})", 580, HEIGHT_PX - 8, GREY)


def _runs(keep: NDArray[np.bool_]) -> list[slice]:
    """Stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], keep.astype(np.int8), [0]])))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
