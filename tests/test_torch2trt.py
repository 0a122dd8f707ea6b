"""torch2trt is one way to a plan where it can be imported; everywhere else the message says what to do."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from engines import torch2trt_builder
from engines.errors import EngineError
from engines.recipe import BATCH
from engines.sidecar import load
from tests import fake_tensorrt

SPEC, _ = load()

FROZEN = "import tensorrt\nDEFAULT = tensorrt.CalibrationAlgoType.ENTROPY_CALIBRATION_2\n"
"""What torch2trt 0.5.0 does when it is imported."""


def use(monkeypatch, release="10.3.0", torch=True, cuda=True, torch2trt=None):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make(release))
    made = ModuleType("torch")
    made.__version__, made.cuda = "2.5.0", SimpleNamespace(is_available=lambda: cuda)
    monkeypatch.setitem(sys.modules, "torch", made if torch else None)
    monkeypatch.setitem(sys.modules, "torch2trt", torch2trt)


def refusal(precision="fp16", part="stem", **given) -> str:
    with pytest.raises(EngineError) as refused:
        torch2trt_builder.build(SPEC, part, precision, **given)
    assert "leave --via out" in str(refused.value)
    return str(refused.value)


def test_without_pytorch_the_message_says_so(monkeypatch):
    use(monkeypatch, torch=False)
    assert "needs PyTorch with CUDA" in refusal()


def test_a_pytorch_without_cuda_is_refused(monkeypatch):
    use(monkeypatch, cuda=False)
    assert "PyTorch 2.5.0 sees no CUDA device" in refusal()


def test_without_torch2trt_the_message_says_so(monkeypatch):
    use(monkeypatch)
    assert "needs torch2trt" in refusal()


def test_on_tensorrt_11_its_import_fails_and_the_message_says_why(monkeypatch, tmp_path):
    (tmp_path / "torch2trt.py").write_text(FROZEN)
    monkeypatch.syspath_prepend(tmp_path)
    use(monkeypatch, "11.4.0")
    monkeypatch.delitem(sys.modules, "torch2trt")
    message = refusal()
    assert "cannot be imported with TensorRT 11.4.0" in message
    assert "CalibrationAlgoType" in message


def test_a_torch2trt_that_tensorrt_11_can_import_still_has_no_int8(monkeypatch):
    use(monkeypatch, "11.0.0", torch2trt=ModuleType("torch2trt"))
    assert "has no INT8 calibrators" in refusal("int8", calibration=np.zeros((300, 5, 48, 48), np.float32))


@pytest.mark.parametrize("n", [None, 0, 1, torch2trt_builder.LEAST_CALIBRATION_FRAMES - 1])
def test_int8_without_enough_calibration_frames_is_refused(monkeypatch, n):
    use(monkeypatch, torch2trt=ModuleType("torch2trt"))
    frames = None if n is None else np.zeros((n, 5, 48, 48), np.float32)
    assert f"got {n or 0};" in refusal("int8", calibration=frames)


def test_every_calibration_frame_is_used_in_whole_batches():
    frames = np.arange(256, dtype=np.float32)[:, None, None, None]
    batches = torch2trt_builder._batches(fake_tensorrt.make("10.3.0"), frames)
    assert {len(batch) for batch in batches} == {BATCH}
    assert set(np.concatenate(batches).ravel()) == set(range(256))
    assert len(batches) == 9


def test_what_is_listed_but_not_real_counts_as_missing():
    converters = {"torch.cat": {"is_real": True}, "torch.softmax": {"is_real": False}}
    assert torch2trt_builder.without_converter({"torch.softmax", "torch.fft.rfft", "torch.cat"}, converters) == [
        "torch.fft.rfft", "torch.softmax"]
