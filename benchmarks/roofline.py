"""Stem and head against the card's limits: `python benchmarks/roofline.py [--provider cpu|cuda|torch|tensorrt] [--json]`.

For whatever can run the student here it prints p50 and p95 of one call (stem: 30 frames, one second of video; head: one
window), operations and bytes over that time, and their share of what the card can do. Copies between CPU and GPU are in the
times, as they are in use. Operations are those of convolutions and matrix products, two per multiplication. Bytes are the
least that must move: inputs, outputs and weights (the ONNX file's size) once. The limit is the longer of bytes over bandwidth
and operations over peak; a network as small as this one stays far from it, because starting its kernels takes longer.

Run it on an idle machine. Nothing here has been run on a GPU yet; without one it measures ONNX Runtime on one CPU thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.cuda import Cuda, CudaError, DeviceFacts
from engines.errors import EngineError
from engines.sidecar import DEFAULT_WEIGHTS, ModelSpec, load

FRAMES = 30
COPY_MB = 64

# --- what the student costs: engines/student.py's sizes that the sidecar does not carry (a test holds them to the graph)

STEM = ((16, 4, 4), (24, 3, 4), (None, 3, 8))
"""Convolutions: outputs (None: what is left of the features), side of the kernel, frame pixels per output pixel."""

TOP_HZ, SERIES, HIDDEN, LEVELS, TASKS = 6.6, 4, 32, 7, 2
DRIFT_SAMPLES = (41, 181)
POWER_STEPS = 3


def conv(outputs: int, inputs: int, taps: int, places: int) -> int:
    """Operations: inputs are those that one output sees, taps the kernel's area, places the output's."""
    return 2 * outputs * inputs * taps * places


def matmul(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def stem_operations(spec: ModelSpec, frames: int) -> int:
    total, inputs = 0, spec.channels
    for outputs, side, stride in STEM:
        made = outputs or spec.features - spec.channels
        total += conv(made, inputs, side * side, (spec.size // stride) ** 2)
        inputs = made
    return frames * total


def head_operations(spec: ModelSpec) -> int:
    """One window, in the order of engines/student.py. What both tasks' choices of band have in common is computed once."""
    time_, cells = spec.window, spec.cells
    bins = int(TOP_HZ / (spec.fs_hz / time_))
    total = matmul(time_ * cells, spec.features, TASKS * SERIES) + matmul(cells * TASKS * SERIES, time_, 2 * bins)
    inputs = 2 + 2 * SERIES
    for task in range(TASKS):
        total += 2 * matmul(1, bins, bins) + conv(16, 6, 11, bins) + conv(16, 16, 7, bins) + conv(1, 16, 1, bins)  # choice
        total += 2 * matmul(1, bins, bins) + (2 * POWER_STEPS + 1) * matmul(cells * SERIES, 2 * bins, 1)  # attention
        total += (conv(inputs, 1, DRIFT_SAMPLES[task], time_) + conv(1, 1, DRIFT_SAMPLES[task], time_)
                  + LEVELS * conv(inputs, 1, 5, time_) + 2 * matmul(1, inputs * (LEVELS + 1), 48))  # drift, wavelet
        total += conv(HIDDEN, inputs, 7, time_) + 3 * conv(HIDDEN, HIDDEN, 7, time_) + conv(1, HIDDEN, 1, time_)
        total += matmul(1, time_, 2 * bins) + matmul(1, HIDDEN + 7, 32) + matmul(1, 32, 1)  # spectrum, presence
    return total + 2 * matmul(1, bins, bins) + 2 * matmul(1, time_, 2 * bins)  # the pulse's leak gate


@dataclass(frozen=True)
class Work:
    """One call: operations, and the least bytes to move."""

    operations: int
    n_bytes: int


def work(spec: ModelSpec, precision: str) -> dict[str, Work]:
    """By part. Inputs and outputs are float32 in every precision."""
    features, pixels = spec.cells * spec.features, spec.channels * spec.size**2
    moved = {"stem": FRAMES * (pixels + features), "head": spec.window * (features + 1 + TASKS) + TASKS * (1 + spec.cells)}
    operations = {"stem": stem_operations(spec, FRAMES), "head": head_operations(spec)}
    return {part: Work(operations[part], 4 * moved[part] + spec.path(part, precision).stat().st_size) for part in moved}


# --- what the card could do


@dataclass(frozen=True)
class Card:
    """Peaks as NVIDIA's data sheets give them, dense: GB/s, TFLOP/s outside and inside the tensor cores, TOP/s. None: not
    known. At full clocks (nvpmodel, jetson_clocks)."""

    name: str
    gb_per_s: float
    fp32: float
    fp16: float | None
    int8: float | None


