"""The student through a stand-in torch2trt: loaded from its ONNX file, its functions found, our converters right."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import onnxruntime
import pytest

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("repeatable_torch")]
torch = pytest.importorskip("torch", reason="the student is defined in torch; it is in the extra `lab`")

from engines import torch2trt_builder  # noqa: E402
from engines.errors import EngineError  # noqa: E402
from engines.onnxruntime_backend import OnnxRuntimeEngine  # noqa: E402
from engines.parity import save_fixture  # noqa: E402
from engines.sidecar import load  # noqa: E402
from tests import fake_tensorrt, fake_torch2trt  # noqa: E402
from tests.tensorrt_table import OWNERS, where  # noqa: E402

FROZEN_SPEC, _ = load()
MODELS = {tuple(torch2trt_builder.INPUTS[part]): FROZEN_SPEC.path(part, "fp32").read_bytes() for part in ("stem", "head")}


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """The shipped student with a small fixture of noise."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("parity") / "parity.npz"
    mask = np.ones((1, 512), bool)
    mask[:, :100] = False
    windows = rng.normal(size=(1, 512, 36, 24)).astype(np.float32) * mask[..., None, None]
    save_fixture(path, OnnxRuntimeEngine(FROZEN_SPEC), rng.normal(size=(4, 5, 48, 48)).astype(np.float32), 0.02, windows, mask)
    return dataclasses.replace(FROZEN_SPEC, parity=path)


@pytest.fixture
def trt(monkeypatch):
    made = fake_tensorrt.make("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    return made


@pytest.fixture
def torch2trt(monkeypatch, trt):
    made = fake_torch2trt.make(trt, MODELS)
    monkeypatch.setitem(sys.modules, "torch2trt", made)
    return made


@pytest.mark.parametrize("part", ["stem", "head"])
def test_the_onnx_file_holds_the_whole_torch_student(spec, part):
    module = torch2trt_builder.load_part(spec, part)
    feeds = {name: torch.randn(shape) for name, shape in zip(
        torch2trt_builder.INPUTS[part], torch2trt_builder._shapes(spec, part), strict=True)}
    if part == "head":
        feeds["mask"] = (feeds["mask"] > -1).float()
    with torch.no_grad():
        found = module(*feeds.values())
    session = onnxruntime.InferenceSession(str(spec.path(part, "fp32")))
    expected = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    for ours, theirs in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-3)


def test_another_students_weights_are_refused(spec):
    other = dataclasses.replace(spec, features=23)
    with pytest.raises(EngineError, match="down.weight, down.bias missing or of another shape"):
        torch2trt_builder.load_part(other, "stem")


def test_weights_that_do_not_answer_as_the_fixture_are_refused(spec, monkeypatch):
    real = torch2trt_builder._parameter
    monkeypatch.setattr(torch2trt_builder, "_parameter", lambda name, *rest: real(name, *rest) * np.float32(1.01))
    for part in ("stem", "head"):
        with pytest.raises(EngineError, match="differs from it by"):
            torch2trt_builder.load_part(spec, part)


@pytest.mark.parametrize("part", ["stem", "head"])
def test_a_plan_comes_out_and_our_converters_compute_what_torch_does(spec, trt, torch2trt, part):
    plan = torch2trt_builder.build(spec, part, "fp16", device="cpu")
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan)
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    assert names == {*torch2trt_builder.INPUTS[part], *torch2trt_builder.OUTPUTS[part]}
    assert torch2trt.calls[-1]["fp16_mode"] is True
    for in_network, in_torch in torch2trt.outputs:
        np.testing.assert_allclose(in_network, in_torch, atol=1e-6)
    assert trt.builds[-1]["flags"] == ["FP16", "TF32"]


def test_without_our_converters_the_message_names_what_is_missing(spec, trt, torch2trt, monkeypatch):
    monkeypatch.setattr(torch2trt_builder, "register_converters", lambda *modules: None)
    with pytest.raises(EngineError, match="has no converter for torch.Tensor.norm, torch.softmax, which the student's head"):
        torch2trt_builder.build(spec, "head", "fp16", device="cpu")
    torch2trt_builder.build(spec, "stem", "fp16", device="cpu")  # which needs none of them


