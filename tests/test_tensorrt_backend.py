"""The TensorRT path end to end over stand-ins: building, the cache, refusals, parity, and the engine itself."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from engines import plan, recipe, tensorrt_backend, tensorrt_build, tensorrt_cache
from engines.cuda import Buffer, Cuda
from engines.errors import EngineError
from engines.onnxruntime_backend import OnnxRuntimeEngine
from engines.parity import ParityError
from engines.plan import Plan
from engines.recipe import Recipe, artefact, typings
from engines.sidecar import SidecarError, load
from engines.tensorrt_build import BuildError, build
from tests import fake_tensorrt
from tests.supervised import until
from tests.tensorrt_device import Device, make_bundle, own_copy

RELEASES = list(fake_tensorrt.FULL_VERSION)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def device(cuda_modules, monkeypatch, weights, tmp_path):
    made = Device(cuda_modules, monkeypatch, weights, tmp_path / "cache")
    yield made
    gc.collect()
    assert made.nothing_left(), (made.machine.live(), made.trt.live)


@pytest.fixture(scope="module")
def reference():
    return OnnxRuntimeEngine(load()[0])


def inputs(spec, n=30, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, spec.channels, spec.size, spec.size), np.float32),
            rng.standard_normal((spec.window, spec.cells, spec.features), np.float32), np.ones(spec.window, np.float32))


# --- building and running, by release


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("integrated", [True, False], ids=["mapped", "copied"])
def test_every_release_builds_and_answers_like_onnx_runtime(device, reference, release, integrated):
    device.use(release)
    device.machine.configure(integrated=integrated)
    engine = device.open("int8")
    frames, features, mask = inputs(engine.spec)
    np.testing.assert_allclose(engine.stem(frames), reference.stem(frames), atol=1e-5)
    for ours, theirs in zip(engine.head(features, mask), reference.head(features, mask), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        assert ours.dtype == np.float32
    assert 0 not in device.trt.streams and len(set(device.trt.streams)) == 1
    assert bool(device.machine.copies) is not integrated
    engine.close()


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_builder_is_asked_for_what_the_release_has(device, release, precision):
    device.use(release)
    device.prepared(precision)
    strong = release != "8.6.1"
    flags = {"fp32": set(), "fp16": {"FP16", "OBEY_PRECISION_CONSTRAINTS"},
             "int8": {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}}[precision]
    for made in device.trt.builds:
        assert made["strongly_typed"] is strong and made["workspace"] == 256 << 20 and made["optimization_level"] == 3
        assert set(made["flags"]) == (set() if strong else flags)  # TF32, on by default, is off
    stem, head = device.trt.builds
    assert stem["shapes"] == [{"frames": [(30, 5, 48, 48)] * 3}] and head["shapes"] == []


def test_tensorrt_8_builds_from_the_artefacts_it_can_read(device):
    device.use("8.6.1")
    device.prepared("int8", "fp16")
    taken = [made["sha256"] for made in device.trt.builds]
    assert taken == [plan.hashlib.sha256(device.spec.path(part, name).read_bytes()).hexdigest()
                     for name in ("int8_opset17", "fp32") for part in ("stem", "head")]
    assert artefact(fake_tensorrt.make("10.3.0"), "int8") == "int8"


def test_weak_typing_keeps_everything_but_convolutions_in_fp32(device):
    device.use("8.6.1")
    device.prepared("int8")
    stem, head = device.trt.builds
    assert set(stem["forced"].values()) == set(head["forced"].values()) == {"FLOAT"}
    assert not any("Conv" in name for name in [*stem["forced"], *head["forced"]])
    assert any("Softmax" in name for name in head["forced"]) and "/mean/AveragePool" in stem["forced"]
    assert not any("Relu" in name for name in stem["forced"]) and any("Relu" in name for name in head["forced"])
    assert not any("Shape" in name for name in stem["forced"])  # integers


@pytest.mark.parametrize("release", RELEASES)
def test_every_flag_exists_in_every_release_that_may_get_it(release):
    trt = fake_tensorrt.make(release)
    for typing in typings(trt):
        for precision in ("fp32", "fp16", "int8"):
            assert all(hasattr(trt.BuilderFlag, flag) for flag in Recipe("stem", precision, typing).flags)


@pytest.mark.parametrize("fault", ["strongly_typed", "strongly_typed_wrong"])
def test_where_strong_typing_is_young_weak_typing_is_the_way_out(device, caplog, fault):
    device.use("10.3.0")
    device.trt.faults.add(fault)
    device.prepared("int8")
    assert device.typings()[-2:] == [False, False]
    assert device.trt.builds[-1]["flags"] == ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]
    assert "weak typing instead" in caplog.text
    device.trt.builds.clear()
    device.prepared("int8")  # what the fallback arrived at is kept, not tried again at every start
    assert device.trt.builds == [] and plan.read(device.plan(), "stem", "int8").components["typing"] == "weak"


def test_where_strong_typing_is_complete_there_is_no_way_out(device):
    device.trt.faults.add("stem_wrong_answers")
    with pytest.raises(ParityError, match="strongly typed, does not answer as the student does"):
        device.open()
    assert device.typings() == [True, True] and not list(device.folder.glob("*.plan"))


def test_layers_by_precision_are_kept_with_the_plan(device):
    device.prepared("int8")
    notes = plan.read(device.plan("head"), "head", "int8").notes
    assert notes["layers"]["fp32"] > 50 and notes["agreement"]["correlation"] > 0.999 and notes["power_mode"] == ""
    assert tensorrt_backend.count_precisions(json.dumps({"Layers": [
        {"Inputs": [{"Format/Datatype": "Thirty-two wide Int8"}], "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
        {"Outputs": [{"Format/Datatype": "Row major FP16"}]}, {"Outputs": [{"Datatype": "Float"}]}, {"Outputs": []},
        "name only"]})) == {"int8": 1, "fp16": 1, "fp32": 1, "other": 2}
    assert tensorrt_backend.count_precisions("") == tensorrt_backend.count_precisions('{"Layers": null}') == {}


# --- progress, Ctrl-C, the timing cache


@pytest.mark.parametrize("release", ["8.6.1", "10.3.0"])
def test_a_build_says_how_far_it_is_with_and_without_a_monitor(device, monkeypatch, release):
    monkeypatch.setattr(tensorrt_build, "SAID_EVERY_S", 0.02)
    device.use(release)
    said = []

    def lasts(seconds):
        """A build is over once it has been told of twice."""
        before = len(said)
        assert until(lambda: len(said) > before + 1, 30.0, pause_s=0.005)

    monkeypatch.setattr("tests.fake_tensorrt_build.time", SimpleNamespace(sleep=lasts))
    device.open(say=said.append).close()
    assert sum(text.startswith("stem int8: building, ") for text in said) > 1
    assert any(text.startswith("head int8") for text in said)


def test_the_monitor_knows_the_outermost_phase_and_can_ask_to_stop():
    watch = tensorrt_build._watch(fake_tensorrt.make("10.3.0"))
    watch.phase_start("Building", None, 5)
    watch.phase_start("Timing", "Building", 3)
    assert watch.step_complete("Timing", 0) and watch.step_complete("Building", 1) and watch.text() == "Building 2/5"
    watch.cancelled = True
    assert watch.step_complete("Timing", 1) is False
    watch.phase_finish("Building")
    assert watch.text() == "Timing 2/3"


def test_ctrl_c_ends_a_build_and_leaves_nothing(device, monkeypatch):
    monkeypatch.setattr(tensorrt_build, "SAID_EVERY_S", 0.02)
    said = []

    def interrupt(text):
        said.append(text)
        if len(said) == 1:
            raise KeyboardInterrupt

    # a build is over once the interruption has been told of
    monkeypatch.setattr("tests.fake_tensorrt_build.time",
                        SimpleNamespace(sleep=lambda seconds: until(lambda: len(said) > 1, 30.0, pause_s=0.005)))
    with pytest.raises(KeyboardInterrupt):
        device.open(say=interrupt)
    assert ("WARNING", "the build was cancelled by its progress monitor") in device.trt.messages
    assert not list(device.folder.glob("*.plan"))
    device.prepared()  # and the lock is free


def test_the_timing_cache_makes_a_second_build_short(device):
    device.prepared()
    assert [made["from_timing_cache"] for made in device.trt.builds] == [False, False]
    device.open(rebuild=True).close()
    assert [made["from_timing_cache"] for made in device.trt.builds[2:]] == [True, True]


@pytest.mark.parametrize("change", ["damaged", "another release", "refused", "none made", "another device"])
def test_a_timing_cache_that_does_not_fit_is_not_used_and_one_line_says_so(device, caplog, change):
    caplog.set_level(logging.INFO)
    device.prepared()
    cache = device.folder / "timing.cache"
    if change == "damaged":
        cache.write_bytes(cache.read_bytes()[:-1])
    elif change == "another release":
        device.use("10.16.1")
    elif change == "another device":
        device.trt.device = "Thor"
    else:
        device.trt.faults.add("set_timing_cache" if change == "refused" else "create_timing_cache", 1)
    caplog.clear()
    device.trt.builds.clear()
    device.open(rebuild=True).close()
    assert device.trt.builds[0]["from_timing_cache"] is False
    assert sum("the timing cache is not used" in line for line in caplog.messages) == 1


def test_without_any_timing_cache_it_builds_all_the_same(device):
    device.trt.faults.add("create_timing_cache")
    device.prepared()
    assert len(device.trt.builds) == 2 and not (device.folder / "timing.cache").exists()


# --- the cache


def test_a_second_start_builds_nothing(device):
    device.prepared()
    device.open(make=False).close()
    assert len(device.trt.builds) == 2


def test_a_missing_plan_is_refused_with_the_command_that_makes_it(device):
    with pytest.raises(EngineError, match="no folder of engines.*physvlm prepare --precision int8"):
        device.open(make=False)
    device.prepared("fp16")
    with pytest.raises(EngineError, match="int8_stem.plan is not there; .*physvlm prepare --precision int8"):
        device.open(make=False)


CHANGES = {
    "TensorRT 10.13.3.9, this is 10.16.1.11": lambda d, m: d.use("10.16.1"),
    "TensorRT 10.13.3.9, this is 10.13.3.11": lambda d, m: d.use("10.13.3", "10.13.3.11"),
    "CUDA driver 12060, this is 13000": lambda d, m: d.machine.configure(driver_version=13000),
    "L4T none, this is 36.4.3": lambda d, m: m.setattr(recipe, "l4t_release", lambda: "36.4.3"),
    "the device Orin (stand-in), this is Orin Nano": lambda d, m: d.machine.configure(name="Orin Nano"),
    "compute capability 8.7, this is 11.0": lambda d, m: d.machine.configure(compute_capability=(11, 0)),
    "multiprocessors 8, this is 16": lambda d, m: d.machine.configure(sm_count=16),
    "bytes of memory 7990000000, this is 16": lambda d, m: d.machine.configure(memory_bytes=16),
    "optimisation level 3, this is 4": lambda d, m: m.setattr(recipe, "OPT_LEVEL", 4),
    "weights with SHA-256": lambda d, m: d.change_weights(),
    "plan format 1, this is 2": lambda d, m: m.setattr(recipe, "plan", SimpleNamespace(FORMAT=2)),
}


@pytest.mark.parametrize("said", CHANGES)
def test_whatever_the_key_holds_a_change_builds_anew_and_says_why(device, monkeypatch, caplog, tmp_path, said):
    caplog.set_level(logging.INFO)
    device.weights = own_copy(device.weights, tmp_path / "own")
    device.prepared()
    CHANGES[said](device, monkeypatch)
    device.trt.builds.clear()
    device.open(make=False).close()
    assert len(device.trt.builds) == 2
    lines = [line for line in caplog.messages if "has to be built: " in line and "built for" in line]
    assert len(lines) == 1 and f"built for {said}" in lines[0]
    device.open(make=False).close()
    assert len(device.trt.builds) == 2


def test_options_asked_for_are_part_of_the_key_and_hold_at_later_starts(device, caplog):
    caplog.set_level(logging.INFO)
    device.open(workspace_mb=128).close()
    assert device.trt.builds[0]["workspace"] == 128 << 20
    device.open(make=False).close()
    assert len(device.trt.builds) == 2
    device.open(workspace_mb=512).close()
    assert len(device.trt.builds) == 4 and "built for a workspace of MB 128, this is 512" in caplog.text
    device.machine.configure(sm_count=16)
    device.open(make=False).close()
    assert device.trt.builds[-1]["workspace"] == 512 << 20


def test_another_power_mode_is_a_warning_and_no_reason_to_build(device, monkeypatch, caplog):
    monkeypatch.setattr(tensorrt_cache, "power_mode", lambda: "0002")
    device.prepared()
    monkeypatch.setattr(tensorrt_cache, "power_mode", lambda: "0000")
    device.prepared()
    assert "timed in power mode 0002, this is 0000" in caplog.text and len(device.trt.builds) == 2


def test_l4t_and_power_mode_are_read_from_their_files(tmp_path):
    (tmp_path / "l4t").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n# KERNEL\n")
    (tmp_path / "mode").write_text("pmode:0002\nfmode:quiet\n")
    assert recipe.l4t_release(tmp_path / "l4t") == "36.4.3" and recipe.power_mode(tmp_path / "mode") == "0002"
    assert recipe.l4t_release(tmp_path / "none") == recipe.power_mode(tmp_path / "none") == ""


@pytest.mark.parametrize("part", ["stem", "head"])
@pytest.mark.parametrize("make", [True, False])
def test_a_tampered_plan_is_refused_and_never_quietly_replaced(device, part, make):
    device.prepared()
    path = device.plan(part)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(EngineError, match=f"int8_{part}.plan is refused: .*delete it, or .*physvlm prepare --rebuild"):
        device.open(make=make)
    assert path.read_bytes() == data and len(device.trt.builds) == 2
    device.open(rebuild=True).close()
    device.open(make=False).close()


def test_stem_and_head_swapped_or_of_another_precision_are_refused(device):
    device.prepared("int8", "fp16")
    stem, head, other = device.plan("stem"), device.plan("head"), device.plan("stem", "fp16")
    for source in (head, other):
        whole = stem.read_bytes()
        stem.write_bytes(source.read_bytes())
        with pytest.raises(EngineError, match="expected the stem in int8"):
            device.open()
        stem.write_bytes(whole)


def test_a_folder_that_others_may_write_is_refused(device):
    device.prepared()
    device.folder.chmod(0o777)
    for make in (True, False):
        with pytest.raises(EngineError, match="may be written by others"):
            device.open(make=make)


def test_a_plan_that_tensorrt_itself_refuses_does_not_start(device):
    device.prepared()
    device.trt.device = "another machine that calls itself the same"
    with pytest.raises(EngineError, match="do not run here: .*engine from the plan of the stem.*prepare --rebuild"):
        device.open()


@pytest.mark.parametrize("fault", ["stem_wrong_answers", "head_wrong_answers", "nan_answers", "execute_async_v3"])
def test_every_start_proves_the_engine_and_refuses_one_that_answers_otherwise(device, fault):
    device.prepared()
    device.trt.faults.add(fault)
    with pytest.raises(EngineError):
        device.open(make=False)
    assert len(device.trt.builds) == 2
    device.trt.faults.discard(fault)
    device.open(make=False).close()


def test_without_a_parity_fixture_nothing_is_built(device, tmp_path):
    device.weights = own_copy(device.weights, tmp_path / "own")
    record = json.loads(device.weights.read_text())
    del record["parity"]["tolerances"]["int8"]
    device.weights.write_text(json.dumps(record))
    with pytest.raises(EngineError, match="no parity fixture or no tolerance for int8"):
        device.open()
    assert device.trt.builds == []
    with pytest.raises(SidecarError, match="no int8_opset17 weights"):
        del record["files"]["int8_opset17"]
        record["parity"]["tolerances"]["int8"] = record["parity"]["tolerances"]["fp16"]
        device.weights.write_text(json.dumps(record))
        device.use("8.6.1")
        device.open()


def test_a_crash_between_the_two_files_is_mended_by_the_next_build(device):
    device.prepared()
    device.plan("head").unlink()
    with pytest.raises(EngineError, match="head.plan is not there"):
        device.open(make=False)
    device.prepared()
    assert len(device.trt.builds) == 4


# --- two builders


def open_elsewhere(device, barrier, counts):
    barrier.wait(60)
    device.open().close()
    counts.put(len(device.trt.builds))


def test_two_builders_at_once_build_once(device):
    device.trt.build_s = 0.1
    context = multiprocessing.get_context("fork")
    barrier, counts = context.Barrier(2), context.Queue()
    both = [context.Process(target=open_elsewhere, args=(device, barrier, counts)) for _ in range(2)]
    for process in both:
        process.start()
    found = sorted(counts.get(timeout=120) for _ in both)
    for process in both:
        process.join(120)
    assert found == [0, 2]


def test_two_threads_that_build_at_once_build_once(device):
    device.trt.build_s = 0.2
    threads = [threading.Thread(target=lambda: device.open().close()) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(device.trt.builds) == 2


# --- failing calls


@pytest.mark.parametrize("fault", ["parse", "build_serialized_network", "deserialize_cuda_engine", "create_execution_context",
                                   "set_input_shape", "set_tensor_address", "execute_async_v3"])
@pytest.mark.parametrize("nth", [1, 2], ids=["stem", "head"])
@pytest.mark.parametrize("release", ["8.6.1", "10.13.3"])
def test_every_call_that_fails_is_an_engine_error_and_leaves_nothing(device, monkeypatch, fault, nth, release):
    trt = device.use(release)
    hits = []
    monkeypatch.setattr(trt.faults, "hit", lambda name: name == fault and len(hits.append(0) or hits) == nth)
    with pytest.raises(EngineError) as caught:
        device.open()
    assert "\n" not in str(caught.value) and caught.value.__traceback__ is not None
    assert device.nothing_left(), (device.machine.live(), trt.live)  # though the traceback is still held
    assert not list(device.folder.glob("*.plan"))
    device.prepared()


@pytest.mark.parametrize("call", ["cuInit", "cuDevicePrimaryCtxRetain", "cuStreamCreate", "cuMemHostAlloc",
                                  "cuMemHostGetDevicePointer", "cuStreamSynchronize"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_every_failure_of_cuda_is_an_engine_error_and_leaves_nothing(device, call, nth):
    device.machine.fail(call, nth)
    try:
        device.open().close()
    except EngineError as e:
        assert "\n" not in str(e)
    assert device.nothing_left(), (device.machine.live(), device.trt.live)


@pytest.mark.parametrize(("name", "value"), [("Builder", None), ("Runtime", None)])
def test_a_library_that_makes_no_objects_is_an_engine_error(device, monkeypatch, name, value):
    def nothing(*args):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(device.trt, name, nothing)
    with pytest.raises(EngineError, match=f"TensorRT gave no {name.lower()}: .*nullptr"):
        device.open()


def test_out_of_memory_in_a_build_says_what_helps(device):
    device.trt.faults.add("build_serialized_network")
    with pytest.raises(BuildError, match="add swap, or give a smaller --workspace-mb than 256"):
        device.open()


def test_what_the_parser_says_is_in_the_error(device):
    device.trt.faults.add("parse")
    with pytest.raises(BuildError, match="cannot read the ONNX of the stem in int8: .*INVALID_NODE: told to fail"):
        device.open()


def test_a_plan_of_another_network_is_refused(device):
    device.prepared()
    built = plan.read(device.plan("head"), "head", "int8")
    stem = plan.read(device.plan("stem"), "stem", "int8")
    plan.write(device.plan("head"), Plan("head", "int8", built.components, stem.data))  # its hash is right, its content not
    with pytest.raises(EngineError, match=r"inputs and outputs \['frames'\] and \['features'\], expected"):
        device.open()


@pytest.mark.parametrize("version", ["8.5.3", "7.2.1.6"])
def test_an_older_tensorrt_is_refused_by_name(device, monkeypatch, version):
    monkeypatch.setattr(device.trt, "__version__", version)
    with pytest.raises(EngineError, match=f"TensorRT {version} is older than 8.6"):
        device.open()


# --- the engine


@pytest.fixture
def engine(device):
    made = device.open("fp32")
    yield made
    made.close()


@pytest.mark.parametrize("n", [0, 1, 29, 30, 31, 75])
def test_the_stem_takes_any_number_of_frames(engine, reference, n):
    frames, _, _ = inputs(engine.spec, n)
    out = engine.stem(frames)
    assert out.shape == (n, 36, 24) and out.dtype == np.float32
    if n:
        np.testing.assert_allclose(out, reference.stem(frames), atol=1e-5)


def test_a_frame_that_went_wrong_does_not_spoil_a_later_shorter_batch(engine, reference):
    frames, _, _ = inputs(engine.spec)
    wild = frames.copy()
    wild[29] = np.sign(wild[29]) * np.float32(3e38)
    with pytest.raises(EngineError, match="gave features that are not finite"):
        engine.stem(wild)
    np.testing.assert_allclose(engine.stem(frames[:3]), reference.stem(frames[:3]), atol=1e-5)


def test_an_answer_is_a_copy_that_later_calls_do_not_change(engine):
    first, second = inputs(engine.spec, seed=1)[0], inputs(engine.spec, seed=2)[0]
    kept = engine.stem(first)
    before = kept.copy()
    engine.stem(second)
    np.testing.assert_array_equal(kept, before)


@pytest.mark.parametrize("integrated", [True, False])
def test_a_failed_execute_gives_nothing_and_the_next_call_works(device, integrated):
    device.machine.configure(integrated=integrated)
    engine = device.open()
    frames, features, mask = inputs(engine.spec)
    before = engine.stem(frames)
    device.trt.faults.add("execute_async_v3", 1)
    with pytest.raises(EngineError, match="did not run the stem"):
        engine.stem(frames)
    np.testing.assert_array_equal(engine.stem(frames), before)
    device.trt.faults.add("execute_async_v3", 1)
    with pytest.raises(EngineError, match="did not run the head"):
        engine.head(features, mask)
    engine.head(features, mask)
    engine.close()


@pytest.mark.parametrize("integrated", [True, False])
def test_an_execute_that_says_yes_and_does_nothing_gives_nothing(device, monkeypatch, integrated):
    device.machine.configure(integrated=integrated)
    engine = device.open()
    frames, features, mask = inputs(engine.spec)
    engine.stem(frames)
    engine.head(features, mask)
    monkeypatch.setattr(device.trt, "enqueue", lambda handle, work: None)
    for call in (lambda: engine.stem(frames), lambda: engine.head(features, mask)):
        with pytest.raises(EngineError, match="not finite"):
            call()
    monkeypatch.undo()
    engine.close()


def test_a_failed_wait_gives_nothing(device):
    engine = device.open()
    frames, _, _ = inputs(engine.spec)
    device.machine.fail("cuStreamSynchronize")
    with pytest.raises(EngineError, match="CUDA stream"):
        engine.stem(frames)
    engine.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_neither_goes_in_nor_comes_out(device, engine, bad):
    frames, features, mask = inputs(engine.spec)
    broken = frames.copy()
    broken[3, 2, 1, 0] = bad
    with pytest.raises(EngineError, match="frames hold values that are not finite"):
        engine.stem(broken)
    broken = features.copy()
    broken[100, 3, 1] = bad
    with pytest.raises(EngineError, match="features hold values that are not finite"):
        engine.head(broken, mask)
    device.trt.faults.add("nan_answers", 1)
    with pytest.raises(EngineError, match="gave waves that are not finite"):
        engine.head(features, mask)


@pytest.mark.parametrize("change", [lambda a: a.astype(np.float64), lambda a: a[:, :3], lambda a: a[0], lambda a: a[..., :10],
                                    lambda a: np.float32(1)])
def test_frames_of_another_shape_or_type_are_refused(engine, change):
    with pytest.raises(EngineError, match="frames: expected float32 of shape"):
        engine.stem(change(inputs(engine.spec)[0]))


def test_windows_of_another_shape_or_type_are_refused(engine):
    _, features, mask = inputs(engine.spec)
    for wrong in ((features[:511], mask), (features.astype(np.float16), mask), (features, mask[:10]), (features, mask > 0)):
        with pytest.raises(EngineError, match="expected float32 of shape"):
            engine.head(*wrong)


def test_it_runs_in_a_thread_that_did_not_make_it_and_leaves_no_context_behind(device, engine, reference):
    frames, features, mask = inputs(engine.spec)
    found, depths, errors = [], [], []

    def work():
        try:
            found.append(engine.stem(frames))
            found.append(engine.head(features, mask)[0])
        except EngineError as e:
            errors.append(e)
        depths.append(device.machine.depth())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors and depths == [0] and device.machine.depth() == 0
    np.testing.assert_allclose(found[0], reference.stem(frames), atol=1e-5)


def test_two_threads_take_turns(engine, reference):
    batches = [inputs(engine.spec, seed=seed)[0] for seed in range(2)]
    wanted = [reference.stem(frames) for frames in batches]
    wrong = []

    def work(i):
        for _ in range(10):
            if not np.allclose(engine.stem(batches[i]), wanted[i], atol=1e-5):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_closing_releases_in_order_twice_is_once_and_in_any_thread(device, monkeypatch):
    engine = device.open()
    device.trt.released.clear()
    live = []
    free = Buffer.free
    monkeypatch.setattr(Buffer, "free", lambda buffer: live.append(dict(device.trt.live)) or free(buffer))
    thread = threading.Thread(target=engine.close)
    thread.start()
    thread.join()
    engine.close()
    assert device.trt.released == ["IExecutionContext"] * 2 + ["ICudaEngine"] * 2 + ["Runtime"]
    assert live and all(counts["Runtime"] == 0 for counts in live)  # buffers after the runtime
    assert device.machine.live() == {"device": 0, "host": 0, "streams": 0, "contexts": 0}
    with pytest.raises(EngineError, match="closed"):
        engine.stem(np.zeros((1, 5, 48, 48), np.float32))


def test_an_engine_that_nobody_closed_is_closed_before_the_interpreter_goes(device, monkeypatch):
    registered = []
    monkeypatch.setattr(tensorrt_backend.atexit, "register", registered.append)
    engine = device.open()
    assert registered[-1] == engine.close
    registered[-1]()


def test_there_is_one_logger_in_a_process(device):
    device.prepared("int8", "fp16")
    assert device.trt.live["Logger"] == 1


def test_a_build_needs_no_context_in_the_calling_thread(device):
    cuda = Cuda()
    spec = device.spec
    how = Recipe("stem", "fp32", "strong", profile=recipe.profile(spec, "stem"))
    built = build(device.trt, cuda, spec.path("stem", "fp32").read_bytes(), how)
    assert built.data and built.timing and not built.timing_refused and device.machine.depth() == 0
    cuda.close()
