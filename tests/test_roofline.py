"""benchmarks/roofline.py: what it counts is what the graph does, and a card that it does not know has no share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks import roofline
from engines.cuda import DeviceFacts
from engines.sidecar import load


def counted_in_the_graph(path, feeds, folder):
    """Operations of every convolution and matrix product, from the shapes that ONNX Runtime saw."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, feeds)
    total = 0
    for event in json.loads(Path(session.end_profiling()).read_text()):
        seen = event.get("args", {})
        if seen.get("op_name") not in ("Conv", "MatMul", "Gemm"):
            continue
        inputs, (output,) = ([next(iter(each.values())) for each in seen[f"{end}_type_shape"]] for end in ("input", "output"))
        inner = np.prod(inputs[1][1:]) if seen["op_name"] == "Conv" else inputs[0][-1]
        total += 2 * int(np.prod(output) * inner)
    return total


@pytest.mark.parametrize("part", ["stem", "head"])
def test_the_operations_counted_are_those_of_the_graph(part, tmp_path):
    spec, _ = load()
    frames, features, mask = roofline.inputs(spec)
    feeds = {"frames": frames} if part == "stem" else {"features": features[None], "mask": mask[None]}
    counted = roofline.work(spec, "fp32")[part].operations
    assert counted == counted_in_the_graph(spec.path(part, "fp32"), feeds, tmp_path)


def test_the_bytes_are_at_least_the_weights_and_both_ends():
    spec, _ = load()
    moved = roofline.work(spec, "fp32")["stem"].n_bytes
    assert moved - spec.path("stem", "fp32").stat().st_size == 4 * 30 * (5 * 48 * 48 + 36 * 24)


@pytest.mark.parametrize(("name", "sms", "gib", "card"), [
    ("NVIDIA H100 80GB HBM3", 132, 79, "H100 SXM"), ("NVIDIA H100 PCIe", 114, 79, "H100 PCIe"),
    ("NVIDIA H200", 132, 139, "H200 SXM"),
    ("Orin", 16, 61, "Jetson AGX Orin 64GB"), ("Orin", 8, 15, "Jetson Orin NX 16GB"), ("Orin", 8, 7, None),
    ("NVIDIA Thor", 20, 122, "Jetson Thor T5000"), ("NVIDIA L40S", 142, 44, None), ("Orin (stand-in)", 8, 7, None)])
def test_a_card_is_known_by_name_and_size_or_not_at_all(name, sms, gib, card):
    found = roofline.find_card(DeviceFacts(name, (8, 7), sms, gib << 30, 12_060, True))
    assert (found.name if found else None) == card


def test_shares_and_limit_follow_from_time_work_and_card():
    card = roofline.Card("x", gb_per_s=100, fp32=1, fp16=2, int8=4)
    done = roofline.Work(operations=10_000_000, n_bytes=500_000)
    row = roofline.row("cuda", "fp32", "stem", [20.0] * 10, done, card)
    assert (row.gflop_per_s, row.gb_per_s) == (500, 25)
    assert (row.share_of_compute, row.share_of_bandwidth, row.limit_us) == pytest.approx((0.5, 0.25, 10))
    assert roofline.row("cuda", "int8", "stem", [20.0], done, card).limit_us == pytest.approx(5)  # memory, not compute
    assert roofline.row("cuda", "fp32", "stem", [20.0], done, None).share_of_bandwidth is None


def test_on_a_machine_without_a_gpu_it_measures_the_cpu_and_says_so(capsys):
    assert roofline.main(["--provider", "cpu", "--precision", "fp32", "--repeats", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [row["part"] for row in found["rows"]] == ["stem", "head"]
    assert all(row["gflop_per_s"] > 0 and row["p95_us"] >= row["p50_us"] and row["share_of_compute"] is None
               for row in found["rows"])
    assert "no GPU was found" in err


def test_what_was_asked_for_and_is_not_there_is_an_error(capsys, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert roofline.main(["--provider", "cuda", "--precision", "fp32", "--repeats", "3"]) == 2
    assert "has no CUDAExecutionProvider" in capsys.readouterr().err
