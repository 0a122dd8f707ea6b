"""The building half of the stand-in TensorRT: loggers, network, parser, config, timing cache, builder."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from typing import Any

import onnxruntime

from tests import onnx_bytes
from tests.fake_tensorrt_native import ORT, REFUSED, Native, field, initialised, integer, session_of, shape_of, want

NEWEST_OPSET = {"8.6.1": 17, "10.3.0": 20, "10.7.0": 20}
"""Where it is not 24. 10.7's is not established; 10.3's is the safe guess."""

_PRECISION_FLAGS = {"FP16", "INT8", "BF16", "FP8"}
PLAN_MAGIC = b"ftrtplan"
CACHE_MAGIC = b"ftrtcach"
_LAYERS = {"Conv": "CONVOLUTION", "AveragePool": "POOLING", "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY",
           "Softmax": "SOFTMAX", "Concat": "CONCATENATION", "Slice": "SLICE", "Gather": "GATHER", "Shape": "SHAPE",
           "Cast": "CAST", "QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE", "Constant": "CONSTANT",
           **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"), "SHUFFLE"),
           **dict.fromkeys(("Relu", "Sigmoid", "Clip"), "ACTIVATION"),
           **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow"), "ELEMENTWISE"),
           **dict.fromkeys(("Log", "Sqrt", "Neg", "Abs", "Exp", "Reciprocal"), "UNARY"),
           **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"), "REDUCE")}
class ILogger(Native):
    def __init__(self) -> None:
        self._born()

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError("a logger needs a log()")


class Logger(ILogger):
    min_severity = field("min_severity", "_severity")

    def __init__(self, min_severity: Any = None) -> None:
        self._min_severity = self._m.ILogger.Severity.WARNING if min_severity is None else want(
            "__init__", min_severity, self._m.ILogger.Severity)
        self._born()

    def log(self, severity: Any, msg: str) -> None:
        want("log", severity, self._m.ILogger.Severity)


class IProgressMonitor(Native):
    def __init__(self) -> None:
        self._born()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class ParserError(Native):
    def desc(self) -> str:
        return self._desc

    def node(self) -> int:
        return -1

    def __str__(self) -> str:
        return f"In node -1: {self._desc}"


class ITensor(Native):
    name = field("name", "str")
    dtype = field("dtype", "DataType")
    shape = property(lambda self: self._shape)
    is_shape_tensor = property(lambda self: False)
    is_network_input = property(lambda self: self._side == "in")
    is_network_output = property(lambda self: self._side == "out")


class ILayer(Native):
    """precision, set_output_type: what weak typing asks for; kept in the network, and looked at by the build."""

    name = field("name", "str")
    type = property(lambda self: getattr(self._m.LayerType, _LAYERS.get(self._node.op, "IDENTITY")))
    num_outputs = property(lambda self: len(self._node.outputs))
    precision = property(lambda self: getattr(self._m.DataType, self._forced.get(self._node.name, self._node.kind)),
                         lambda self, dtype: self._force("precision", dtype))
    precision_is_set = property(lambda self: self._node.name in self._forced)

    def _force(self, call: str, dtype: Any) -> None:
        self._forced[self._node.name] = want(call, dtype, self._m.DataType).name

    def set_output_type(self, index: int, dtype: Any) -> None:
        if not 0 <= integer("set_output_type", index) < self.num_outputs:
            raise IndexError(index)
        self._force("set_output_type", dtype)

    def get_output_type(self, index: int) -> Any:
        return self.get_output(index).dtype

    def get_output(self, index: int) -> Any:
        if not 0 <= index < self.num_outputs:
            return None
        kind = self._m._kind(self._node.kind)
        return self._m.ITensor._make(_name=self._node.outputs[index], _dtype=kind, _shape=(), _side="")


class INetworkDefinition(Native):
    name = field("name", "str")
    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))
    num_layers = property(lambda self: len(self._layers))
    flags = property(lambda self: self._flags)

    def _typed(self) -> bool:
        """Whether it is strongly typed."""
        return self._m._major >= 11 or any(flag.name == "STRONGLY_TYPED" for flag in self._set_flags())

    def _set_flags(self) -> list[Any]:
        every = self._m.NetworkDefinitionCreationFlag.__members__.values()
        return [flag for flag in every if self._flags >> int(flag) & 1]

    def get_flag(self, flag: Any) -> bool:
        return want("get_flag", flag, self._m.NetworkDefinitionCreationFlag) in self._set_flags()

    def _fill(self, model: bytes, graph: onnx_bytes.Graph, session: onnxruntime.InferenceSession) -> None:
        def tensors(side: str, found: list[Any]) -> list[Any]:
            return [self._m.ITensor._make(_name=each.name, _dtype=self._m._kind(ORT[each.type]), _side=side, _shape=tuple(
                size if isinstance(size, int) else -1 for size in each.shape)) for each in found]

        self._model, self._graph, self._forced = model, graph, {}
        self._inputs, self._outputs = tensors("in", session.get_inputs()), tensors("out", session.get_outputs())
        self._layers = [self._m.ILayer._make(_name=node.name, _node=node, _forced=self._forced) for node in graph.nodes]

    def get_input(self, index: int) -> Any:
        return self._inputs[index] if 0 <= index < len(self._inputs) else None

    def get_output(self, index: int) -> Any:
        return self._outputs[index] if 0 <= index < len(self._outputs) else None

    def get_layer(self, index: int) -> Any:
        return self._layers[index] if 0 <= index < len(self._layers) else None


class OnnxParser(Native):
    num_errors = property(lambda self: len(self._errors))

    def __init__(self, network: Any, logger: Any) -> None:
        self._network = want("__init__", network, self._m.INetworkDefinition)
        self._logger = want("__init__", logger, self._m.ILogger)
        self._errors: list[str] = []
        self._born()

    def get_error(self, index: int) -> Any:
        return self._m.ParserError._make(_desc=self._errors[index])

    def clear_errors(self) -> None:
        self._errors.clear()

    def parse(self, model: bytes, path: str | None = None) -> bool:
        model = bytes(want("parse", model, (bytes, bytearray, memoryview)))
        newest = NEWEST_OPSET.get(self._m._release, 24)
        try:
            graph = onnx_bytes.read(model)
            session = session_of(model)
        except (ValueError, KeyError, IndexError, *REFUSED) as e:
            return self._refuse(f"ModelImporter: failed to parse the ONNX model: {e}")
        if self._m.faults.hit("parse"):
            return self._refuse("INVALID_NODE: told to fail")
        if graph.opset > newest:
            return self._refuse(f"UNSUPPORTED_NODE: opset {graph.opset}, newest is {newest}")
        if self._m._major < 10 and not self._network._set_flags():
            return self._refuse("the ONNX parser needs a network with an explicit batch dimension")
        self._network._fill(model, graph, session)
        return True

    def _refuse(self, why: str) -> bool:
        self._errors.append(why)
        self._m._log(self._logger, "ERROR", why)
        return False


class ITimingCache(Native):
    def serialize(self) -> Any:
        body = json.dumps([self._version, self._device, sorted(self._timed)]).encode()
        return self._m.IHostMemory._make(_data=CACHE_MAGIC + hashlib.sha256(body).digest() + body)

    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        want("combine", input_cache, self._m.ITimingCache)
        if input_cache._device != self._device and not ignore_mismatch:
            return False
        self._timed |= input_cache._timed
        return True

    def reset(self) -> bool:
        self._timed.clear()
        return True


class IOptimizationProfile(Native):
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # the real one's names
        shapes = [shape_of("set_shape", each) for each in (min, opt, max)]
        if len({len(each) for each in shapes}) > 1 or any(not a <= b <= c for a, b, c in zip(*shapes, strict=True)):
            raise RuntimeError(f"Shape provided for max is inconsistent with other shapes: {shapes}")
        self._shapes[want("set_shape", input, str)] = shapes

    def get_shape(self, input: str) -> list[tuple[int, ...]]:
        return self._shapes[input]


class IBuilderConfig(Native):
    builder_optimization_level = field("builder_optimization_level", "int")
    profiling_verbosity = field("profiling_verbosity", "ProfilingVerbosity")
    progress_monitor = field("progress_monitor", "IProgressMonitor")
    max_aux_streams = field("max_aux_streams", "int")
    avg_timing_iterations = field("avg_timing_iterations", "int")
    num_optimization_profiles = property(lambda self: len(self._profiles))

    def set_flag(self, flag: Any) -> None:
        self._set.add(want("set_flag", flag, self._m.BuilderFlag))

    def clear_flag(self, flag: Any) -> None:
        self._set.discard(want("clear_flag", flag, self._m.BuilderFlag))

    def get_flag(self, flag: Any) -> bool:
        return want("get_flag", flag, self._m.BuilderFlag) in self._set

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[want("set_memory_pool_limit", pool, self._m.MemoryPoolType).name] = integer("pool_size", pool_size)

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools.get(want("get_memory_pool_limit", pool, self._m.MemoryPoolType).name, 1 << 40)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(want("add_optimization_profile", profile, self._m.IOptimizationProfile))
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        data = bytes(want("create_timing_cache", serialized_timing_cache, (bytes, bytearray, memoryview, Native)))
        if self._m.faults.hit("create_timing_cache"):
            return None
        version, device, timed = self._m.__version__, self._m.device, []
        if data:
            digest, body = data[8:40], data[40:]
            if not data.startswith(CACHE_MAGIC) or hashlib.sha256(body).digest() != digest:
                return self._m._log(self._logger, "ERROR", "the timing cache is damaged")
            version, device, timed = json.loads(body)
            if version != self._m.__version__:
                return self._m._log(self._logger, "ERROR", f"the timing cache is of TensorRT {version}")
        return self._m.ITimingCache._make(_version=version, _device=device, _timed=set(timed))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        want("set_timing_cache", cache, self._m.ITimingCache)
        if self._m.faults.hit("set_timing_cache") or (cache._device != self._m.device and not ignore_mismatch):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class Builder(Native):
    max_threads = field("max_threads", "int")
    logger = property(lambda self: self._logger)

    def __init__(self, logger: Any) -> None:
        self._logger = want("__init__", logger, self._m.ILogger)
        initialised(logger)
        self._m.before_cuda()
        self._max_threads = 1
        self._born()

    def create_network(self, flags: int = 0) -> Any:
        flags = integer("create_network", flags)
        known = sum(1 << int(flag) for flag in self._m.NetworkDefinitionCreationFlag.__members__.values())
        if flags & ~known:
            return self._m._log(self._logger, "ERROR", f"createNetworkV2: flags {flags:#b} are not of this release")
        return self._m.INetworkDefinition._make(_name="", _flags=flags, _model=b"", _graph=None, _forced={}, _inputs=[],
                                                _outputs=[], _layers=[])

    def create_builder_config(self) -> Any:
        m = self._m
        return m.IBuilderConfig._make(
            _builder_optimization_level=3, _profiling_verbosity=m.ProfilingVerbosity.LAYER_NAMES_ONLY, _progress_monitor=None,
            _max_aux_streams=-1, _avg_timing_iterations=1, _profiles=[], _set={m.BuilderFlag.TF32}, _pools={}, _cache=None,
            _logger=self._logger)

    def create_optimization_profile(self) -> Any:
        return self._m.IOptimizationProfile._make(_shapes={})

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        want("build_serialized_network", network, self._m.INetworkDefinition)
        want("build_serialized_network", config, self._m.IBuilderConfig)
        self._m.before_cuda()
        flags = {flag.name for flag in config._set}
        why = self._wrong(network, config, flags)
        if why is not None:
            return self._m._log(self._logger, "ERROR", why)
        time.sleep(self._m.build_s)
        if config._progress_monitor is not None and not _watched(config._progress_monitor):
            return self._m._log(self._logger, "WARNING", "the build was cancelled by its progress monitor")
        digest = hashlib.sha256(network._model).hexdigest()
        timed = config._cache is not None and digest in config._cache._timed
        if config._cache is not None:
            config._cache._timed.add(digest)
        header = {"version": self._m.__version__, "device": self._m.device, "strongly_typed": network._typed(),
                  "flags": sorted(flags), "detailed": config._profiling_verbosity == self._m.ProfilingVerbosity.DETAILED,
                  "wrong": network._typed() and self._m._typing_is_young() and self._m.faults.hit("strongly_typed_wrong"),
                  "shapes": [profile._shapes for profile in config._profiles]}
        self._m.builds.append({**header, "workspace": config._pools.get("WORKSPACE"), "from_timing_cache": timed,
                               "forced": dict(network._forced), "optimization_level": config._builder_optimization_level,
                               "inputs": [tensor.name for tensor in network._inputs], "sha256": digest})
        return self._m.IHostMemory._make(_data=_pack(header, network._model))

    def _wrong(self, network: Any, config: Any, flags: set[str]) -> str | None:
        """Why this cannot be built."""
        typed, kinds = network._typed(), {node.kind for node in network._graph.nodes} if network._graph else set()
        if not network._model:
            return "the network has no output"
        if typed and (flags & _PRECISION_FLAGS or network._forced):
            return f"a strongly typed network takes no {sorted(flags & _PRECISION_FLAGS) or 'layer types'}"
        if not typed and "INT8" in kinds and "INT8" not in flags:
            return "the network has Q/DQ layers, but INT8 is not set"
        if not typed and "HALF" in kinds and "FP16" not in flags:
            return "the network has FP16 tensors, but FP16 is not set"
        floats = {node.name for node in network._graph.nodes if node.kind in ("FLOAT", "HALF")}
        if any(kind in ("FLOAT", "HALF") and name not in floats for name, kind in network._forced.items()):
            return "a layer of integers cannot run in a float type"
        for tensor in network._inputs:
            if -1 in tensor.shape and not any(_fits(profile._shapes.get(tensor.name), tensor.shape)
                                              for profile in config._profiles):
                return f"input {tensor.name} is dynamic, but no optimization profile covers it"
        if typed and self._m._typing_is_young() and self._m.faults.hit("strongly_typed"):
            return "could not find any implementation for a strongly typed node"
        return "told to fail" if self._m.faults.hit("build_serialized_network") else None


def _fits(profile: list[tuple[int, ...]] | None, shape: tuple[int, ...]) -> bool:
    return profile is not None and all(len(each) == len(shape) and all(
        b in (-1, a) for a, b in zip(each, shape, strict=True)) for each in profile)


def _watched(monitor: Any) -> bool:
    """Whether the monitor let the build go on. It is called from another thread, as TensorRT does."""
    said: list[object] = []

    def build() -> None:
        try:
            monitor.phase_start("Building Engine", None, 2)
            monitor.phase_start("Tactic timing", "Building Engine", 4)
            said.append(all(monitor.step_complete("Tactic timing", step) for step in range(4)))
            monitor.phase_finish("Tactic timing")
            monitor.phase_finish("Building Engine")
        except BaseException as e:  # handed to the caller's thread
            said.append(e)

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    if isinstance(said[-1], BaseException):
        raise RuntimeError("the progress monitor failed") from said[-1]
    return bool(said[-1])


def _pack(header: dict[str, Any], model: bytes) -> bytes:
    body = json.dumps(header).encode()
    rest = struct.pack("<I", len(body)) + body + model
    return PLAN_MAGIC + hashlib.sha256(rest).digest() + rest


CLASSES = (ILogger, Logger, IProgressMonitor, ParserError, ITensor, ILayer, INetworkDefinition, OnnxParser, ITimingCache,
           IOptimizationProfile, IBuilderConfig, Builder)
