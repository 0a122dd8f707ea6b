"""FP16 and INT8 artefacts of the student, with their scales taken from calibration clips (no GPU).

INT8 is explicit: Q/DQ pairs around the stem's convolutions, symmetric, per output channel for weights, bias in float. NVIDIA
ModelOpt makes the artefact for TensorRT 10 and later (opset 19, FP16 around the pairs); onnxruntime.quantization makes the
one for 8.x (opset 17, FP32 around them) and by the same token checks the first: two tools, one set of clips. The head runs
once a second, so nothing is gained by INT8 there: its convolutions are FP16, its Fourier sums, powers and normalisation FP32.

Every file is held against the operator and Q/DQ rules of the releases that it is claimed for, and against a parity fixture
that travels with it. What the precisions cost in readings is measured by calibration/agree.py.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from calibration import graphs, onnx_rules
from calibration.clips import Clips
from calibration.phantom import Phantom
from calibration.scenes import NEWBORN_SEED0, newborn_scene
from edge.clip import LIGHT_CLIP, normalise_clip
from engines import sidecar
from engines.files import write_whole
from engines.onnxruntime_backend import OnnxRuntimeEngine
from engines.parity import Agreement, Tolerance, load_fixture, measure, save_fixture
from engines.sidecar import DEFAULT_WEIGHTS, ModelSpec

F32 = NDArray[np.float32]

METHOD = "entropy"
"""Thresholds that keep the distribution: a rare flail would own the scale by its maximum. Measured on 48 unseen clips: the
waves' correlation with FP32 is 0.9990 at the 5th percentile, with maxima 0.9970."""

REFINED_BY, REFINED_OVER = (0.5, 0.63, 0.8, 1.26, 1.6), 64
"""Each activation's threshold is then tried at these multiples, and the one kept whose features are nearest FP32's, each clip
counted by its own size: the entropy of all values is owned by the clips that move most. The first so many clips are used; a
manifest's order is such that its beginning is as balanced as the whole."""

BUILT_IN_EVERY_RELEASE = ("8.6.1", "10.3.0", "10.7.0", "10.13.3", "10.16.1", "11.0.0", "11.4.0")
CLAIMS = {"fp32": BUILT_IN_EVERY_RELEASE, "fp16": BUILT_IN_EVERY_RELEASE[1:], "int8": BUILT_IN_EVERY_RELEASE[1:],
          "int8_opset17": BUILT_IN_EVERY_RELEASE}
"""TensorRT releases that each artefact is meant for and checked against."""

FILES = {"fp16": ("student_stem_fp16.onnx", "student_head_fp16.onnx"),
         "int8": ("student_stem_int8.onnx", "student_head_fp16.onnx"),
         "int8_opset17": ("student_stem_int8_opset17.onnx", "student_head_fp32.onnx")}
"""Stem and head of each precision; files are shared where the arithmetic is."""

PARITY_FILE, MANIFEST_FILE = "parity.npz", "calibration.json"
PARITY_FRAMES, PARITY_SEEDS = 16, (NEWBORN_SEED0 + 1, NEWBORN_SEED0 + 5)
"""Two newborns with a clear rhythm, both judged clips: never trained on, never calibrated on."""

HEADROOM = 2.0
FLOOR = {"fp32": Tolerance(1e-3, 0.9999, 2e-3), "fp16": Tolerance(0.03, 0.9995, 0.01), "int8": Tolerance(0.3, 0.995, 0.05),
         "int8_opset17": Tolerance(0.3, 0.995, 0.05)}
"""An engine on a GPU sums in another order than a CPU does: it may differ HEADROOM times as much as was measured here, and by
this in any case. The fixture finds a wrong build, not a small loss."""


CAST = "_cast_to_fp16"
"""What ModelOpt appends to a tensor's name where it casts it."""


class QuantizeError(RuntimeError):
    """The artefacts could not be made or are not good enough; nothing was written."""


