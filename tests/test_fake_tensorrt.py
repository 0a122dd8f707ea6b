"""The stand-in TensorRT fails where the real one is known to fail, and computes what the student computes."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from engines.sidecar import load
from tests import fake_tensorrt
from tests.tensorrt_table import RELEASES

SPEC, _ = load()
STEM, HEAD = (SPEC.path(part, "fp32").read_bytes() for part in ("stem", "head"))
SHAPE = (30, 5, 48, 48)


@pytest.fixture(params=RELEASES)
def trt(request):
    return fake_tensorrt.make(request.param)


@pytest.fixture
def orin():
    return fake_tensorrt.make("10.3.0")


def flags(trt) -> int:
    known = trt.NetworkDefinitionCreationFlag
    return sum(1 << int(getattr(known, name)) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(known, name))


def network(trt, model=STEM, typing=None):
    builder = trt.Builder(trt.Logger())
    made = builder.create_network(flags(trt) if typing is None else typing)
    assert trt.OnnxParser(made, trt.Logger()).parse(model)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("frames", SHAPE, SHAPE, SHAPE)
    config.add_optimization_profile(profile)
    return builder, made, config


def built(trt, model=STEM) -> bytes:
    builder, made, config = network(trt, model)
    return bytes(builder.build_serialized_network(made, config))


def opened(trt, plan: bytes):
    return trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan)


def run(trt, model, feeds):
    context = opened(trt, built(trt, model)).create_execution_context()
    for name, array in feeds.items():
        assert context.set_input_shape(name, array.shape)
    engine = opened(trt, built(trt, model))
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    memory = {name: feeds.get(name, np.full(context.get_tensor_shape(name), 7, np.float32)) for name in names}
    for name, array in memory.items():
        assert context.set_tensor_address(name, array.ctypes.data)
    return context.execute_async_v3(5), {name: array for name, array in memory.items() if name not in feeds}


def test_an_engine_computes_what_onnx_runtime_does(trt):
    rng = np.random.default_rng(0)
    feeds = {"features": rng.normal(size=(1, 512, 36, 24)).astype(np.float32), "mask": np.ones((1, 512), np.float32)}
    done, found = run(trt, HEAD, feeds)
    session = onnxruntime.InferenceSession(HEAD)
    assert done
    for expected, array in zip(session.run(list(found), feeds), found.values(), strict=True):
        np.testing.assert_allclose(array, expected, atol=2e-4)


def test_a_failed_execute_leaves_the_output_as_it_was(orin):
    orin.faults.add("execute_async_v3")
    done, found = run(orin, STEM, {"frames": np.zeros(SHAPE, np.float32)})
    assert done is False
    assert (found["features"] == 7).all()


@pytest.mark.parametrize("fault", ["wrong_answers", "stem_wrong_answers", "nan_answers"])
def test_told_to_answer_wrongly_it_does(orin, fault):
    right = run(orin, STEM, {"frames": np.ones(SHAPE, np.float32)})[1]["features"]
    orin.faults.add(fault, 1)
    done, found = run(orin, STEM, {"frames": np.ones(SHAPE, np.float32)})
    assert done
    assert not np.allclose(found["features"], right)
    assert np.allclose(run(orin, STEM, {"frames": np.ones(SHAPE, np.float32)})[1]["features"], right)


def test_a_plan_is_bound_to_release_and_device_and_its_bytes(orin):
    plan = built(orin)
    assert opened(orin, plan) is not None
    assert opened(fake_tensorrt.make("10.7.0"), plan) is None
    assert opened(fake_tensorrt.make("10.3.0", "10.3.0.30"), plan) is None
    assert opened(orin, plan[:-1]) is None
    assert opened(orin, plan[:100] + bytes([plan[100] ^ 1]) + plan[101:]) is None
    orin.device = "Orin Nano"
    assert opened(orin, plan) is None
    assert orin.messages


def test_a_timing_cache_is_bound_to_release_and_device(orin):
    def config(trt):
        return trt.Builder(trt.Logger()).create_builder_config()

    builder, made, first = network(orin)
    cache = first.create_timing_cache(b"")
    assert first.set_timing_cache(cache, False)
    builder.build_serialized_network(made, first)
    kept = bytes(cache.serialize())
    builder, made, second = network(orin)
    assert second.set_timing_cache(second.create_timing_cache(kept), False)
    builder.build_serialized_network(made, second)
    assert [each["from_timing_cache"] for each in orin.builds] == [False, True]
    assert config(fake_tensorrt.make("10.7.0")).create_timing_cache(kept) is None
    assert config(orin).create_timing_cache(kept[:-1]) is None
    orin.device = "Orin Nano"
    other = config(orin)
    cache = other.create_timing_cache(kept)
    assert not other.set_timing_cache(cache, False)
    assert other.set_timing_cache(cache, True)


def test_8_takes_no_opset_above_17_and_needs_an_explicit_batch():
    trt = fake_tensorrt.make("8.6.1")
    newer = STEM.replace(b"\x42\x02\x10\x11", b"\x42\x02\x10\x13")
    assert newer != STEM
    logger = trt.Logger()
    builder = trt.Builder(logger)
    for typing, model in ((flags(trt), newer), (0, STEM)):
        parser = trt.OnnxParser(builder.create_network(typing), logger)
        assert not parser.parse(model)
        assert parser.num_errors == 1
    assert "17" in trt.messages[0][1]
    later = fake_tensorrt.make("10.3.0")
    assert later.OnnxParser(later.Builder(later.Logger()).create_network(0), later.Logger()).parse(newer)


def test_what_is_no_onnx_is_not_parsed(orin):
    for junk in (b"", b"junk" * 20, STEM[:1000]):
        parser = orin.OnnxParser(orin.Builder(orin.Logger()).create_network(0), orin.Logger())
        assert not parser.parse(junk)
        assert parser.get_error(0).desc()


def test_wrong_argument_types_are_type_errors(trt):
    builder, made, config = network(trt)
    pool = trt.MemoryPoolType.WORKSPACE
    context = opened(trt, built(trt)).create_execution_context()
    for call in (lambda: config.set_flag(6), lambda: config.set_memory_pool_limit(pool, 1e9), lambda: 1 << trt.BuilderFlag.TF32,
                 lambda: context.execute_async_v3(object()), lambda: context.execute_async_v3(1.0),
                 lambda: context.set_tensor_address("frames", "x"), lambda: trt.Builder(None), lambda: trt.Logger(2),
                 lambda: config.set_timing_cache(None, False), lambda: trt.ICudaEngine(), lambda: list(trt.BuilderFlag),
                 lambda: setattr(config, "profiling_verbosity", 2), lambda: trt.nptype(trt.DataType.FP8),
                 lambda: len(builder.build_serialized_network(made, config))):
        with pytest.raises(TypeError):
            call()


def test_what_a_release_lacks_is_an_attribute_error(trt):
    with pytest.raises(AttributeError, match="tensorrt' has no attribute 'CaffeParser"):
        trt.CaffeParser  # noqa: B018 - the access is the test
    with pytest.raises(AttributeError):
        network(trt)[2].max_workspace_size = 1
    assert hasattr(trt.BuilderFlag, "FP16") == hasattr(trt.ILayer, "precision") == (int(trt.__version__.split(".")[0]) < 11)


def test_strong_typing_takes_no_flags_and_weak_typing_needs_them(orin):
    builder, made, config = network(orin)
    config.set_flag(orin.BuilderFlag.FP16)
    assert builder.build_serialized_network(made, config) is None
    weak = network(orin, typing=0)
    weak[2].set_flag(orin.BuilderFlag.FP16)
    layer = next(each for i in range(weak[1].num_layers) if (each := weak[1].get_layer(i)).type == orin.LayerType.POOLING)
    layer.precision = orin.DataType.FLOAT
    layer.set_output_type(0, orin.DataType.FLOAT)
    assert weak[0].build_serialized_network(weak[1], weak[2]) is not None
    assert orin.builds[-1]["forced"] == {layer.name: "FLOAT"}
    integers = next(each for i in range(weak[1].num_layers) if (each := weak[1].get_layer(i)).type == orin.LayerType.SHAPE)
    integers.precision = orin.DataType.FLOAT
    assert weak[0].build_serialized_network(weak[1], weak[2]) is None


@pytest.mark.parametrize(("release", "works"), [("10.3.0", False), ("10.7.0", False), ("10.13.3", True), ("11.0.0", True)])
def test_young_strong_typing_can_be_told_to_fail(release, works):
    trt = fake_tensorrt.make(release)
    trt.faults.add("strongly_typed")
    builder, made, config = network(trt)
    assert (builder.build_serialized_network(made, config) is not None) == works


def test_an_open_input_needs_a_profile(orin):
    builder, made, _ = network(orin)
    assert builder.build_serialized_network(made, builder.create_builder_config()) is None
    with pytest.raises(RuntimeError):
        builder.create_optimization_profile().set_shape("frames", SHAPE, SHAPE, (1, 5, 48, 48))


def test_shapes_outside_the_profile_are_refused(orin):
    engine = opened(orin, built(orin))
    assert engine.get_tensor_shape("frames") == (-1, 5, 48, 48)
    assert engine.get_tensor_shape("features") == (-1, 36, 24)
    assert engine.get_tensor_profile_shape("frames", 0) == [SHAPE] * 3
    context = engine.create_execution_context()
    assert not context.set_input_shape("frames", (31, 5, 48, 48))
    assert not context.execute_async_v3(1)
    assert context.set_input_shape("frames", SHAPE)
    assert context.get_tensor_shape("features") == (30, 36, 24)
    assert not context.execute_async_v3(1)  # no addresses yet


def test_a_progress_monitor_is_called_from_another_thread_and_can_stop_the_build(orin):
    import threading

    class Monitor(orin.IProgressMonitor):
        def __init__(self, go_on):
            orin.IProgressMonitor.__init__(self)
            self.go_on, self.seen, self.threads = go_on, [], set()

        def phase_start(self, phase_name, parent_phase, num_steps):
            self.seen.append(phase_name)
            self.threads.add(threading.get_ident())

        def step_complete(self, phase_name, step):
            return self.go_on

        def phase_finish(self, phase_name):
            self.seen.remove(phase_name)

    for go_on in (True, False):
        builder, made, config = network(orin)
        config.progress_monitor = monitor = Monitor(go_on)
        assert (builder.build_serialized_network(made, config) is not None) == go_on
        assert monitor.seen == []
        assert threading.get_ident() not in monitor.threads

    class Forgetful(orin.IProgressMonitor):
        def __init__(self):
            pass

    with pytest.raises(TypeError, match="__init__"):
        config.progress_monitor = Forgetful()


@pytest.mark.parametrize("fault", ["parse", "build_serialized_network", "deserialize_cuda_engine", "create_execution_context",
                                   "set_input_shape", "set_tensor_address"])
def test_a_failing_call_says_none_or_false(orin, fault):
    orin.faults.add(fault)
    logger = orin.Logger()
    builder = orin.Builder(logger)
    made = builder.create_network(flags(orin))
    parsed = orin.OnnxParser(made, logger).parse(HEAD)
    if fault == "parse":
        assert parsed is False
        return
    plan = builder.build_serialized_network(made, builder.create_builder_config())
    if fault == "build_serialized_network":
        assert plan is None
        return
    engine = opened(orin, bytes(plan))
    if fault == "deserialize_cuda_engine":
        assert engine is None
        return
    context = engine.create_execution_context()
    if fault == "create_execution_context":
        assert context is None
        return
    assert context.set_input_shape("mask", (1, 512)) is (fault != "set_input_shape")
    assert context.set_tensor_address("mask", 4096) is (fault != "set_tensor_address")


def test_no_fault_is_misspelt(orin):
    with pytest.raises(KeyError, match="no fault parsing"):
        orin.faults.add("parsing")


def test_objects_are_counted_and_their_release_is_recorded(orin):
    runtime = orin.Runtime(orin.Logger())
    engine = runtime.deserialize_cuda_engine(built(orin))
    context = engine.create_execution_context()
    assert orin.live["ICudaEngine"] == orin.live["IExecutionContext"] == 1
    orin.released.clear()
    del context
    del engine
    del runtime
    assert orin.released == ["IExecutionContext", "ICudaEngine", "Runtime", "Logger"]
    assert orin.live["ICudaEngine"] == orin.live["IExecutionContext"] == orin.live["Builder"] == 0


def test_the_inspector_tells_types_of_a_detailed_plan_alone(orin):
    for detailed in (True, False):
        builder, made, config = network(orin)
        if detailed:
            config.profiling_verbosity = orin.ProfilingVerbosity.DETAILED
        engine = opened(orin, bytes(builder.build_serialized_network(made, config)))
        text = engine.create_engine_inspector().get_engine_information(orin.LayerInformationFormat.JSON)
        assert isinstance(json.loads(text)["Layers"][0], dict) == detailed


def test_calls_that_need_a_cuda_context_are_announced(orin):
    asked = []
    orin.before_cuda = lambda: asked.append(1)
    plan = built(orin)
    before = len(asked)
    assert before == 2  # Builder and build
    opened(orin, plan).create_execution_context().execute_async_v3(1)
    assert len(asked) == before + 4
