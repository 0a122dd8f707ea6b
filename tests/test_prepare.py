"""`physvlm prepare` and what run and replay make of it, over stand-ins for TensorRT and CUDA."""

from __future__ import annotations

import gc
import json
import os
import sys

import pytest

from edge import prepare as preparing
from edge.__main__ import FAULT, OK, USAGE, main
from edge.config import load_config
from edge.prepare import Row, benchmark, cache_folder, chosen, prepare, table
from edge.runtime import make_engine
from engines import cuda_kernels, plan, tensorrt_cache, torch2trt_builder
from engines.cuda import CudaError
from engines.errors import EngineError
from engines.onnxruntime_backend import OnnxRuntimeEngine
from engines.sidecar import SidecarError, load
from engines.tensorrt_backend import TensorRtEngine
from tests import host_nvcc
from tests.tensorrt_device import Device, make_bundle, own_copy
from tests.videos import grey_steps, write_video


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("weights"))


def no_compiler():
    """Whether or not this machine has one: it would compile our kernels at every `prepare`."""
    raise CudaError("no nvcc here")


@pytest.fixture
def device(cuda_modules, monkeypatch, weights, tmp_path):
    monkeypatch.setattr(preparing, "WARM_UP", 0)
    monkeypatch.setattr(preparing, "ROUNDS", 2)
    monkeypatch.setattr(cuda_kernels, "nvcc", no_compiler)
    made = Device(cuda_modules, monkeypatch, weights, tmp_path / "cache")
    yield made
    gc.collect()
    assert made.nothing_left(), (made.machine.live(), made.trt.live)


@pytest.fixture
def run(device, capsys):
    """`physvlm prepare` on this device: (exit code, stdout, stderr)."""
    def call(*args):
        code = main(["prepare", "--weights", str(device.weights.parent), "--cache", str(device.folder), *args])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def slow(monkeypatch, **seconds):
    """Engines of these precisions take that long a call, by a clock of their own."""
    now = [0.0]
    monkeypatch.setattr(preparing.time, "perf_counter", lambda: now[0])
    opened = preparing.open_engine

    def open_engine(spec, precision, *args, **options):
        engine = opened(spec, precision, *args, **options)
        stem = engine.stem

        def timed(frames):
            now[0] += seconds[precision]
            return stem(frames)

        engine.stem = timed
        return engine

    monkeypatch.setattr(preparing, "open_engine", open_engine)


@pytest.mark.parametrize(("seconds", "best"), [({"int8": 0.001, "fp16": 0.002}, "int8"),
                                               ({"int8": 0.003, "fp16": 0.002}, "fp16")])
def test_the_faster_of_int8_and_fp16_is_chosen_and_auto_takes_it(device, run, monkeypatch, seconds, best):
    slow(monkeypatch, **seconds)
    code, out, err = run()
    assert code == OK, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["precision", "int8", "fp16", "chosen:"] and lines[-1] == f"chosen: {best}"
    assert f"{seconds['int8'] * 1e3:.3f}" in lines[1] and "fp32" in lines[1]
    record = json.loads((device.folder / "selected.json").read_text())
    assert record["precision"] == best and record["p50_ms"] == {p: s * 1e3 for p, s in seconds.items()}
    assert chosen(device.folder, device.spec) == best
    monkeypatch.undo()


def test_the_result_as_json_is_one_object(run):
    code, out, _ = run("--json")
    result = json.loads(out)
    assert code == OK and result["chosen"] in ("int8", "fp16") and len(result["engines"]) == 2
    assert all(each["p95_ms"] >= each["p50_ms"] >= 0 and each["error"] is None for each in result["engines"])


def test_what_fails_parity_is_not_chosen_however_fast(device, run, monkeypatch):
    opened = tensorrt_cache.verify

    def verify(engine, fixture, tolerance, what):
        if " int8" in what:
            device.trt.faults.add("stem_wrong_answers", 1)
        return opened(engine, fixture, tolerance, what)

    monkeypatch.setattr(tensorrt_cache, "verify", verify)
    slow(monkeypatch, int8=0.001, fp16=0.002)
    code, out, _ = run()
    assert code == OK and out.splitlines()[-1] == "chosen: fp16" and "does not answer as the student does" in out
    assert not device.plan("stem", "int8").exists() and device.plan("stem", "fp16").exists()
    monkeypatch.undo()