def quantize(clips: Clips, manifest: Path, out: Path, weights: Path = DEFAULT_WEIGHTS) -> Path:
    """Make every artefact from the FP32 student of `weights` and add them to its sidecar in `out`; returns the sidecar.

    clips: with a cache, which both tools read again. manifest: where they came from; a copy travels with the weights.
    Raises QuantizeError, clips.ClipError, onnx_rules.RuleError, SidecarError; then `out` is as it was.
    """
    began_s = time.monotonic()
    spec, record = sidecar.load(weights)
    out.mkdir(parents=True, exist_ok=True)
    _render(clips)
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=out) as scratch:
        work = Path(scratch)
        (work / MANIFEST_FILE).write_bytes(manifest.read_bytes())
        thresholds = _make(spec, clips, work)
        for precision, names in FILES.items():
            for name in names:
                onnx_rules.assert_clean(work / name, CLAIMS[precision])
        record = _record(spec, record, clips, thresholds, work)
        record["quantization"]["seconds"] = round(time.monotonic() - began_s)
        for path in (*work.glob("student_*.onnx"), *work.glob("training.jsonl"), work / PARITY_FILE,
                     work / MANIFEST_FILE):
            write_whole(out / path.name, path.read_bytes())
        sidecar.write(out / DEFAULT_WEIGHTS.name, record)
    return out / DEFAULT_WEIGHTS.name


def table(path: Path) -> str:
    """What a sidecar says of its precisions, as text."""
    record = json.loads(path.read_text())
    made = record["quantization"]
    rows = [f"{path}: {made['clips']['n']} clips, {made['seconds']} s",
            f"{'precision':<14} {'bytes':>9} {'of fp32':>8}  {'features':>9} {'waves':>9} {'belief':>9}  TensorRT"]
    for precision, size in made["bytes"].items():
        found = made["parity"][precision]
        rows.append(f"{precision:<14} {size:>9} {100 * size / made['bytes']['fp32']:>6.0f} %  {found['features']:>9.2g} "
                    f"{found['correlation']:>9.6f} {found['presence']:>9.2g}  {made['claims'][precision][0]} to "
                    f"{made['claims'][precision][-1]}")
    return "\n".join(rows)


def _render(clips: Clips) -> None:
    """Every clip into the cache, so that a broken one shows before any tool has started."""
    start = time.monotonic()
    for count, _ in enumerate(clips, 1):
        print(f"\rquantize: clip {count} of {len(clips)}, {time.monotonic() - start:.0f} s", end="", file=sys.stderr,
              flush=True)
    print(file=sys.stderr)


def _make(spec: ModelSpec, clips: Clips, work: Path) -> dict[str, dict[str, float]]:
    """Every ONNX file, in `work`; returns both tools' activation thresholds by tensor."""
    for part in ("stem", "head"):  # copies: a tool that rewrites its input must not reach the student's own
        (work / f"student_{part}_fp32.onnx").write_bytes(spec.path(part, "fp32").read_bytes())
    if (spec.folder / "training.jsonl").exists():
        (work / "training.jsonl").write_bytes((spec.folder / "training.jsonl").read_bytes())
    stem = onnx.load(work / "student_stem_fp32.onnx")
    learned, eight, eight_17 = (work / f"{name}.onnx" for name in ("learned", "learned_int8", "learned_int8_opset17"))
    onnx.save(graphs.learned_part(stem), learned)
    _say("INT8 by onnxruntime.quantization")
    # ModelOpt changes onnxruntime.quantization for the whole process; the other tool works in one of its own
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        thresholds = {"onnxruntime": pool.submit(_int8_by_onnxruntime, learned, eight_17, clips).result()}
    _say("INT8 and FP16 by NVIDIA ModelOpt")
    _int8_by_modelopt(learned, eight, _Reader(clips))
    thresholds["modelopt"] = activation_thresholds(onnx.load(eight))
    onnx.save(graphs.rejoined(stem, _fp16(learned, [])), work / FILES["fp16"][0])
    sought = _Features(onnx.load(learned), clips)
    for precision, path in (("int8", eight), ("int8_opset17", eight_17)):
        part = refined(onnx.load(path), sought)
        thresholds[precision] = activation_thresholds(part)
        onnx.save(graphs.rejoined(stem, part), work / FILES[precision][0])
    head_path = work / "student_head_fp32.onnx"
    head = onnx.load(head_path)
    kept = sorted({node.op_type for node in head.graph.node} - {*graphs.LEARNED, "Constant"})
    onnx.save(graphs.packed(_fp16(head_path, kept, graphs.fixed_convolutions(head))), work / FILES["fp16"][1])
    return thresholds


# --- the tools


class _Reader:
    """Clips as the tools ask for them: one clip a batch, and never more than one in memory."""

    def __init__(self, clips: Clips) -> None:
        self._clips = clips
        self.rewind()

    def rewind(self) -> None:
        self._left: Iterator[F32] = iter(self._clips)

    def get_next(self) -> dict[str, F32] | None:
        frames = next(self._left, None)
        return None if frames is None else {"frames": frames}

    def get_first(self) -> dict[str, F32] | None:
        first = self.get_next()
        self.rewind()
        return first