CARDS = (
    (("H200",), None, Card("H200 SXM", 4800, 67, 989, 1979)),
    (("H100", "HBM3"), None, Card("H100 SXM", 3350, 67, 989, 1979)),
    (("H100", "PCIe"), None, Card("H100 PCIe", 2000, 51, 756, 1513)),
    (("A100", "80GB"), None, Card("A100 80GB SXM", 2039, 19.5, 312, 624)),
    (("L4",), 58, Card("L4", 300, 30.3, 121, 242)),
    (("Thor",), 20, Card("Jetson Thor T5000", 273, 8.06, 258, None)),
    (("Orin",), 16, Card("Jetson AGX Orin 64GB", 204.8, 5.3, 42.5, 85)),
    (("Orin",), 14, Card("Jetson AGX Orin 32GB", 204.8, 3.3, 27, 54)),
    (("Orin",), 8, Card("Jetson Orin NX 16GB", 102.4, 1.88, 15, 30)),
)
"""Words in the device's name, SMs (None: any), card. An Orin tells only its SMs; see `find_card`."""


def find_card(facts: DeviceFacts) -> Card | None:
    """None: unknown, and so no share. Orin NX 8GB and Nano cannot be told apart by name, SMs and memory."""
    if "Orin" in facts.name and facts.sm_count == 8 and facts.memory_bytes < 12 << 30:
        return None
    return next((card for words, sms, card in CARDS
                 if all(word in facts.name for word in words) and sms in (None, facts.sm_count)), None)


# --- measuring


@dataclass(frozen=True)
class Row:
    """One part on one runner. limit_us and shares: None without a card that is known."""

    runner: str
    precision: str
    part: str
    p50_us: float
    p95_us: float
    gflop_per_s: float
    gb_per_s: float
    limit_us: float | None
    share_of_compute: float | None
    share_of_bandwidth: float | None


Call = Callable[[], object]