def test_where_nothing_can_be_built_it_is_a_fault_and_nothing_is_chosen(device, run):
    device.trt.faults.add("build_serialized_network")
    code, out, err = run()
    assert code == FAULT and out == "" and err.count("made no plan") >= 2
    assert not (device.folder / "selected.json").exists()


def test_of_several_configurations_the_later_one_wins_as_for_run(device, run, tmp_path):
    for name, precision in (("bundle", "int8"), ("device", "fp16")):
        (tmp_path / f"{name}.toml").write_text(f'[model]\nprecision = "{precision}"\n')
    code, out, err = run("--config", str(tmp_path / "bundle.toml"), "--config", str(tmp_path / "device.toml"))
    assert code == OK and out.endswith("chosen: fp16\n") and "int8" not in out, err
    (tmp_path / "device.toml").write_text("")
    assert run("--config", str(tmp_path / "bundle.toml"), "--config", str(tmp_path / "device.toml"))[1].endswith("int8\n")


@pytest.mark.skipif(host_nvcc.missing() is not None, reason=host_nvcc.missing() or "")
def test_the_kernels_are_compiled_with_the_engines_and_without_a_compiler_it_says_so(device, run, monkeypatch, tmp_path):
    code, _, err = run("--precision", "int8")
    assert code == OK and "pre-processing will run on the CPU: no nvcc here" in err
    monkeypatch.setattr(cuda_kernels, "nvcc", lambda: str(host_nvcc.installed(tmp_path / "bin", tmp_path / "compiled")))
    code, _, err = run("--precision", "int8")
    assert code == OK and "pre-processing" not in err
    assert {path.stem for path in device.folder.glob("*.cubin")} == {"area_means", "normalise"}


def test_one_precision_builds_and_chooses_that_one(device, run):
    code, out, _ = run("--precision", "fp32", "--workspace-mb", "64")
    assert code == OK and out.endswith("chosen: fp32\n")
    assert [made["workspace"] for made in device.trt.builds] == [64 << 20] * 2


def test_a_second_time_builds_nothing_and_rebuild_does(device, run):
    run("--precision", "int8")
    assert len(device.trt.builds) == 2
    run("--precision", "int8")
    assert len(device.trt.builds) == 2
    run("--precision", "int8", "--rebuild")
    assert len(device.trt.builds) == 4


def test_a_tampered_plan_is_a_fault_until_it_is_rebuilt(device, run):
    run("--precision", "int8")
    device.plan().write_bytes(device.plan().read_bytes()[:-1])
    code, _, err = run("--precision", "int8")
    assert code == FAULT and "is refused" in err and "--rebuild" in err
    assert run("--precision", "int8", "--rebuild")[0] == OK


@pytest.mark.parametrize(("args", "message"), [
    (["--workspace-mb", "0"], "workspace-mb"), (["--precision", "int4"], "int4"), (["--weights", "/nowhere"], "no sidecar"),
    (["--via", "magic"], "magic")])
def test_wrong_usage_is_exit_2(device, capsys, args, message):
    try:
        code = main(["prepare", "--cache", str(device.folder), *args])
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr()
    assert code == USAGE and message in out.err and out.out == "" and not device.folder.exists()


def test_a_precision_that_the_bundle_lacks_is_exit_2(device, run, tmp_path):
    device.weights = own_copy(device.weights, tmp_path / "own")
    record = json.loads(device.weights.read_text())
    del record["files"]["fp16"]
    device.weights.write_text(json.dumps(record))
    code, _, err = run("--precision", "fp16")
    assert code == USAGE and "no fp16 weights" in err


