"""The network's parts on signals whose answer is known, and its export."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("repeatable_torch")]
torch = pytest.importorskip("torch", reason="the student is defined in torch; it is in the extra `lab`")

from distillation.train import TrainConfig, settings_of  # noqa: E402
from edge.pipeline import normalisation  # noqa: E402
from engines import sidecar  # noqa: E402
from engines.export import ExportError, export  # noqa: E402
from engines.onnxruntime_backend import OnnxRuntimeEngine  # noqa: E402
from engines.student import Student, StudentConfig, WaveletTemporalBlock  # noqa: E402

CONFIG = StudentConfig()
GREEN, FLOW_Y = 1, 4
T_S = torch.arange(CONFIG.window) / CONFIG.fs_hz


@pytest.fixture
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return Student(CONFIG).eval()


# --- parts


def test_the_wavelet_bands_add_up_and_open_gates_change_nothing():
    block = WaveletTemporalBlock(6, 7)
    x = torch.randn(2, 6, 1, 512)
    torch.testing.assert_close(block.bands(x).sum(2, keepdim=True), x, atol=1e-5, rtol=0)
    torch.nn.init.constant_(block.gate[-1].bias, 100.0)
    torch.testing.assert_close(block(x), x, atol=1e-5, rtol=0)


def test_wavelet_bands_part_fast_from_slow():
    block = WaveletTemporalBlock(1, 7)
    fast, slow = torch.sin(2 * torch.pi * 6 * T_S), torch.sin(2 * torch.pi * 0.2 * T_S)
    energy = [(block.bands(wave[None, None, None]) ** 2).sum(-1)[0, 0] for wave in (fast, slow)]
    assert energy[0].argmax() < 3 and energy[1].argmax() >= 4


def features_with(channel, signs, rate_hz, noise=0.3, size=1.0):
    """Noise in every cell and channel, and a sine in one channel of the cells in `signs` {cell: sign}."""
    features = noise * torch.randn(1, CONFIG.window, CONFIG.grid**2, CONFIG.features)
    features[..., CONFIG.channels:] = 0
    for cell, sign in signs.items():
        features[0, :, cell, channel] += sign * size * torch.sin(2 * torch.pi * rate_hz * T_S)
    return features


def correlation(a, b):
    return float(np.corrcoef(a.detach().numpy(), b.detach().numpy())[0, 1])


@pytest.mark.usefixtures("_no_gradients")
@pytest.mark.parametrize(("task", "channel", "rate_hz", "noise"), [
    (0, GREEN, 2.5, 0.3), (0, GREEN, 1.4, 0.3), (1, FLOW_Y, 0.7, 0.3), (1, FLOW_Y, 0.35, 0.1)])
def test_attention_finds_the_rhythmic_cells_and_their_band(student, task, channel, rate_hz, noise):
    cells = {8: 1.0, 9: 1.0, 14: 1.0}
    head, features = student.head, features_with(channel, cells, rate_hz, noise)
    attention = head(features, torch.ones(1, CONFIG.window))[2][0, task]
    assert float(attention.sum()) == pytest.approx(1, abs=1e-4)
    assert set(attention.topk(3).indices.tolist()) == set(cells)
    chosen = head.full(features, torch.ones(1, CONFIG.window)).chosen[0, task]
    assert float(head.freqs_hz[chosen.argmax()]) == pytest.approx(rate_hz, abs=0.09)


def test_cells_that_move_in_opposite_directions_add_up(student):
    head = student.head
    features = features_with(FLOW_Y, {8: 1.0, 9: 1.0, 26: -1.0, 27: -1.0}, 0.7, noise=0.1)
    series = head.project(features).permute(0, 2, 3, 1)
    own = (series - series.mean(-1, keepdim=True))[:, :, CONFIG.series:]
    attend = head.attend[1]
    *agreed, spectrum = attend.agree(own, own @ head.dft)
    rhythm = attend(*agreed, attend.choose(spectrum, spectrum)).series[0, 0]
    sine = torch.sin(2 * torch.pi * 0.7 * T_S)
    assert abs(correlation(rhythm, sine)) > 0.95
    assert abs(correlation(features[0, :, :, FLOW_Y].mean(1), sine)) < 0.3


def test_the_untrained_head_already_carries_the_rhythm_it_is_shown(student):
    """What is known is built in: the waves correlate with the sine before any training."""
    both = features_with(GREEN, {8: 1.0, 9: 1.0}, 2.5) + features_with(FLOW_Y, {20: 1.0, 21: 1.0}, 0.6, noise=0.0)
    waves = student.head(both, torch.ones(1, CONFIG.window))[0][0]
    for wave, rate_hz in zip(waves, (2.5, 0.6), strict=True):
        quadrature = [abs(correlation(wave, f(2 * torch.pi * rate_hz * T_S))) for f in (torch.sin, torch.cos)]
        assert max(quadrature) > 0.6


@pytest.mark.usefixtures("_no_gradients")
@pytest.mark.parametrize("kept", [slice(0, 0), slice(None), slice(-30, None), slice(100, 300)])
@pytest.mark.parametrize("content", ["zeros", "noise", "constant"])
def test_waves_are_finite_and_zero_where_nothing_was_seen(student, kept, content):
    mask = torch.zeros(1, CONFIG.window)
    mask[:, kept] = 1
    features = {"zeros": torch.zeros, "noise": torch.randn, "constant": torch.ones}[content](1, 512, 36, 24)
    waves, logits, attention = student.head(features * mask[..., None, None], mask)
    assert all(bool(torch.isfinite(x).all()) for x in (waves, logits, attention))
    assert not (waves * (1 - mask[:, None])).any()
    assert float(waves.abs().max()) < 50


def test_gradients_are_finite_on_an_empty_window():
    student = Student(CONFIG)
    waves, logits, _ = student.head(torch.zeros(1, 512, 36, 24), torch.zeros(1, 512))
    (waves.sum() + logits.sum()).backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in student.parameters())


@pytest.mark.usefixtures("_no_gradients")
class TestLeakGate:
    """Breathing at 0.7 Hz with its harmonics beside a pulse at 2.5 Hz."""

    @staticmethod
    def belief(head, rate_hz):
        return torch.softmax(-0.5 * ((head.freqs_hz - rate_hz) / 0.06) ** 2, 0)[None] if rate_hz else \
            torch.full((1, head.freqs_hz.numel()), 1 / head.freqs_hz.numel())

    @staticmethod
    def size(wave, rate_hz):
        turn = torch.exp(-2j * torch.pi * rate_hz * T_S)
        return float((wave * torch.hann_window(CONFIG.window) * turn).sum().abs() / (CONFIG.window / 4))

    def passed(self, student, wave, breath_hz, pulse_hz, depth=2.0):
        gate = student.head.heads[0].leak
        before = gate.depth.clone()
        gate.depth.fill_(depth)
        out = gate(wave[None], self.belief(student.head, breath_hz), self.belief(student.head, pulse_hz))[0]
        gate.depth.copy_(before)
        return out

    @pytest.mark.parametrize("harmonic", [1, 2, 3])
    def test_harmonics_of_the_breath_are_taken_out_of_the_pulse(self, student, harmonic):
        wave = torch.sin(2 * torch.pi * 2.5 * T_S) + torch.sin(2 * torch.pi * harmonic * 0.7 * T_S)
        out = self.passed(student, wave, 0.7, 2.5)
        assert self.size(out, harmonic * 0.7) < 0.3 and self.size(out, 2.5) > 0.9

    def test_a_pulse_on_a_harmonic_of_the_breath_stays(self, student):
        wave = torch.sin(2 * torch.pi * 1.4 * T_S)
        assert self.size(self.passed(student, wave, 0.7, 1.4), 1.4) > 0.9

    def test_without_a_clear_breath_nothing_is_taken(self, student):
        wave = torch.sin(2 * torch.pi * 2.5 * T_S) + torch.sin(2 * torch.pi * 1.4 * T_S)
        out = self.passed(student, wave, None, 2.5)
        assert self.size(out, 1.4) > 0.85 and self.size(out, 2.5) > 0.85

    def test_the_depth_is_learned(self, student):
        wave = torch.sin(2 * torch.pi * 1.4 * T_S)
        assert self.size(self.passed(student, wave, 0.7, 2.5, depth=-2.0), 1.4) > 0.95


@pytest.mark.parametrize("part", ["wavelet", "attention", "leak_gate"])
def test_a_part_taken_out_for_the_ablation_changes_nothing_else(part):
    """The same parameters, another answer, and without attention every cell counts alike."""
    torch.manual_seed(0)
    full = Student(CONFIG)
    without = Student(replace(CONFIG, **{part: False}))
    without.load_state_dict(full.state_dict(), strict=part != "leak_gate")
    shapes = [{name: p.shape for name, p in s.named_parameters() if "leak" not in name} for s in (full, without)]
    assert shapes[0] == shapes[1]
    features = features_with(GREEN, {8: 1.0, 9: 1.0}, 2.5)
    with torch.no_grad():
        a, b = (s.head(features, torch.ones(1, CONFIG.window)) for s in (full, without))
    assert not torch.allclose(a[0], b[0])
    assert torch.allclose(b[2], torch.full_like(b[2], 1 / 36)) == (part == "attention")


def test_size_and_shape_of_the_network(student):
    assert sum(p.numel() for p in student.parameters()) <= 300_000
    temporal = [m for m in student.head.modules() if isinstance(m, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d))]
    assert temporal and all(isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] == 1 for m in temporal)
    assert not any(isinstance(m, torch.nn.RNNBase) for m in student.modules())


# --- export

OPERATORS = {"Abs", "Add", "AveragePool", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "Div", "Exp",
             "Expand", "Flatten", "Gather", "Gemm", "Identity", "Log", "MatMul", "Mul", "Neg", "Pow", "Reciprocal",
             "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Slice",
             "Softmax", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An untrained student as train() would leave it, exported: (student, sidecar path)."""
    run, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    made = Student(CONFIG).eval()
    torch.save({"student": made.state_dict()}, run / "student.pt")
    before = tmp_path_factory.mktemp("before")
    (before / "config.json").write_text(json.dumps(settings_of(TrainConfig(epochs=1), CONFIG)))
    (before / "teacher").mkdir()
    (before / "teacher" / "teacher.json").write_text('{"version": "abc"}')
    (run / "config.json").write_text(json.dumps(settings_of(TrainConfig(epochs=2, start=str(before / "student.pt")), CONFIG)))
    (run / "log.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    with pytest.raises(ExportError, match="whose record is not there"):
        export(run, out, normalisation(), None)
    (before / "log.jsonl").write_text('{"epoch": 9}\n')
    first = export(run, out, normalisation(), None)
    evaluation = {"weights": json.loads(first.read_text())["files"], "roi": "full", "suites": {"newborn": {"hr_near": 0.99}}}
    with pytest.raises(ExportError, match="not of these weights"):
        export(run, out, normalisation(), evaluation | {"weights": {}})
    return made, export(run, out, normalisation(), evaluation)


def test_what_is_exported_answers_as_torch_does(exported):
    made, path = exported
    spec, record = sidecar.load(path)
    engine = OnnxRuntimeEngine(spec)
    frames = torch.randn(512, 5, 48, 48)
    mask = torch.ones(512)
    mask[:137] = 0
    with torch.no_grad():
        features = made.stem(frames)
        waves, logits, attention = made.head((features * mask[:, None, None])[None], mask[None])
    got_features = engine.stem(frames.numpy())
    np.testing.assert_allclose(got_features, features.numpy(), atol=1e-4)
    got = engine.head(got_features * mask.numpy()[:, None, None], mask.numpy())
    for ours, theirs in zip(got, (waves[0], torch.sigmoid(logits[0]), attention[0]), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-3)
    assert (path.parent / "training.jsonl").read_text() == '{"epoch": 9}\n{"epoch": 1}\n{"epoch": 2}\n'
    stages = record["training"]["stages"]
    assert [stage["log_end"]["epoch"] for stage in stages] == [9, 2] and [s["config"]["epochs"] for s in stages] == [1, 2]
    assert [stage["teacher"] for stage in stages] == [{"version": "abc"}, None]
    assert record["measured"]["newborn"]["hr_near"] == 0.99
    assert record["parameters"] == sum(p.numel() for p in made.parameters())


def test_the_graph_is_plain_enough_for_every_target(exported):
    onnx = pytest.importorskip("onnx")
    spec, _ = sidecar.load(exported[1])
    for part in ("stem", "head"):
        model = onnx.load(spec.path(part, "fp32"))
        onnx.checker.check_model(model)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
        assert {node.op_type for node in model.graph.node} <= OPERATORS