def times_us(call: Call, repeats: int) -> list[float]:
    for _ in range(max(3, repeats // 10)):
        call()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter_ns()
        call()
        taken.append((time.perf_counter_ns() - begun) / 1e3)
    return taken


def row(runner: str, precision: str, part: str, taken_us: list[float], done: Work, card: Card | None) -> Row:
    p50, p95 = (float(np.percentile(taken_us, p)) for p in (50, 95))
    compute = bandwidth = limit = None
    if card is not None:
        peak = {"fp32": card.fp32, "fp16": card.fp16}.get(precision, card.int8 if part == "stem" else card.fp16)
        bandwidth = done.n_bytes / p50 / 1e3 / card.gb_per_s
        if peak is not None:
            compute = done.operations / p50 / 1e6 / peak
            limit = max(done.n_bytes / card.gb_per_s / 1e3, done.operations / peak / 1e6)
    return Row(runner, precision, part, p50, p95, done.operations / p50 / 1e3, done.n_bytes / p50 / 1e3, limit, compute,
               bandwidth)


def inputs(spec: ModelSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((FRAMES, spec.channels, spec.size, spec.size), np.float32),
            rng.standard_normal((spec.window, spec.cells, spec.features), np.float32), np.ones(spec.window, np.float32))


class Absent(Exception):
    """This runner is not on this machine; the text says what is missing."""


def onnxruntime_calls(spec: ModelSpec, precision: str, provider: str) -> dict[str, Call]:
    try:
        import onnxruntime
    except ImportError as e:
        raise Absent(f"onnxruntime: {e}") from e
    if provider not in onnxruntime.get_available_providers():
        raise Absent(f"onnxruntime {onnxruntime.__version__} has no {provider} (pip install onnxruntime-gpu)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    sessions = {part: onnxruntime.InferenceSession(str(spec.path(part, precision)), options, providers=[provider])
                for part in ("stem", "head")}
    if any(session.get_providers()[0] != provider for session in sessions.values()):
        raise Absent(f"onnxruntime took another provider than {provider}: are CUDA's and cuDNN's libraries there?")
    frames, features, mask = inputs(spec)
    feeds = {"stem": {"frames": frames}, "head": {"features": features[None], "mask": mask[None]}}
    return {part: lambda part=part: sessions[part].run(None, feeds[part]) for part in sessions}  # type: ignore[misc]


def torch_calls(spec: ModelSpec, precision: str) -> dict[str, Call]:
    """The network as PyTorch runs it, with weights of chance: it is the time that counts."""
    try:
        import torch

        from engines.student import Student
    except ImportError as e:
        raise Absent(f"torch: {e}") from e
    if not torch.cuda.is_available():
        raise Absent("torch sees no CUDA device")
    if precision != "fp32":
        raise Absent("torch runs the student in fp32 alone")
    student = Student().cuda().eval()
    frames, features, mask = (torch.from_numpy(each) for each in inputs(spec))

    def stem() -> object:
        with torch.inference_mode():
            return student.stem(frames.cuda()).cpu()

    def head() -> object:
        with torch.inference_mode():
            return [each.cpu() for each in student.head(features[None].cuda(), mask[None].cuda())]

    return {"stem": stem, "head": head}


def tensorrt_calls(spec: ModelSpec, precision: str, cache: Path) -> dict[str, Call]:
    from engines.tensorrt_backend import open_engine

    try:
        engine = open_engine(spec, precision, cache, make=True)
    except EngineError as e:
        raise Absent(f"tensorrt: {e}") from e
    frames, features, mask = inputs(spec)
    return {"stem": lambda: engine.stem(frames), "head": lambda: engine.head(features, mask)}


def device_facts() -> DeviceFacts | None:
    """What pycuda or torch says of device 0; None without a GPU or without either."""
    try:
        with closing(Cuda()) as cuda:
            return cuda.facts
    except CudaError:
        pass
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    seen = torch.cuda.get_device_properties(0)
    return DeviceFacts(seen.name, (seen.major, seen.minor), seen.multi_processor_count, seen.total_memory, 0,
                       bool(seen.is_integrated))


def copy_gb_per_s(repeats: int) -> dict[str, float] | None:
    """Between page-locked memory and the GPU, by pycuda; None where there is nothing to copy or nothing to do it."""
    try:
        with closing(Cuda()) as cuda, cuda.current():
            if cuda.facts.integrated:
                return None
            stream, buffer = cuda.stream(), cuda.buffer((COPY_MB << 20,), np.uint8)

            def rate(copy: Callable[[Any], None]) -> float:
                def call() -> None:
                    copy(stream)
                    stream.synchronize()
                return buffer.host.nbytes / float(np.median(times_us(call, repeats))) / 1e3

            return {"to_gpu": rate(buffer.upload), "from_gpu": rate(buffer.download)}
    except CudaError:
        return None


RUNNERS = ("cpu", "cuda", "torch", "tensorrt")


def calls(runner: str, spec: ModelSpec, precision: str, cache: Path) -> dict[str, Call]:
    if runner == "torch":
        return torch_calls(spec, precision)
    if runner == "tensorrt":
        return tensorrt_calls(spec, precision, cache)
    return onnxruntime_calls(spec, precision, {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[runner])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=("auto", *RUNNERS), default="auto", help="auto: every one that is there")
    parser.add_argument("--precision", help="of the weights; default: each that the bundle has but int8_opset17")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--cache", type=Path, default=Path("out/plans"), help="TensorRT's plans, built there when missing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    spec, _ = load(args.weights)
    facts = None if args.provider == "cpu" else device_facts()
    card = find_card(facts) if facts else None
    if facts is None:
        print("no GPU was found (or was not asked for): no shares of a card's limits", file=sys.stderr)
    elif card is None:
        print(f"{facts.name} with {facts.sm_count} SMs is not in the table of cards: no shares of its limits", file=sys.stderr)
    rows = []
    for runner in RUNNERS if args.provider == "auto" else (args.provider,):
        for precision in [args.precision] if args.precision else sorted(set(spec.files) - {"int8_opset17"}):
            try:
                made = calls(runner, spec, precision, args.cache)
            except Absent as e:
                print(f"{runner} {precision}: not measured: {e}", file=sys.stderr)
                continue
            done = work(spec, precision)
            rows += [row(runner, precision, part, times_us(call, args.repeats), done[part], None if runner == "cpu" else card)
                     for part, call in made.items()]
    copies = copy_gb_per_s(20) if facts else None
    if args.json:
        print(json.dumps({"device": asdict(facts) if facts else None, "card": asdict(card) if card else None,
                          "copies_gb_per_s": copies, "rows": [asdict(each) for each in rows]}, indent=1))
    else:
        print_table(rows, copies)
    return 0 if rows else 2


def print_table(rows: list[Row], copies: dict[str, float] | None) -> None:
    print(f"{'runner':<9} {'precision':<9} {'part':<5} {'p50 us':>9} {'p95 us':>9} {'GFLOP/s':>9} {'GB/s':>8} {'limit us':>9} "
          f"{'compute':>8} {'memory':>8}")
    for each in rows:
        limit = f"{each.limit_us:9.2f}" if each.limit_us is not None else f"{'-':>9}"
        shares = [f"{100 * share:7.2f}%" if share is not None else f"{'-':>8}"
                  for share in (each.share_of_compute, each.share_of_bandwidth)]
        print(f"{each.runner:<9} {each.precision:<9} {each.part:<5} {each.p50_us:9.1f} {each.p95_us:9.1f} "
              f"{each.gflop_per_s:9.2f} {each.gb_per_s:8.2f} {limit} {shares[0]} {shares[1]}")
    if copies:
        print(f"copies of {COPY_MB} MB: {copies['to_gpu']:.1f} GB/s to the GPU, {copies['from_gpu']:.1f} GB/s from it")


if __name__ == "__main__":
    sys.exit(main())