@pytest.mark.parametrize(("gone", "message"), [("tensorrt", "python3-libnvinfer"), ("pycuda", r"physvlm-edge[jetson]")])
def test_what_is_missing_is_named_in_one_line(device, run, monkeypatch, tmp_path, capsys, gone, message):
    for name in [name for name in sys.modules if name.split(".")[0] == gone]:
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run()
    assert code == USAGE and message in err and err.count("\n") == 1
    device.folder.mkdir()
    (device.folder / "selected.json").write_text(json.dumps({"model": device.spec.name, "precision": "int8"}))
    video = write_video(tmp_path / "v.avi", grey_steps(5))
    code = main(["replay", str(video), "--backend", "tensorrt", "--weights", str(device.weights.parent), "--cache",
                 str(device.folder)])
    err = capsys.readouterr().err
    assert code == USAGE and message in err and err.count("\n") == 1


# --- run and replay


def test_replay_on_tensorrt_gives_what_onnx_runtime_gives(device, run, tmp_path, capsys):
    run("--precision", "int8")
    video = write_video(tmp_path / "v.avi", grey_steps(70))
    readings = {}
    for backend in ("onnxruntime", "tensorrt"):
        code = main(["replay", str(video), "--backend", backend, "--roi", "full", "--json", "-", "--weights",
                     str(device.weights.parent), "--cache", str(device.folder)])
        assert code == OK
        readings[backend] = json.loads(capsys.readouterr().out)["readings"]
    assert readings["tensorrt"] == readings["onnxruntime"] and len(readings["tensorrt"]) == 2
    close_engines()


def close_engines():
    """As the interpreter does at its end."""
    for engine in [each for each in gc.get_objects() if isinstance(each, TensorRtEngine)]:
        engine.close()


def configured(device, **model):
    return load_config(None, {"model.weights": str(device.weights.parent), "model.engine_cache": str(device.folder),
                              **{f"model.{name}": value for name, value in model.items()}})


def test_auto_is_what_was_chosen_and_fp32_on_onnx_runtime(device, run, monkeypatch):
    opened = []
    monkeypatch.setattr(OnnxRuntimeEngine, "__init__", lambda self, spec, precision: opened.append(precision))
    make_engine(configured(device))
    make_engine(configured(device, precision="int8"))
    assert opened == ["fp32", "int8"]
    run("--precision", "fp16")
    engine, name = make_engine(configured(device, backend="tensorrt"))
    assert len(device.trt.builds) == 2 and name == device.spec.name
    engine.close()


def test_without_a_choice_or_a_plan_the_command_is_named(device, run):
    with pytest.raises(EngineError, match="no engine was chosen on this device yet.*run physvlm prepare --cache"):
        make_engine(configured(device, backend="tensorrt"))
    with pytest.raises(EngineError, match="physvlm prepare --precision int8"):
        make_engine(configured(device, backend="tensorrt", precision="int8"))
    assert device.trt.builds == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 1}', '{"model": "other", "precision": "int8"}',
                                     '{"model": "NAME", "precision": "int4"}', '{"model": "NAME", "precision": ["int8"]}'])
def test_a_choice_that_cannot_be_read_or_is_anothers_is_refused(device, content):
    device.folder.mkdir()
    (device.folder / "selected.json").write_text(content.replace("NAME", device.spec.name))
    with pytest.raises(EngineError, match="selected.json .*run physvlm prepare"):
        chosen(device.folder, device.spec)


def test_a_choice_that_others_could_have_written_is_refused(device, run):
    run("--precision", "int8")
    (device.folder / "selected.json").chmod(0o666)
    with pytest.raises(EngineError, match="may be written by others"):
        chosen(device.folder, device.spec)


# --- the parts


