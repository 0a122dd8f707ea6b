"""Checkpoint -> ONNX and sidecar (torch). The exported graph is checked against torch before anything is written."""

from __future__ import annotations

import json
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines import sidecar
from engines.student import Student, StudentConfig

OPSET = 17
"""The newest that TensorRT 8.x takes; 10.3 and later take it too."""

AGREEMENT = 2e-3
"""Largest difference between torch and ONNX Runtime that counts as the same (waves have unit variance)."""


class ExportError(RuntimeError):
    """The exported graph does not agree with the checkpoint."""


def load_student(checkpoint: Path, config: dict[str, Any]) -> Student:
    """The trained student in evaluation mode. config: StudentConfig fields, as the training wrote them."""
    student = Student(StudentConfig(**config))
    student.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["student"])
    return student.eval()


def _write_onnx(module: torch.nn.Module, args: tuple[torch.Tensor, ...], path: Path, inputs: list[str],
                outputs: list[str], dynamic: dict[str, dict[int, str]] | None) -> None:
    with warnings.catch_warnings():
        # the tracing exporter writes the plainest graph and opset 17; torch announces its end, so export pins torch
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(module, args, str(path), input_names=inputs, output_names=outputs, opset_version=OPSET,
                          dynamic_axes=dynamic, do_constant_folding=True, dynamo=False)


def export(run: Path, out: Path, normalisation: dict[str, float], measured: dict[str, Any] | None) -> Path:
    """Write stem, head and sidecar of a training run into `out`; returns the sidecar.

    run: the folder that training filled (student.pt, config.json, log.jsonl, and teacher/ where it made one). measured: an
    evaluation of these very weights, or None before there is one.
    Raises ExportError when ONNX Runtime's answer differs from torch's by more than AGREEMENT. A run that began from another
    one's checkpoint is recorded with it.
    """
    settings = json.loads((run / "config.json").read_text())
    student = load_student(run / "student.pt", settings["student"])
    config = student.config
    out.mkdir(parents=True, exist_ok=True)
    files = {"stem": "student_stem_fp32.onnx", "head": "student_head_fp32.onnx"}
    frames = torch.randn(30, config.channels, config.size, config.size)
    features = student.stem(torch.randn(config.window, config.channels, config.size, config.size))[None].detach()
    mask = torch.ones(1, config.window)
    mask[:, :100] = 0
    features = features * mask[:, :, None, None]
    _write_onnx(student.stem, (frames,), out / files["stem"], ["frames"], ["features"],
                {"frames": {0: "n"}, "features": {0: "n"}})
    _write_onnx(student.head, (features, mask), out / files["head"], ["features", "mask"],
                ["waves", "presence", "attention"], None)
    worst = max(_difference(out / files["stem"], student.stem, {"frames": frames}),
                _difference(out / files["head"], student.head, {"features": features, "mask": mask}))
    if worst > AGREEMENT:
        raise ExportError(f"ONNX and torch differ by {worst:.2g}, more than {AGREEMENT}: not exported")
    hashes = {"fp32": {part: {"file": name, "sha256": sidecar.sha256(out / name)} for part, name in files.items()}}
    if measured is not None and (measured.get("weights", {}).get("fp32") != hashes["fp32"]
                                 or measured.get("precision", "fp32") != "fp32"):
        raise ExportError("the evaluation is not of these weights in FP32 (its hashes or precision differ): evaluate the "
                          "exported ones, then export again with its JSON")
    stages = _stages(run)
    (out / "training.jsonl").write_text("".join((stage / "log.jsonl").read_text() for stage in stages))
    record = {
        "format": sidecar.FORMAT,
        "model": {"name": "physvlm-v2", "fs_hz": config.fs_hz, "window": config.window, "size": config.size,
                  "channels": config.channels, "cells": config.grid**2, "features": config.features,
                  "normalisation": normalisation},
        "files": hashes,
        "parameters": sum(p.numel() for p in student.parameters()),
        "onnx": {"opset": OPSET, "torch": torch.__version__, "largest_difference_from_torch": float(f"{worst:.2g}")},
        "training": {"stages": [_stage(stage) for stage in stages], "student": settings["student"],
                     "python": platform.python_version(), "machine": platform.machine()},
        "measured": {} if measured is None else {"roi": measured.get("roi"), **measured["suites"]},
    }
    target = out / "student.json"
    sidecar.write(target, record)
    return target


def _stages(run: Path) -> list[Path]:
    """The run and those that it began from, earliest first. Raises ExportError where one of them is not there."""
    start = json.loads((run / "config.json").read_text())["train"].get("start")
    if not start:
        return [run]
    before = Path(start).parent
    if not (before / "config.json").exists() or not (before / "log.jsonl").exists():
        raise ExportError(f"{run} began from {start}, whose record is not there: expected config.json and log.jsonl in "
                          f"{before.absolute()}; export from the folder that the training was started in")
    return [*_stages(before), run]


def _stage(run: Path) -> dict[str, Any]:
    """What is kept of one stage: settings, the end of its log, and the teacher that it made, if it did."""
    teacher = run / "teacher" / "teacher.json"
    return {"config": json.loads((run / "config.json").read_text())["train"],
            "log_end": json.loads((run / "log.jsonl").read_text().splitlines()[-1]),
            "teacher": json.loads(teacher.read_text()) if teacher.exists() else None}


def _difference(path: Path, module: torch.nn.Module, feeds: dict[str, torch.Tensor]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {k: v.numpy() for k, v in feeds.items()})
    with torch.no_grad():
        expected = module(*feeds.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    return max(float(np.abs(g - e.numpy()).max()) for g, e in zip(got, expected, strict=True))