class _OneByOne(_Reader):
    """The same in chunks of clips, in order: onnxruntime keeps every activation of a chunk."""

    def __len__(self) -> int:
        return len(self._clips)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._chunk = end_index - start_index

    def get_next(self) -> dict[str, F32] | None:
        if self._chunk == 0:
            return None
        self._chunk -= 1
        return super().get_next()


def _int8_by_modelopt(learned: Path, out: Path, reader: _Reader) -> None:
    with _quiet():
        from modelopt.onnx.quantization import quantize as modelopt_quantize

        modelopt_quantize(str(learned), quantize_mode="int8", calibration_data_reader=reader, calibration_method=METHOD,
                          calibration_eps=["cpu"], op_types_to_quantize=["Conv"], high_precision_dtype="fp16",
                          output_path=str(out), log_level="CRITICAL")
    if not out.exists():
        raise QuantizeError("NVIDIA ModelOpt wrote no model; run it alone with logging on to see why")


def _fp16(path: Path, kept_types: list[str], kept_nodes: list[str] | None = None) -> onnx.ModelProto:
    """FP16 but for these operators and nodes; inputs and outputs stay float32."""
    with _quiet():
        from modelopt.onnx.autocast import convert_to_mixed_precision

        return convert_to_mixed_precision(str(path), low_precision_type="fp16", keep_io_types=True,
                                          op_types_to_exclude=kept_types, nodes_to_exclude=kept_nodes or [])


def _int8_by_onnxruntime(learned: Path, out: Path, clips: Clips) -> dict[str, float]:
    """In a process of its own; returns its thresholds."""
    from onnxruntime import quantization as ort

    reader = _OneByOne(clips)
    with _quiet():
        ort.quantize_static(
            str(learned), str(out), reader, quant_format=ort.QuantFormat.QDQ, op_types_to_quantize=["Conv"], per_channel=True,
            activation_type=ort.QuantType.QInt8, weight_type=ort.QuantType.QInt8,
            calibrate_method=ort.CalibrationMethod.Entropy,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                           "AddQDQPairToWeight": True, "DedicatedQDQPair": False, "CalibStridedMinMax": 1,
                           "OpTypesToExcludeOutputQuantization": ["Conv"]})
    model = onnx.load(out)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", 17))
    onnx.save(model, out)
    return activation_thresholds(model)


def activation_thresholds(model: onnx.ModelProto) -> dict[str, float]:
    """Largest value that each quantised activation can take, by the name of the tensor."""
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    return {node.input[0].removesuffix(CAST): round(127 * float(constants[node.input[1]]), 4)
            for node in model.graph.node
            if node.op_type == "QuantizeLinear" and node.input[0] not in constants and constants[node.input[1]].size == 1}