def test_the_cache_lies_where_it_was_configured_or_one_for_root_or_user(monkeypatch, tmp_path):
    assert str(cache_folder("/data/engines")) == "/data/engines"
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/physvlm:/var/cache/more")  # by systemd, from the unit's CacheDirectory
    assert str(cache_folder("")) == "/var/cache/physvlm" and str(cache_folder("/data/engines")) == "/data/engines"
    monkeypatch.delenv("CACHE_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(cache_folder("")) == "/var/cache/physvlm"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("") == tmp_path / "physvlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/baby")
    assert str(cache_folder("")) == "/home/baby/.cache/physvlm"


def test_engines_are_timed_in_turn_and_the_warm_up_does_not_count(monkeypatch):
    calls, now = [], [0.0]
    monkeypatch.setattr(preparing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(preparing, "WARM_UP", 2)

    class Timed:
        spec = load()[0]

        def __init__(self, name, ms):
            self.name, self.ms, self.n = name, ms, 0

        def stem(self, frames):
            assert frames.shape == (30, 5, 48, 48)
            self.n += 1
            calls.append(self.name)
            now[0] += 9.0 if self.n <= 2 else self.ms[self.n - 3] / 1e3

        def head(self, features, mask):
            assert features.shape == (512, 36, 24) and mask.shape == (512,)

    times = benchmark({"a": Timed("a", [1.0, 2.0, 3.0, 4.0, 100.0]), "b": Timed("b", [5.0] * 5)}, 5)
    assert calls == ["a", "b"] * 7
    assert times["a"] == pytest.approx((3.0, 80.8)) and times["b"] == pytest.approx((5.0, 5.0))


def test_the_table_shows_failures_in_their_place():
    lines = table([Row("int8", error="why"), Row("fp16", 1.5, 2.25, {"stem": {"fp16": 9, "fp32": 2}, "head": {}})],
                  "fp16").splitlines()
    assert lines[1].split() == ["int8", "-", "-", "why"]
    assert lines[2].split() == ["fp16", "1.500", "2.250", "stem", "9", "fp16,", "2", "fp32;", "head", "unknown"]


@pytest.mark.parametrize("tty", [True, False])
def test_progress_is_one_changing_line_on_a_terminal_and_seldom_elsewhere(monkeypatch, capsys, tty):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    now = [0.0]
    monkeypatch.setattr(preparing.time, "monotonic", lambda: now[0])
    progress = preparing.Progress()
    for _ in range(61):
        progress("stem int8: Building 3/9, 4 s")
        now[0] += 0.5
    progress.end()
    err = capsys.readouterr().err
    assert err.count("stem int8") == (61 if tty else 2) and err.count("\n") == (0 if tty else 2)


# --- torch2trt


def test_via_torch2trt_its_plans_are_proven_kept_and_opened_like_others(device, run, monkeypatch):
    asked = []

    def build(spec, part, precision, *, workspace_mb):
        asked.append((part, precision, workspace_mb))
        header = {"version": device.trt.__version__, "device": device.trt.device, "strongly_typed": False, "detailed": False,
                  "wrong": False, "flags": [], "shapes": [{"frames": [[30, 5, 48, 48]] * 3}] if part == "stem" else []}
        from tests.fake_tensorrt_build import _pack

        return _pack(header, spec.path(part, "fp32").read_bytes())

    monkeypatch.setattr(torch2trt_builder, "build", build)
    code, out, err = run("--via", "torch2trt", "--precision", "fp16")
    assert code == OK, err
    assert asked == [("stem", "fp16", 256), ("head", "fp16", 256)] and device.trt.builds == []
    found = plan.read(device.plan("stem", "fp16"), "stem", "fp16")
    assert found.components["via"] == "torch2trt"
    engine, _ = make_engine(configured(device, backend="tensorrt"))  # run takes them as they are
    engine.close()
    assert run("--precision", "fp16")[0] == OK and len(device.trt.builds) == 2  # and the default way builds its own


def test_without_torch2trt_the_line_says_what_to_do(device, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = run("--via", "torch2trt", "--precision", "fp16")
    assert code == FAULT and "torch2trt" in err and "leave --via out" in err


def test_a_bundle_without_the_precision_ends_the_whole_choice(device):
    with pytest.raises(SidecarError, match="no int4"):
        spec = device.spec
        spec.tolerances["int4"] = spec.tolerances["int8"]
        prepare(spec, device.folder, ("int4",), None, False, "onnx", print)
