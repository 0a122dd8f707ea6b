"""A stand-in for NVIDIA's `tensorrt` module, of any release that is claimed, that computes with ONNX Runtime on host memory.

`make("10.3.0")` gives the module. Its classes, members and enum integers are those of that release (tensorrt_names.json): what
the release lacks is taken out, and asking for it raises AttributeError. As with the real one, failures mostly return None or
False; a wrong argument type is a TypeError. It is stricter in places: it knows no dunder but bytes() on a plan, and a float
type forced on a layer of integers fails the build. What it cannot show: speed, memory, kernels, and that the real one may
crash on a damaged plan instead of refusing it.

CONTROLS are the module's attributes that the real one lacks, for tests alone:
  faults    `faults.add("parse")` makes that call fail from now on, `faults.add("parse", 1)` once; see FAULTS
  device    the machine that plans and timing caches are bound to; another string is another machine
  builds    one record per plan built;   messages  what was logged: (severity name, text)
  live      objects alive by class;      released  classes in the order in which their objects went
  streams   handles that execute_async_v3 was given
  before_cuda   called before every call that needs a CUDA context;   enqueue(handle, work)  runs what a stream is given
  build_s   how long a build takes
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from tests import fake_tensorrt_build as building
from tests import fake_tensorrt_native as native
from tests import onnx_bytes, tensorrt_table
from tests.fake_tensorrt_native import NUMPY, ORT, Native, field, integer, want

FULL_VERSION = {"8.6.1": "8.6.1.6", "10.3.0": "10.3.0.26", "10.7.0": "10.7.0.23", "10.13.3": "10.13.3.9",
                "10.16.1": "10.16.1.11", "11.0.0": "11.0.0.114", "11.4.0": "11.4.0.106"}
"""Of NVIDIA's packages. The wheels' `__version__` has three parts up to 10.7, and may end in .post1: see `make`."""

CONTROLS = frozenset({"faults", "device", "builds", "messages", "live", "released", "streams", "before_cuda", "enqueue",
                      "build_s"})

class Runtime(Native):
    logger = property(lambda self: self._logger)

    def __init__(self, logger: Any) -> None:
        self._logger = want("__init__", logger, self._m.ILogger)
        native.initialised(logger)
        self._m.before_cuda()
        self._born()

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        plan = bytes(want("deserialize_cuda_engine", serialized_engine, (bytes, bytearray, memoryview, Native)))
        self._m.before_cuda()
        if not plan.startswith(building.PLAN_MAGIC) or hashlib.sha256(plan[40:]).digest() != plan[8:40]:
            return self._m._log(self._logger, "ERROR", "deserializeCudaEngine: magic tag or checksum does not match")
        size, = struct.unpack_from("<I", plan, 40)
        header, model = json.loads(plan[44:44 + size]), plan[44 + size:]
        for what in ("version", "device"):
            here = self._m.__version__ if what == "version" else self._m.device
            if header[what] != here:
                return self._m._log(self._logger, "ERROR", f"the plan was made by {what} {header[what]}, this is {here}")
        if self._m.faults.hit("deserialize_cuda_engine"):
            return self._m._log(self._logger, "ERROR", "deserializeCudaEngine: told to fail")
        session = native.session_of(model)
        return self._m.ICudaEngine._make(_header=header, _model=model, _logger=self._logger, _io={
            each.name: (each, side) for side in ("INPUT", "OUTPUT")
            for each in (session.get_inputs() if side == "INPUT" else session.get_outputs())})


class ICudaEngine(Native):
    name = property(lambda self: "")
    num_io_tensors = property(lambda self: len(self._io))
    num_layers = property(lambda self: len(onnx_bytes.read(self._model).nodes))
    num_optimization_profiles = property(lambda self: max(1, len(self._header["shapes"])))
    device_memory_size_v2 = property(lambda self: 1 << 20)

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[integer("get_tensor_name", index)]

    def get_tensor_mode(self, name: str) -> Any:
        return getattr(self._m.TensorIOMode, self._io[name][1] if name in self._io else "NONE")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """-1 where it depends on an input's open size."""
        declared, side = self._io[name]
        if side == "INPUT":
            return tuple(size if isinstance(size, int) else -1 for size in declared.shape)
        low, high = (native.output_shapes(self._model, tuple(
            (each, self.get_tensor_profile_shape(each, 0)[i]) for each in self._inputs()))[name] for i in (0, 2))
        return tuple(a if a == b and isinstance(size, int | str) and size not in self._open() else -1
                     for a, b, size in zip(low, high, declared.shape, strict=True))

    def _inputs(self) -> list[str]:
        return [name for name, (_, side) in self._io.items() if side == "INPUT"]

    def _open(self) -> set[str]:
        """Symbols of the inputs' open sizes."""
        return {size for name in self._inputs() for size in self._io[name][0].shape if isinstance(size, str)}

    def get_tensor_dtype(self, name: str) -> Any:
        return self._m._kind(ORT[self._io[name][0].type])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        if self._io[name][1] != "INPUT":
            return []
        profiles = self._header["shapes"]
        shapes = profiles[profile_index].get(name) if profiles else None
        return [tuple(each) for each in shapes or [self.get_tensor_shape(name)] * 3]

    def create_execution_context(self) -> Any:
        self._m.before_cuda()
        if self._m.faults.hit("create_execution_context"):
            return self._m._log(self._logger, "ERROR", "createExecutionContext: out of memory")
        return self._m.IExecutionContext._make(
            _io={name: side for name, (_, side) in self._io.items()}, _model=self._model, _addresses={}, _name="",
            _profile={name: self.get_tensor_profile_shape(name, 0) for name in self._inputs()},
            _types={name: NUMPY[ORT[each.type]] for name, (each, _) in self._io.items()}, _wrong=self._header["wrong"],
            _shapes={name: self.get_tensor_shape(name) for name in self._io}, _logger=self._logger)

    def create_engine_inspector(self) -> Any:
        return self._m.EngineInspector._make(_model=self._model, _detailed=self._header["detailed"], _execution_context=None)


