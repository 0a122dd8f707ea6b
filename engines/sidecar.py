"""The sidecar: everything about the shipped student that its ONNX files cannot say. Read and verified before anything runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.files import write_whole
from engines.parity import Tolerance

FORMAT = 1

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "student.json"


class SidecarError(ValueError):
    """The weights folder does not hold what its sidecar says; the message names the file and how to mend it."""


@dataclass(frozen=True)
class ModelSpec:
    """Shapes and meaning of the student's arrays.

    stem: float32 (n, channels, size, size) -> (n, cells, features), of which the first
    `channels` are plain cell means. head: features (1, window, cells, features) and mask
    (1, window) -> waves (1, 2, window), presence logits (1, 2), attention (1, 2, cells); index 0 pulse, 1 breathing.
    normalisation: the constants that the preprocessing had in training; the runtime compares them with its own.
    parity: file of inputs and FP32 answers (engines/parity.py), None where the bundle has none. tolerances: by precision,
    what an engine may differ from them.
    """

    name: str
    fs_hz: float
    window: int
    size: int
    channels: int
    cells: int
    features: int
    normalisation: dict[str, float]
    files: dict[str, dict[str, str]]
    folder: Path
    parity: Path | None = None
    tolerances: dict[str, Tolerance] = field(default_factory=dict)

    def path(self, part: str, precision: str) -> Path:
        """The ONNX file of 'stem' or 'head' in a precision that the sidecar lists."""
        if precision not in self.files:
            raise SidecarError(f"{self.folder}: no {precision} weights; this bundle has {', '.join(sorted(self.files))}")
        return self.folder / self.files[precision][part]


_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str, "fs_hz": (int, float), "window": int, "size": int, "channels": int, "cells": int, "features": int,
    "normalisation": dict}
"""What JSON must hold for a ModelSpec."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(path: Path = DEFAULT_WEIGHTS) -> tuple[ModelSpec, dict[str, Any]]:
    """Read a sidecar and check every file it lists: (spec, the whole record).

    Raises SidecarError for a missing, unreadable, incomplete or altered bundle.
    """
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise SidecarError(f"no sidecar at {path}; expected a weights folder with student.json and its ONNX files "
                           "(reinstall, or make one with physvlm-lab export)") from e
    except (OSError, ValueError) as e:  # ValueError: no JSON, or not even text
        raise SidecarError(f"{path} cannot be read as JSON: {e}; restore it from the release or export again") from e
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise SidecarError(f"{path}: expected format {FORMAT}, got {found}; export the weights again with this version")
    try:
        parity = record.get("parity")
        spec = ModelSpec(**record["model"], folder=path.parent,
                         files={p: {k: v["file"] for k, v in parts.items()} for p, parts in record["files"].items()},
                         parity=path.parent / parity["file"] if parity else None,
                         tolerances={p: Tolerance(**each) for p, each in parity["tolerances"].items()} if parity else {})
        hashes = [(path.parent / v["file"], v["sha256"]) for parts in record["files"].values() for v in parts.values()]
        hashes += [(path.parent / parity["file"], parity["sha256"])] if parity else []
        wrong = [name for name, kind in _KINDS.items() if not isinstance(getattr(spec, name), kind)]
        wrong += [f"files.{p}" for p, parts in spec.files.items() if set(parts) != {"stem", "head"}]
    except (KeyError, TypeError, AttributeError) as e:
        raise SidecarError(f"{path}: field missing or unknown: {e}; export the weights again with this version") from e
    if wrong:
        raise SidecarError(f"{path}: not what a student has: {', '.join(wrong)}; export the weights again with this version")
    for file, expected in hashes:
        if not file.is_file():
            raise SidecarError(f"{file} is missing though {path.name} lists it; restore it from the release")
        if (found := sha256(file)) != expected:
            raise SidecarError(f"{file} was altered: expected SHA-256 {expected[:12]}, got {found[:12]}; "
                               "restore it from the release")
    return spec, record


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a sidecar whole or not at all."""
    write_whole(path, json.dumps(record, indent=1).encode() + b"\n")
