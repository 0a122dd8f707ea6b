"""Training clips, rendered once and kept normalised outside git.

Each clip is what the stem sees (edge.clip, the runtime's own preprocessing) as int8: the deployed stem is INT8 too, and
one step is a third of the sensor noise of a typical clip. Truth stands on the same grid. A cache that was not finished is
gone on with, clip by clip.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import calibration
from calibration.domains import domain_test_scene, mixed_scene, recompressed_scene
from calibration.recordings import Recordings
from calibration.scene import Scene
from calibration.scenes import restraint_scene
from distillation import example
from distillation.example import Example, make_example
from edge import clip
from edge.clip import CHANNELS

MADE_BY = ("body", "domains", "phantom", "recordings", "rhythms", "scene", "scenes")
"""Modules of calibration/ that decide what a rendered clip looks like."""


def recordings_hash(folder: str) -> str:
    """SHA-256 over names and content of a folder's recordings: what was used, wherever it lies."""
    found = hashlib.sha256()
    for file in sorted(Path(folder).glob("*/truth.json")):
        found.update(file.parent.name.encode() + file.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True)
class CacheSpec:
    """What a cache holds: n clips of n_samples grid points from seed0 on.

    suite: `mixed` (training), `restraint`, `recompressed`, or `test:NAME`, the test scenes of a domain or an incubator scene.
    held_out: domains that a mixed suite leaves out. recordings: folder of recorded beat and breath times, or "".
    """

    suite: str
    n: int
    seed0: int
    n_samples: int
    fs_hz: float
    size: int
    held_out: tuple[str, ...] = ()
    recordings: str = ""

    def key(self) -> str:
        """Folder name: changes with the request, with the recordings, and with the code that renders and normalises."""
        request = asdict(self) | {"recordings": ""}
        made_by = hashlib.sha256(json.dumps(request).encode())
        rendering = [Path(calibration.__path__[0]) / f"{name}.py" for name in MADE_BY]
        for file in (*rendering, Path(clip.__file__), Path(example.__file__)):
            made_by.update(file.read_bytes())
        if self.recordings:
            made_by.update(recordings_hash(self.recordings).encode())
        return f"{self.suite.replace(':', '-')}-{self.seed0}-{self.n}-{made_by.hexdigest()[:12]}"

    def scene(self, index: int) -> Scene:
        seed, duration_s = self.seed0 + index, self.n_samples / self.fs_hz + 0.8
        if self.suite == "mixed":
            recordings = Recordings(Path(self.recordings), "train") if self.recordings else None
            return mixed_scene(seed, holdout=frozenset(self.held_out), recordings=recordings)
        if self.suite == "restraint":
            return restraint_scene(seed)
        if self.suite == "recompressed":
            return recompressed_scene(seed)
        what, _, name = self.suite.partition(":")
        if what != "test":
            raise ValueError(f"suite {self.suite!r} unknown; choose mixed, restraint, recompressed or test:NAME")
        recordings = Recordings(Path(self.recordings), "test") if self.recordings else None
        return domain_test_scene(name, index, width=192, height=144, duration_s=duration_s, recordings=recordings)


def _work(job: tuple[int, CacheSpec, str]) -> tuple[int, Example]:
    index, spec, path = job
    cv2.setNumThreads(1)
    frames, made = make_example(spec.scene(index), spec.n_samples, spec.fs_hz, spec.size,
                                Path(spec.recordings) if spec.recordings else None)
    store = np.lib.format.open_memmap(path, mode="r+")
    store[index] = frames
    return index, made


def build(spec: CacheSpec, folder: Path, workers: int = 2) -> Path:
    """Render the cache, or what is missing of it; returns its folder. Progress goes to stderr."""
    done = folder / spec.key()
    if (done / "spec.json").exists():
        return done
    parts = done / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    path, shape = done / "frames.npy", (spec.n, spec.n_samples, spec.size, spec.size, CHANNELS)
    if not _usable(path, shape):
        for part in parts.iterdir():
            part.unlink()
        np.lib.format.open_memmap(path, mode="w+", dtype=np.int8, shape=shape).flush()
    missing = [i for i in range(spec.n) if not (parts / f"{i}.npz").exists()]
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        jobs = [(i, spec, str(path)) for i in missing]
        for count, (index, made) in enumerate(pool.imap_unordered(_work, jobs, chunksize=4), 1):
            write_columns(parts / f"{index}.npz", asdict(made))
            if count % 20 == 0 or count == len(missing):
                per_clip = (time.monotonic() - start) / count
                print(f"\r{spec.suite}: rendered {count}/{len(missing)} clips, {per_clip:.2f} s each", end="",
                      file=sys.stderr, flush=True)
    print(file=sys.stderr)
    every = [np.load(parts / f"{i}.npz") for i in range(spec.n)]
    write_columns(done / "truth.npz", {f.name: np.stack([part[f.name] for part in every]) for f in fields(Example)})
    (done / "spec.json").write_text(json.dumps(asdict(spec)))
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()
    return done


def _usable(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a cache that was begun can be gone on with."""
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError):
        return False


def write_columns(path: Path, columns: dict[str, Any]) -> None:
    """Arrays by name as one npz, whole or not at all."""
    partial = path.with_name(f"partial-{path.name}")
    np.savez(partial, **columns)
    partial.replace(path)


def open_frames(folder: Path) -> NDArray[np.int8]:
    """A cache's frames as int8 (n, n_samples, CHANNELS, S, S), on disk until they are used.

    They lie there with the channels last, as the stem trains fastest on a CPU; this is a view.
    """
    return np.load(folder / "frames.npy", mmap_mode="r").transpose(0, 1, 4, 2, 3)


class Cache:
    """Rendered caches, opened as one: frames stay on disk until a batch needs them."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        stores = [open_frames(folder) for folder in folders]
        truths = [np.load(folder / "truth.npz") for folder in folders]
        self.truth = {name: np.concatenate([t[name] for t in truths]) for name in truths[0].files}
        self._rows = [(store, i) for store in stores for i in range(store.shape[0])]
        self.n_samples = int(stores[0].shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def frames(self, index: int, cut: slice) -> NDArray[np.int8]:
        """int8 (n, CHANNELS, S, S), channels last in memory."""
        store, row = self._rows[index]
        return np.copy(store[row, cut], order="K")