class EngineInspector(Native):
    execution_context = field("execution_context", "IExecutionContext")

    def get_engine_information(self, format: Any) -> str:
        as_json = want("get_engine_information", format, self._m.LayerInformationFormat) == self._m.LayerInformationFormat.JSON
        nodes = onnx_bytes.read(self._model).nodes
        if not as_json:
            return "\n".join(node.name for node in nodes)
        said = {"FLOAT": "Row major linear FP32", "HALF": "Row major linear FP16", "INT8": "Row major Int8"}
        layers: list[Any] = [node.name for node in nodes]
        if self._detailed:
            layers = [{"Name": node.name, "LayerType": node.op, "Outputs": [
                {"Name": name, "Format/Datatype": said.get(node.kind, node.kind)} for name in node.outputs]} for node in nodes]
        return json.dumps({"Layers": layers})


class IExecutionContext(Native):
    name = field("name", "str")
    all_binding_shapes_specified = property(lambda self: all(
        -1 not in self._shapes[name] for name, side in self._io.items() if side == "INPUT"))

    def set_input_shape(self, name: str, shape: Any) -> bool:
        shape = native.shape_of("set_input_shape", shape)
        low, _, high = self._profile.get(name, ((), (), ()))
        if (self._m.faults.hit("set_input_shape") or len(shape) != len(low)
                or any(not a <= size <= b for a, size, b in zip(low, shape, high, strict=True))):
            self._m._log(self._logger, "ERROR", f"setInputShape: {name} {shape} is outside the profile {low} to {high}")
            return False
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self._io[name] == "INPUT" or not self.all_binding_shapes_specified:
            return self._shapes[name]
        feeds = tuple((each, self._shapes[each]) for each, side in self._io.items() if side == "INPUT")
        return native.output_shapes(self._model, feeds)[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        memory = integer("set_tensor_address", memory)
        if self._m.faults.hit("set_tensor_address") or name not in self._io:
            return False
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def execute_async_v3(self, stream_handle: int) -> bool:
        handle = integer("execute_async_v3", stream_handle)
        self._m.before_cuda()
        self._m.streams.append(handle)
        if self._m.faults.hit("execute_async_v3"):
            self._m._log(self._logger, "ERROR", "enqueueV3: told to fail")
            return False
        unset = [name for name in self._io if not self._addresses.get(name) or -1 in self.get_tensor_shape(name)]
        if unset:
            self._m._log(self._logger, "ERROR", f"enqueueV3: no address or shape for {', '.join(unset)}")
            return False
        if handle == 0:
            self._m._log(self._logger, "WARNING", "enqueueV3: the default stream adds synchronisation")
        arrays = {name: self._array(name) for name in self._io}
        self._m.enqueue(handle, lambda: self._compute(arrays))
        return True

    def _array(self, name: str) -> Any:
        """The memory at a tensor's address."""
        shape, kind = self.get_tensor_shape(name), np.dtype(self._types[name])
        size = int(np.prod(shape)) * kind.itemsize
        memory = (ctypes.c_char * size).from_address(self._addresses[name])
        return np.frombuffer(memory, kind).reshape(shape)

    def _compute(self, arrays: dict[str, Any]) -> None:
        outputs = [name for name, side in self._io.items() if side == "OUTPUT"]
        feeds = {name: array.copy() for name, array in arrays.items() if name not in outputs}
        part = "stem" if "frames" in feeds else "head"
        hit = self._m.faults.hit
        for name, found in zip(outputs, native.session_of(self._model).run(outputs, feeds), strict=True):
            # every fault is asked, so that a counted one counts calls
            if any([self._wrong, hit("wrong_answers"), hit(f"{part}_wrong_answers")]):
                found = found + np.random.default_rng(0).normal(0, found.std() + 0.1, found.shape).astype(found.dtype)
            arrays[name][...] = found
        if hit("nan_answers"):
            arrays[outputs[0]].flat[0] = np.nan


class IInt8Calibrator(Native):
    """Only there or not, like the next: nothing here calibrates."""


class IInt8EntropyCalibrator2(IInt8Calibrator):
    pass


_CLASSES = (*building.CLASSES, native.IHostMemory, Runtime, ICudaEngine, EngineInspector, IExecutionContext,
            IInt8Calibrator, IInt8EntropyCalibrator2)
_ALIASES = {"float32": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32", "int64": "INT64", "bool": "BOOL",
            "uint8": "UINT8"}


def _nptype(trt_type: Any) -> type:
    found = NUMPY.get(getattr(trt_type, "name", ""))
    if found is None:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return found


def make(release: str, full_version: str | None = None) -> ModuleType:
    """The stand-in of a release. full_version: what `__version__` says, if not FULL_VERSION (another build, or a wheel's)."""
    where, m = tensorrt_table.where(), ModuleType("tensorrt")
    made: Any = m

    def there(owner: str, name: str) -> bool:
        return release in where.get((owner, name), ())

    def log(logger: Any, severity: str, text: str) -> None:
        made.messages.append((severity, text))
        logger.log(getattr(made.ILogger.Severity, severity), text)

    def run(handle: int, work: Callable[[], None]) -> None:
        work()

    made._release, made._major, made._log = release, int(release.split(".")[0]), log
    made._kind = lambda kind: getattr(made.DataType, kind if there("DataType", kind) else "INT32")
    made._typing_is_young = lambda: (10, 0) <= tuple(map(int, release.split(".")[:2])) < (10, 12)
    made.__version__ = full_version or FULL_VERSION[release]
    made.faults, made.device, made.build_s = native.Faults(), "Orin (stand-in), 8.7, 16 SM", 0.0
    made.builds, made.messages, made.released, made.streams = [], [], [], []
    made.live, made.before_cuda, made.enqueue = Counter(), lambda: None, run
    for name in tensorrt_table.ENUMS:
        if there("", name):
            sizes = {"itemsize": property(lambda self: np.dtype(_nptype(self)).itemsize)} if name == "DataType" else None
            setattr(made, name, native.enum(name, tensorrt_table.values(release, name), sizes))
    for cls in _CLASSES:
        if there("", cls.__name__):
            kept = {name: each for name, each in vars(cls).items()
                    if name not in ("__dict__", "__weakref__") and (name[0] == "_" or there(cls.__name__, name))}
            bases = tuple(getattr(made, base.__name__, base) for base in cls.__bases__)
            setattr(made, cls.__name__, type(cls.__name__, bases, {**kept, "_m": m, "__module__": "tensorrt"}))
    severities = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}
    made.ILogger.Severity = made.Logger.Severity = made._severity = native.enum("Severity", severities)
    for name in severities:
        for owner in (made.ILogger, made.Logger):
            setattr(owner, name, getattr(made.ILogger.Severity, name))
    for name, kind in _ALIASES.items():
        if there("", name):
            setattr(made, name, getattr(made.DataType, kind))
    made.nptype, made.volume = _nptype, lambda iterable: math.prod(iterable)
    return m
