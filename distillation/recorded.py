"""Real data sets as training clips: cut, normalised and cached as rendered ones are, with the labels that they have.

A source without a respiration label teaches no breathing: its presence is -1 and its rate 0, and every loss leaves it out.
Where a source has a contact wave but no rate, the rate is read from that wave.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.datasets import open_dataset
from calibration.datasets.normalised import normalised
from calibration.datasets.record import ClipRecord
from distillation.cache import write_columns
from distillation.example import INT8_STEP, Example
from edge import clip
from edge.clip import CHANNELS

RATE_BAND_HZ = {"pulse": (0.6, 4.4), "resp": (0.07, 2.1)}
"""Where a contact wave's own rate is looked for; the student's bands."""

RATE_SPAN_S = 10.0
"""A rate is read from this much of the contact wave: 10 s tell 6 /min apart, finer by interpolation of the peak."""


def rate_of_wave(wave: NDArray[np.float64], fs_hz: float, low_hz: float, high_hz: float) -> NDArray[np.float64]:
    """Rate in hertz at every sample of a contact wave (n,): spectral peak of the RATE_SPAN_S around it, or of all there is."""
    span = min(wave.size, round(RATE_SPAN_S * fs_hz))
    step = max(1, round(fs_hz))
    starts = np.unique(np.append(np.arange(0, wave.size - span + 1, step), wave.size - span))
    freqs = np.fft.rfftfreq(8 * span, 1 / fs_hz)
    inside = (freqs >= low_hz) & (freqs <= high_hz)
    rates = []
    for start in starts:
        piece = wave[start:start + span]
        spectrum = np.abs(np.fft.rfft((piece - piece.mean()) * np.hanning(span), 8 * span))
        rates.append(freqs[inside][spectrum[inside].argmax()])
    return np.interp(np.arange(wave.size), starts + span / 2, rates)


def _task(labels: dict[str, NDArray[np.float64]], task: str, rate: str, cut: slice,
          fs_hz: float) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """One task's wave, rate per minute and presence in a piece. A label with holes in the piece does not count there."""
    n = cut.stop - cut.start
    wave, rates = (labels[kind][cut] if kind in labels else None for kind in (task, rate))
    wave = wave if wave is not None and np.isfinite(wave).all() and wave.std() > 0 else None
    rates = rates if rates is not None and np.isfinite(rates).all() and (rates > 0).all() else None
    none = np.zeros(n, np.float32)
    if wave is None:  # a rate alone is not enough for every loss: the piece teaches nothing of this task
        return none, none, -1
    known = rates if rates is not None else 60 * rate_of_wave(wave, fs_hz, *RATE_BAND_HZ[task])
    return ((wave - wave.mean()) / wave.std()).astype(np.float32), known.astype(np.float32), 1


def pieces(record: ClipRecord, n_samples: int, fs_hz: float, size: int) -> list[tuple[NDArray[np.int8], Example]]:
    """A record cut into pieces of n_samples, one after the other; what is left over at the end is dropped."""
    seen, labels = normalised(record, fs_hz, size)
    made = []
    for start in range(0, seen.frames.shape[0] - n_samples + 1, n_samples):
        cut = slice(start, start + n_samples)
        pulse, hr, pulse_there = _task(labels, "pulse", "hr", cut, fs_hz)
        resp, rr, resp_there = _task(labels, "resp", "rr", cut, fs_hz)
        frames = np.rint(seen.frames[cut].transpose(0, 2, 3, 1) / INT8_STEP).astype(np.int8)
        made.append((frames, Example(pulse, resp, hr, rr, seen.valid[cut], pulse_there, resp_there)))
    return made


def build_dataset(name: str, root: Path, n_samples: int, fs_hz: float, size: int, folder: Path) -> Path:
    """Cache of a data set's records, in their order; returns its folder. Raises DatasetError at the first broken one."""
    listed = [(record.name, record.labels.keys()) for record in open_dataset(name, root)]
    request = [name, n_samples, fs_hz, size, [(who, sorted(kinds)) for who, kinds in listed]]
    made_by = hashlib.sha256(json.dumps(request).encode())
    for file in (Path(clip.__file__), Path(__file__)):
        made_by.update(file.read_bytes())
    done = folder / f"data-{name}-{made_by.hexdigest()[:12]}"
    if (done / "spec.json").exists():
        return done
    done.mkdir(parents=True, exist_ok=True)
    raw, examples = done / "frames.raw", []
    with raw.open("wb") as sink:
        for count, record in enumerate(open_dataset(name, root), 1):
            for frames, example in pieces(record, n_samples, fs_hz, size):
                sink.write(frames.tobytes())
                examples.append(example)
            print(f"\r{name}: {count}/{len(listed)} records, {len(examples)} clips", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if not examples:
        raise ValueError(f"{root}: no record of {name} is as long as a training clip ({n_samples / fs_hz:.0f} s)")
    shape = (len(examples), n_samples, size, size, CHANNELS)
    frames = np.lib.format.open_memmap(done / "frames.npy", mode="w+", dtype=np.int8, shape=shape)
    source = np.memmap(raw, np.int8, "r", shape=shape)
    for i in range(len(examples)):
        frames[i] = source[i]
    frames.flush()
    del source
    raw.unlink()
    write_columns(done / "truth.npz", {f.name: np.stack([getattr(e, f.name) for e in examples]) for f in fields(Example)})
    (done / "spec.json").write_text(json.dumps({"dataset": name, "records": [who for who, _ in listed]}))
    return done
