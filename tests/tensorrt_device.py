"""A device as the tests of the TensorRT path see it: stand-ins for its TensorRT and CUDA, a student, a cache folder."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engines import sidecar
from engines.onnxruntime_backend import OnnxRuntimeEngine
from engines.parity import Tolerance, save_fixture
from engines.sidecar import DEFAULT_WEIGHTS, ModelSpec, load
from engines.tensorrt_backend import TensorRtEngine
from engines.tensorrt_cache import open_engine
from tests import fake_tensorrt, onnx_bytes

_read_once = functools.lru_cache(maxsize=16)(onnx_bytes.read)
"""The stand-in reads the same few files again and again."""

PRECISIONS = ("fp32", "fp16", "int8", "int8_opset17")
TOLERANCE = Tolerance(features=0.02, correlation=0.999, presence=0.01)


def make_bundle(folder: Path) -> Path:
    """The shipped FP32 student under the names of every precision, each with bytes of its own, and a parity fixture.
    Returns the sidecar."""
    spec, record = load(DEFAULT_WEIGHTS)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {}
    for precision in PRECISIONS:
        files[precision] = {}
        for part in ("stem", "head"):
            path = folder / f"{part}_{precision}.onnx"
            note = precision.encode()  # ModelProto.doc_string, field 6
            path.write_bytes(spec.path(part, "fp32").read_bytes() + b"\x32" + bytes([len(note)]) + note)
            files[precision][part] = {"file": path.name, "sha256": sidecar.sha256(path)}
    rng = np.random.default_rng(5)
    frames = rng.standard_normal((4, spec.channels, spec.size, spec.size), np.float32)
    windows = rng.standard_normal((2, spec.window, spec.cells, spec.features), np.float32)
    masks = np.ones((2, spec.window), bool)
    masks[1, :300] = False
    parity = folder / "parity.npz"
    save_fixture(parity, OnnxRuntimeEngine(spec), frames, 0.03, windows, masks)
    tolerances = {precision: asdict(TOLERANCE) for precision in PRECISIONS}
    sidecar.write(folder / "student.json", {
        "format": sidecar.FORMAT, "model": record["model"], "files": files,
        "parity": {"file": parity.name, "sha256": sidecar.sha256(parity), "tolerances": tolerances}})
    return folder / "student.json"


class Device:
    """machine: see tests/fake_pycuda.py; trt: see tests/fake_tensorrt.py."""

    def __init__(self, machine: Any, monkeypatch: Any, weights: Path, folder: Path) -> None:
        self.machine, self.weights, self.folder = machine, weights, folder
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(onnx_bytes, "read", _read_once)
        self.trt = self.use("10.13.3")

    def use(self, release: str, full_version: str | None = None) -> ModuleType:
        """Another TensorRT is installed from now on."""
        self.trt = fake_tensorrt.make(release, full_version)
        self.trt.before_cuda, self.trt.enqueue = self.machine.require_context, self.machine.enqueue
        self._monkeypatch.setitem(sys.modules, "tensorrt", self.trt)
        return self.trt

    @property
    def spec(self) -> ModelSpec:
        return load(self.weights)[0]

    def open(self, precision: str = "int8", **options: Any) -> TensorRtEngine:
        return open_engine(self.spec, precision, self.folder, **{"make": True, **options})

    def prepared(self, *precisions: str) -> None:
        for precision in precisions or ("int8",):
            self.open(precision).close()

    def plan(self, part: str = "stem", precision: str = "int8") -> Path:
        return self.folder / f"{self.spec.name}_{precision}_{part}.plan"

    def typings(self) -> list[bool]:
        return [build["strongly_typed"] for build in self.trt.builds]

    def nothing_left(self) -> bool:
        """No CUDA object, no TensorRT object but the logger."""
        return not any(self.machine.live().values()) and not any(
            n for name, n in self.trt.live.items() if name not in ("Logger", "IProgressMonitor"))

    def change_weights(self) -> None:
        """Another release of the student under the same name."""
        record = json.loads(self.weights.read_text())
        for parts in record["files"].values():
            path = self.weights.parent / parts["stem"]["file"]
            path.write_bytes(path.read_bytes() + b"\x32\x03new")
            parts["stem"]["sha256"] = sidecar.sha256(path)
        sidecar.write(self.weights, record)


def own_copy(weights: Path, folder: Path) -> Path:
    return Path(shutil.copytree(weights.parent, folder)) / weights.name