def with_thresholds(model: onnx.ModelProto, thresholds: dict[str, float]) -> onnx.ModelProto:
    """A copy whose Q/DQ pairs of these activations take values up to these; other scales stay."""
    model = copy.deepcopy(model)
    initializers = {each.name: each for each in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        quantiser = node if node.op_type == "QuantizeLinear" else producers.get(node.input[0]) if node.input else None
        if node.op_type not in onnx_rules.QDQ or quantiser is None:
            continue
        wanted = thresholds.get(quantiser.input[0].removesuffix(CAST))
        if wanted is not None:
            scale = initializers[node.input[1]]
            value = onnx.numpy_helper.to_array(scale)
            scale.CopyFrom(onnx.numpy_helper.from_array(np.full_like(value, wanted / 127), scale.name))
    return model


class _Features:
    """What the learned part of the stem makes of some clips in FP32, and how far another model is from that."""

    def __init__(self, learned: onnx.ModelProto, clips: Clips) -> None:
        self._clips = clips
        self._wanted = [self._moving(made) for made in self._made(learned)]

    def _made(self, model: onnx.ModelProto) -> Iterator[F32]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for frames in itertools.islice(self._clips, REFINED_OVER):
            yield session.run(None, {"frames": frames})[0]

    @staticmethod
    def _moving(features: F32) -> F32:
        """What does not change over a clip carries no rhythm."""
        return features - features.mean(axis=0)

    def error(self, model: onnx.ModelProto) -> float:
        """Mean over clips of the error's power in that of the features."""
        shares = [float(((self._moving(made) - wanted) ** 2).sum() / ((wanted**2).sum() + 1e-9))
                  for made, wanted in zip(self._made(model), self._wanted, strict=True)]
        return float(np.mean(shares))


def refined(model: onnx.ModelProto, sought: _Features) -> onnx.ModelProto:
    """The model with each activation's threshold, one after another, at the best of its multiples (REFINED_BY)."""
    thresholds = activation_thresholds(model)
    best = sought.error(model)
    for name, usual in thresholds.items():
        for factor in REFINED_BY:
            tried = with_thresholds(model, {name: usual * factor})
            if (error := sought.error(tried)) < best:
                best, model = error, tried
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tools print what we cannot use; their exceptions still come through."""
    before = logging.root.manager.disable
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


# --- evidence


def _record(spec: ModelSpec, record: dict[str, Any], clips: Clips, thresholds: dict[str, dict[str, float]],
            work: Path) -> dict[str, Any]:
    """The sidecar with the new files, the fixture, tolerances and where it all came from."""
    listed = {precision: {part: {"file": name, "sha256": sidecar.sha256(work / name)}
                          for part, name in zip(("stem", "head"), names, strict=True)} for precision, names in FILES.items()}
    record = record | {"files": {"fp32": record["files"]["fp32"], **listed}}
    full = ModelSpec(**record["model"], folder=work, files={p: {k: v["file"] for k, v in parts.items()}
                                                            for p, parts in record["files"].items()})
    _make_fixture(spec, work / PARITY_FILE)
    fixture = load_fixture(work / PARITY_FILE)
    found = {precision: measure(OnnxRuntimeEngine(full, precision), fixture) for precision in full.files}
    for precision, agreement in found.items():
        if not agreement.within(FLOOR[precision]):
            raise QuantizeError(f"{precision} does not answer as FP32 does on the parity fixture ({agreement}; at most "
                                f"{FLOOR[precision]}): are the calibration clips such as the camera sees?")
    record["parity"] = {"file": PARITY_FILE, "sha256": sidecar.sha256(work / PARITY_FILE),
                        "tolerances": {p: asdict(tolerance(p, each)) for p, each in found.items()}}
    size = {p: sum((work / name).stat().st_size for name in {part["file"] for part in parts.values()})
            for p, parts in record["files"].items()}
    record["quantization"] = {
        "method": METHOD, "primary": "nvidia-modelopt", "opset17": "onnxruntime.quantization",
        "tools": {name: version(name) for name in ("nvidia-modelopt", "onnxruntime", "onnx")},
        "clips": {"file": MANIFEST_FILE, "sha256": clips.sha256, "n": len(clips),
                  "frames": sum(each.count for each in clips.entries), "strata": _strata(clips)},
        "thresholds": thresholds, "claims": {p: list(each) for p, each in CLAIMS.items()},
        "bytes": size, "parity": {p: {k: float(f"{v:.6g}") for k, v in asdict(each).items()} for p, each in found.items()},
        "config_sha256": hashlib.sha256(json.dumps(
            [METHOD, REFINED_BY, REFINED_OVER, CLAIMS, FILES, PARITY_SEEDS], sort_keys=True).encode()).hexdigest()}
    record.pop("agreement", None)  # of other files
    return record


def _strata(clips: Clips) -> dict[str, dict[str, int]]:
    """How many clips of each level, by factor."""
    factors = sorted({factor for entry in clips.entries for factor in entry.strata})
    return {factor: dict(sorted(Counter(entry.strata.get(factor, "unknown") for entry in clips.entries).items()))
            for factor in factors}


def tolerance(precision: str, measured: Agreement) -> Tolerance:
    floor = FLOOR[precision]
    return Tolerance(round(max(floor.features, HEADROOM * measured.features), 6),
                     round(min(floor.correlation, 1 - HEADROOM * (1 - measured.correlation)), 6),
                     round(max(floor.presence, HEADROOM * measured.presence), 6))


def _make_fixture(spec: ModelSpec, path: Path) -> None:
    engine = OnnxRuntimeEngine(spec)
    windows, masks, frames = [], [], []
    for seed in PARITY_SEEDS:
        scene = newborn_scene(seed)
        made = normalise_clip(iter(Phantom(scene)), None, spec.fs_hz, spec.size, limit=spec.window)
        valid = made.valid.astype(np.float32)
        windows.append(np.concatenate([engine.stem(made.frames[i:i + 64]) for i in range(0, spec.window, 64)])
                       * valid[:, None, None])
        masks.append(made.valid)
        frames.append(made.frames[-PARITY_FRAMES // len(PARITY_SEEDS):])
    save_fixture(path, engine, np.concatenate(frames), LIGHT_CLIP / 127, np.stack(windows), np.stack(masks))


def _say(text: str) -> None:
    print(f"quantize: {text}", file=sys.stderr, flush=True)
