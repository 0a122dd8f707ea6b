"""Training clips, rendered once and kept normalised outside git.

Each clip is what the stem sees (edge.clip, the runtime's own preprocessing) as int8: the deployed stem is INT8 too, and
one step is a third of the sensor noise of a typical clip. Truth stands on the same grid.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration import phantom, rhythms, scenes
from calibration.phantom import Phantom, Scene
from calibration.scenes import restraint_scene, training_scene
from edge import clip
from edge.clip import CHANNELS, LIGHT_CLIP, Region, area_means, normalise_clip

INT8_STEP = LIGHT_CLIP / 127.0

PULSE_SEEN_R2, PULSE_LOST_R2 = 0.40, 0.10
"""A pulse counts as visible when a linear reading of the skin explains this share of it, as lost below the other."""


SUITES: dict[str, Callable[[int], Scene]] = {"training": training_scene, "restraint": restraint_scene}


@dataclass(frozen=True)
class CacheSpec:
    """What a cache holds: n clips of n_samples grid points from seed0 on, each a scene of `suite` (SUITES)."""

    suite: str
    n: int
    seed0: int
    n_samples: int
    fs_hz: float
    size: int

    def key(self) -> str:
        """Folder name: changes with the request and with the code that renders and normalises."""
        made_by = hashlib.sha256(json.dumps(asdict(self)).encode())
        for file in (phantom.__file__, rhythms.__file__, scenes.__file__, clip.__file__, __file__):
            made_by.update(Path(file or "").read_bytes())
        return f"{self.suite}-{self.seed0}-{self.n}-{made_by.hexdigest()[:12]}"


BREATH_OVER_MOTION = 1.0
"""A chest's edge moves by about half of breath_frac; other motion above this share of breath_frac hides the breath."""


@dataclass(frozen=True)
class Example:
    """One clip's truth on the grid: waves (n,), rates per minute (n,), and whether each rhythm can be seen.

    Presence is 1 (seen), 0 (not there or not to be seen) or -1 (in between: neither taught nor judged).
    """

    pulse: NDArray[np.float32]
    resp: NDArray[np.float32]
    hr: NDArray[np.float32]
    rr: NDArray[np.float32]
    valid: NDArray[np.bool_]
    pulse_presence: int
    resp_presence: int


def pulse_r2(light: NDArray[np.float32], pulse: NDArray[np.float64], fs_hz: float, hr_hz: float) -> float:
    """Share of the pulse that the best fixed mix of the skin's mean colours explains around the heart rate.

    light: (n, 3). Both are cut to hr +-0.4 Hz first, so the answer is about the pulse and not about drift.
    """
    freqs = np.fft.rfftfreq(pulse.size, 1 / fs_hz)
    keep = np.abs(freqs - hr_hz) <= 0.4
    columns = np.fft.rfft(light - light.mean(axis=0), axis=0)[keep]
    target = np.fft.rfft(pulse)[keep]
    stacked = np.concatenate([columns.real, columns.imag])
    goal = np.concatenate([target.real, target.imag])
    mix, *_ = np.linalg.lstsq(stacked, goal, rcond=None)
    return 1.0 - float(((goal - stacked @ mix) ** 2).sum() / max(float((goal**2).sum()), 1e-12))


def make_example(scene: Scene, spec: CacheSpec) -> tuple[NDArray[np.int8], Example]:
    """Render one scene: int8 (n_samples, CHANNELS, S, S) and its truth. A short clip is padded with invalid samples."""
    body = Phantom(scene)
    seen_clip = normalise_clip(iter(body), None, spec.fs_hz, spec.size, limit=spec.n_samples)
    n = seen_clip.frames.shape[0]
    pad = spec.n_samples - n
    t_s = seen_clip.t_end_ns / 1e9 + (np.arange(n) - n + 1) / spec.fs_hz
    zero = np.zeros(n)
    pulse = body.pulse.at(t_s) if body.pulse else zero
    resp = body.breath.at(t_s) if body.breath else zero
    hr = body.pulse.rate_at(t_s) if body.pulse else zero
    rr = body.breath.rate_at(t_s) if body.breath else zero
    seen = 0
    if body.pulse is not None:
        region = Region(0, 0, scene.width, scene.height)
        weights = area_means(np.repeat(body.pulse_map()[..., None] * 50, 3, 2).clip(0, 255).astype(np.uint8),
                             region, spec.size)[..., 0]
        light = np.einsum("nchw,hw->nc", seen_clip.frames[:, :3], weights / max(float(weights.sum()), 1e-6))
        r2 = pulse_r2(light, pulse, spec.fs_hz, float(hr.mean()) / 60)
        seen = 1 if r2 > PULSE_SEEN_R2 else 0 if r2 < PULSE_LOST_R2 else -1
    frames = np.zeros((spec.n_samples, CHANNELS, spec.size, spec.size), np.int8)
    frames[:n] = np.rint(seen_clip.frames / INT8_STEP).astype(np.int8)

    def padded(x: NDArray) -> NDArray[np.float32]:
        return np.pad(x, (0, pad)).astype(np.float32)

    return frames, Example(padded(pulse), padded(resp), padded(hr), padded(rr), np.pad(seen_clip.valid, (0, pad)), seen,
                           _breath_presence(scene, body))


def _breath_presence(scene: Scene, body: Phantom) -> int:
    """As for the pulse. A head that nods a little, a breath smaller than the posture's own motion, and a thing that
    rocks slowly are neither breathing for sure nor surely not."""
    slow_rock = 0 < scene.sway_hz <= 2.2
    if body.breath is None:
        return -1 if slow_rock else 0
    other = max(scene.motion_frac, scene.shake_frac, scene.sway_frac if scene.sway_hz else 0.0)
    hidden = other > BREATH_OVER_MOTION * scene.breath_frac
    return 1 if body.shows_chest and not hidden else -1


def _work(job: tuple[int, CacheSpec, str]) -> tuple[int, Example]:
    index, spec, path = job
    cv2.setNumThreads(1)
    frames, example = make_example(SUITES[spec.suite](spec.seed0 + index), spec)
    store = np.lib.format.open_memmap(path, mode="r+")
    store[index] = frames
    return index, example


def build(spec: CacheSpec, folder: Path, workers: int = 2) -> Path:
    """Render the cache unless it is there already; returns its folder. Progress goes to stderr."""
    done = folder / spec.key()
    if (done / "spec.json").exists():
        return done
    done.mkdir(parents=True, exist_ok=True)
    path = done / "frames.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.int8,
                              shape=(spec.n, spec.n_samples, CHANNELS, spec.size, spec.size)).flush()
    examples: list[Example | None] = [None] * spec.n
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        jobs = [(i, spec, str(path)) for i in range(spec.n)]
        for count, (index, example) in enumerate(pool.imap_unordered(_work, jobs, chunksize=4), 1):
            examples[index] = example
            if count % 20 == 0 or count == spec.n:
                per_clip = (time.monotonic() - start) / count
                print(f"\rrendered {count}/{spec.n} clips, {per_clip:.2f} s each", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    made = [e for e in examples if e is not None]
    columns = {name: np.stack([getattr(e, name) for e in made]) for name in asdict(made[0])}
    np.savez(done / "truth.npz", **columns)
    (done / "spec.json").write_text(json.dumps(asdict(spec)))
    return done