def test_torch2trts_own_sum_and_matmul_do_not_do_for_the_head(spec, trt, torch2trt, monkeypatch):
    real = torch2trt_builder.register_converters
    kept = {name: dict(entry) for name, entry in torch2trt.CONVERTERS.items()}

    def without(name):
        def register(*modules):
            real(*modules)
            torch2trt.CONVERTERS[name] = kept[name]
        return register

    for name in ("torch.Tensor.sum", "torch.Tensor.mean", "torch.Tensor.__matmul__"):
        monkeypatch.setattr(torch2trt_builder, "register_converters", without(name))
        with pytest.raises(EngineError, match="torch2trt 0.5.0 failed on the student's head"):
            torch2trt_builder.build(spec, "head", "fp16", device="cpu")


CASES = [
    (lambda x: x.sum(-1), (2, 3, 4)), (lambda x: x.sum((1, 2), keepdim=True), (2, 3, 4)), (lambda x: x.mean(-1), (2, 3, 4)),
    (lambda x: x.mean(1, keepdim=True), (2, 3, 4)), (lambda x: x.norm(dim=1, keepdim=True), (2, 3, 4)),
    (lambda x: torch.softmax(x, dim=-1), (2, 5)), (lambda x: torch.softmax(x, 1), (2, 5, 3)),
    (lambda x: x @ torch.arange(12.0).reshape(4, 3), (2, 3, 4)), (lambda x: x @ torch.arange(4.0).reshape(1, 4, 1), (2, 3, 4)),
    (lambda x: torch.arange(6.0).reshape(2, 3) @ x, (2, 3, 4)), (lambda x: x @ x.transpose(1, 2), (2, 3, 4)),
    (lambda x: x @ torch.arange(8.0).reshape(2, 4).T, (2, 3, 4)), (lambda x: torch.sum(x), (2, 3)),
]


@pytest.mark.parametrize(("function", "shape"), CASES)
def test_each_converter_of_ours_gives_torchs_answer(trt, torch2trt, function, shape):
    class Module(torch.nn.Module):
        def forward(self, x):
            return function(x)

    torch2trt_builder.register_converters(torch, torch2trt, trt)
    torch2trt.CONVERTERS["torch.Tensor.reshape"]["converter"] = lambda ctx: None  # constants stay constants
    x = torch.randn(shape)
    with pytest.raises(KeyError, match="x"):  # there is no engine of it; its outputs are looked at
        torch2trt.torch2trt(Module(), [x], ["x"], ["y"], fp16_mode=False)
    ((in_network, in_torch),) = torch2trt.outputs
    np.testing.assert_allclose(in_network, in_torch, rtol=1e-5, atol=1e-6)


def test_int8_calibrates_the_stem_alone(spec, trt, torch2trt):
    frames = np.random.default_rng(0).normal(size=(256, 5, 48, 48)).astype(np.float32)
    torch2trt_builder.build(spec, "stem", "int8", calibration=frames, device="cpu")
    assert torch2trt.calls[-1]["int8_mode"] is True
    assert torch.equal(torch2trt.calls[-1]["int8_calib_dataset"][0][0], torch.from_numpy(frames[:30]))
    torch2trt_builder.build(spec, "head", "int8", device="cpu")
    assert "int8_mode" not in torch2trt.calls[-1]
    assert torch2trt.calls[-1]["fp16_mode"] is True


def test_an_engine_that_is_not_made_is_an_error(spec, trt, torch2trt):
    trt.faults.add("build_serialized_network")
    with pytest.raises(EngineError, match="made no engine of the student's stem in fp32"):
        torch2trt_builder.build(spec, "stem", "fp32", device="cpu")


def test_torch_is_as_it_was_after_a_conversion(spec, trt, torch2trt):
    before = torch.Tensor.sum, torch.softmax
    torch2trt_builder.build(spec, "head", "fp16", device="cpu")
    assert (torch.Tensor.sum, torch.softmax) == before


def test_the_stand_ins_network_has_no_method_that_tensorrt_lacks():
    assert {name for name in dir(fake_torch2trt.Network) if name.startswith("add_")} <= {
        name for owner, name in where() if owner == "INetworkDefinition"}
    assert {"INetworkDefinition", "ISoftMaxLayer"} <= OWNERS
