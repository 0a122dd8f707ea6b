"""Quantisation: the artefacts keep TensorRT's rules and answer as FP32 does, or nothing is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("modelopt")

from calibration import graphs, onnx_rules  # noqa: E402
from calibration import quantize as module  # noqa: E402
from calibration.clips import ClipError, open_clips  # noqa: E402
from calibration.quantize import CLAIMS, FILES, QuantizeError, activation_thresholds, quantize, with_thresholds  # noqa: E402
from calibration.selection import Selection, write_manifest  # noqa: E402
from engines import sidecar  # noqa: E402
from engines.onnxruntime_backend import OnnxRuntimeEngine  # noqa: E402
from engines.parity import Tolerance, correlation, load_fixture, measure, verify  # noqa: E402
from engines.sidecar import DEFAULT_WEIGHTS  # noqa: E402

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def shipped():
    """Spec and record of the shipped student."""
    spec, record = sidecar.load(DEFAULT_WEIGHTS)
    return spec, record


def manifest_of(folder):
    return folder / "clips.json"


@pytest.fixture(scope="module")
def clips(tmp_path_factory, shipped):
    folder = tmp_path_factory.mktemp("clips")
    spec, _ = shipped
    write_manifest(manifest_of(folder), Selection(spec.fs_hz, spec.size, n=6, frames=32), workers=1)
    return open_clips(manifest_of(folder), fs_hz=spec.fs_hz, size=spec.size, cache=folder / "frames")


@pytest.fixture(scope="module")
def made(tmp_path_factory, clips):
    """A weights folder that quantize filled, and its spec."""
    folder = tmp_path_factory.mktemp("weights")
    return folder, *sidecar.load(quantize(clips, manifest_of(clips.cache.parent), folder))


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_every_precision_passes_the_rules_of_every_release_that_it_claims(made):
    folder, spec, record = made
    assert set(spec.files) == {"fp32", *FILES}
    for precision, parts in spec.files.items():
        assert record["quantization"]["claims"][precision] == list(CLAIMS[precision])
        for name in parts.values():
            onnx_rules.assert_clean(folder / name, CLAIMS[precision])


def test_the_shipped_artefacts_pass_the_rules_of_what_they_claim(shipped):
    spec, record = shipped
    for precision, releases in record["quantization"]["claims"].items():
        for name in spec.files[precision].values():
            onnx_rules.assert_clean(spec.folder / name, releases)
    clips = json.loads((spec.folder / record["quantization"]["clips"]["file"]).read_text())
    assert clips["sha256"] == record["quantization"]["clips"]["sha256"] and len(clips["clips"]) == 256


def test_the_student_it_was_made_from_is_untouched(made, shipped):
    assert made[2]["files"]["fp32"] == shipped[1]["files"]["fp32"] and made[2]["measured"] == shipped[1]["measured"]


def test_every_convolution_of_the_int8_stems_is_quantised_and_its_bias_is_not(made):
    for precision in ("int8", "int8_opset17"):
        model = onnx.load(made[1].path("stem", precision))
        makers = {output: node for node in model.graph.node for output in node.output}
        kinds = {each.name: each.data_type for each in model.graph.initializer}
        for conv in (node for node in model.graph.node if node.op_type == "Conv"):
            assert [makers[name].op_type for name in conv.input[:2]] == ["DequantizeLinear"] * 2
            assert kinds[conv.input[2]] in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def test_the_opsets_are_those_that_their_releases_take(made):
    opset = {p: onnx.load(made[1].path("stem", p)).opset_import[0].version for p in made[1].files}
    assert opset["int8"] >= 19 and opset["int8_opset17"] == opset["fp32"] == 17


def test_no_precision_touches_the_plain_cell_means(made):
    _, spec, _ = made
    frames = np.random.default_rng(1).normal(0, 0.02, (3, 5, 48, 48)).astype(np.float32)  # far below INT8's step of 0.024
    plain = OnnxRuntimeEngine(spec).stem(frames)[..., :5]
    assert np.abs(plain).max() > 0
    for precision in FILES:
        assert np.array_equal(OnnxRuntimeEngine(spec, precision).stem(frames)[..., :5], plain)


def test_each_precision_answers_within_its_own_tolerance(made):
    folder, spec, _ = made
    fixture = load_fixture(spec.parity)
    for precision in spec.files:
        verify(OnnxRuntimeEngine(spec, precision), fixture, spec.tolerances[precision], precision)
    fp16 = measure(OnnxRuntimeEngine(spec, "fp16"), fixture)
    assert fp16.correlation > 0.99999 and fp16.features < 0.01


def test_the_fixture_holds_a_rhythm_in_every_wave(made):
    fixture = load_fixture(made[1].parity)
    assert fixture.presence.min() > 0.5 and made[1].parity.stat().st_size < 1_500_000


def test_int8_is_not_fp32_under_another_name(made):
    _, spec, _ = made
    fixture = load_fixture(spec.parity)
    answers = {p: OnnxRuntimeEngine(spec, p).stem(fixture.frames)[..., 5:] for p in ("fp32", "fp16", "int8", "int8_opset17")}
    apart = {p: float(np.abs(a - answers["fp32"]).max()) for p, a in answers.items()}
    assert 0 < apart["fp16"] < apart["int8"] / 5 and apart["int8_opset17"] > 5 * apart["fp16"]


def test_both_tools_find_like_thresholds(made):
    found = made[2]["quantization"]["thresholds"]
    assert found["modelopt"].keys() == found["onnxruntime"].keys() and len(found["modelopt"]) == 3
    for name, ours in found["modelopt"].items():
        assert ours == pytest.approx(found["onnxruntime"][name], rel=0.5)


def test_sizes_and_clips_are_on_record(made, clips):
    made_of = made[2]["quantization"]
    assert made_of["bytes"]["int8"] <= 0.4 * made_of["bytes"]["fp32"]
    assert made_of["clips"]["sha256"] == clips.sha256 and made_of["clips"]["n"] == 6
    assert json.loads((made[0] / made_of["clips"]["file"]).read_text())["sha256"] == clips.sha256
    assert set(made_of["clips"]["strata"]) == {"source", "light", "skin", "motion", "rate"}


def test_the_same_clips_give_the_same_files(made, clips, tmp_path):
    quantize(clips, manifest_of(clips.cache.parent), tmp_path)
    assert {n: h for n, h in digest(tmp_path).items() if n.endswith(".onnx")} == {
        n: h for n, h in digest(made[0]).items() if n.endswith(".onnx")}


def test_what_is_not_good_enough_leaves_the_folder_as_it_was(made, clips, tmp_path, monkeypatch):
    target = tmp_path / "w"
    shutil.copytree(made[0], target)
    before = digest(target)
    monkeypatch.setitem(module.FLOOR, "int8", Tolerance(1e-6, 1.0, 1e-9))
    with pytest.raises(QuantizeError, match="int8 does not answer as FP32"):
        quantize(clips, manifest_of(clips.cache.parent), target, target / "student.json")
    assert digest(target) == before


def test_a_broken_clip_stops_it_before_any_tool_runs(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_make", lambda *_: pytest.fail("a tool ran"))
    altered = replace(clips.entries[0], sha256="0" * 64)
    with pytest.raises(ClipError, match="not the clip that was selected"):
        quantize(replace(clips, entries=(altered, *clips.entries[1:])), manifest_of(clips.cache.parent), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- graphs


def head(spec):
    return onnx.load(spec.path("head", "fp32"))


def answers(model, spec):
    import onnxruntime

    fixture = load_fixture(spec.parity)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"features": fixture.windows[:1], "mask": fixture.masks[:1]}), fixture


def test_packing_keeps_each_constant_once_and_the_answer(made):
    _, spec, _ = made
    whole, packed = head(spec), graphs.packed(head(spec))
    assert packed.ByteSize() < 0.4 * whole.ByteSize()
    kept = [(i.data_type, tuple(i.dims), i.raw_data) for i in packed.graph.initializer]
    assert len(kept) == len(set(kept))
    (ours, _, _), fixture = answers(packed, spec)
    (theirs, _, _), _ = answers(whole, spec)
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert correlation(a, b, fixture.masks[0]) > 0.99999


def test_the_fixed_filters_are_told_from_the_learned_ones(made):
    names = graphs.fixed_convolutions(head(made[1]))
    assert len(names) == 18 and not any("blocks" in name or "enter" in name or "choose" in name for name in names)


def test_a_stem_without_a_convolution_is_refused(made):
    with pytest.raises(graphs.GraphError, match="no convolution"):
        graphs.learned_part(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])))


def test_new_thresholds_reach_both_ends_of_a_pair(made):
    model = onnx.load(made[1].path("stem", "int8_opset17"))
    before = activation_thresholds(model)
    name = next(each for each in before if each != "frames")
    after = with_thresholds(model, {name: 2 * before[name]})
    assert activation_thresholds(after)[name] == pytest.approx(2 * before[name], rel=1e-3)
    assert activation_thresholds(model) == before
    scales = {each.name: onnx.numpy_helper.to_array(each) for each in after.graph.initializer}
    pair = [node for node in after.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == name]
    back = [node for node in after.graph.node if pair and node.op_type == "DequantizeLinear"
            and node.input[0] == pair[0].output[0]]
    assert pair and back and scales[pair[0].input[1]] == scales[back[0].input[1]]
