"""What every class of the stand-in TensorRT is made of: enums, argument checks, counting, faults, ONNX Runtime."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime

FAULTS = ("parse", "build_serialized_network", "strongly_typed", "strongly_typed_wrong", "create_timing_cache",
          "set_timing_cache", "deserialize_cuda_engine", "create_execution_context", "set_input_shape", "set_tensor_address",
          "execute_async_v3", "wrong_answers", "nan_answers", "stem_wrong_answers", "head_wrong_answers")
"""A call of that name fails. strongly_typed, strongly_typed_wrong: on 10.0 to 10.11 alone, such a build fails, or its engine
answers wrongly for ever. The *_answers: engines answer wrongly, or NaN, while this is set (stem: the one that takes `frames`).
"""

NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_,
          "UINT8": np.uint8}
ORT = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int8)": "INT8", "tensor(int32)": "INT32",
        "tensor(int64)": "INT64", "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8"}
REFUSED = tuple(getattr(onnxruntime.capi.onnxruntime_pybind11_state, name) for name in
                 ("Fail", "RuntimeException", "InvalidArgument", "InvalidProtobuf", "InvalidGraph", "NotImplemented"))


class Faults:
    """Which calls fail, and how often still."""

    def __init__(self) -> None:
        self._left: dict[str, float] = {}

    def add(self, name: str, times: float = math.inf) -> None:
        if name not in FAULTS:
            raise KeyError(f"no fault {name}: one of {', '.join(FAULTS)}")
        self._left[name] = times

    def discard(self, name: str) -> None:
        self._left.pop(name, None)

    def hit(self, name: str) -> bool:
        left = self._left.get(name, 0)
        self._left[name] = left - 1
        return left > 0


@lru_cache(maxsize=8)
def session_of(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # its fusions round Q/DQ give wrong numbers in FP16 graphs
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@lru_cache(maxsize=64)
def output_shapes(model: bytes, inputs: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, tuple[int, ...]]:
    """Found by running it on zeros: ONNX Runtime names an output's open sizes, but does not reckon them."""
    session = session_of(model)
    kinds = {each.name: NUMPY[ORT[each.type]] for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    found = session.run(names, {name: np.zeros(shape, kinds[name]) for name, shape in inputs})
    return {name: each.shape for name, each in zip(names, found, strict=True)}


def integer(call: str, value: object) -> int:
    if isinstance(value, (float, np.floating)) or not (hasattr(value, "__int__") or hasattr(value, "__index__")):
        raise TypeError(f"{call}(): incompatible function arguments: {value!r} is no integer")
    return int(value)  # type: ignore[call-overload]


def want(call: str, value: object, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{call}(): incompatible function arguments: {value!r}")
    return value


def shape_of(call: str, value: object) -> tuple[int, ...]:
    return tuple(integer(call, size) for size in want(call, value, (tuple, list)))


class Member:
    """A member of an enum. Like the real ones it is no int: int() gives the number, and `1 << member` is a TypeError."""

    def __init__(self, enum: str, name: str, value: int) -> None:
        self._enum, self.name, self.value = enum, name, value

    def __int__(self) -> int:
        return self.value

    __index__ = __int__

    def __repr__(self) -> str:
        return f"<{self._enum}.{self.name}: {self.value}>"

    def __str__(self) -> str:
        return f"{self._enum}.{self.name}"


def enum(name: str, members: dict[str, int], extra: dict[str, Any] | None = None) -> type:
    kind = type(name, (Member,), {"__module__": "tensorrt", **(extra or {})})
    made: dict[int, Any] = {}
    for member, value in members.items():  # two names of one number are one member
        setattr(kind, member, made.setdefault(value, kind(name, member, value)))
    kind.__members__ = {member: getattr(kind, member) for member in members}  # type: ignore[attr-defined]
    return kind


class Native:
    """What every class of the module shares: no attributes but its own, counted, and not to be made by hand unless it has
    an `__init__` of its own. `_m` is the module."""

    _m: Any

    def __init__(self) -> None:
        raise TypeError(f"tensorrt.{type(self).__name__}: No constructor defined!")

    @classmethod
    def _make(cls, **fields: Any) -> Any:
        made = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(made, name, value)
        made._born()
        return made

    def _born(self) -> None:
        object.__setattr__(self, "_alive", self._class_name())
        self._m.live[self._alive] += 1

    def _class_name(self) -> str:
        return next(cls.__name__ for cls in type(self).__mro__ if cls.__module__ == "tensorrt")

    def __del__(self) -> None:
        alive = getattr(self, "_alive", None)
        if alive is not None:
            self._m.live[alive] -= 1
            if alive not in ("ILayer", "ITensor"):  # views, which own nothing
                self._m.released.append(alive)

    def __setattr__(self, name: str, value: object) -> None:
        if type(self).__module__ == "tensorrt" and name[0] != "_" and not hasattr(type(self), name):
            raise AttributeError(f"'tensorrt.{type(self).__name__}' object has no attribute '{name}'")
        object.__setattr__(self, name, value)


def field(name: str, kind: str, settable: bool = True) -> property:
    """A property over `_name`. kind: 'int', 'str' or a class of the module; a wrong type is a TypeError."""

    def put(self: Any, value: Any) -> None:
        if kind == "int":
            value = integer(name, value)
        elif kind == "str":
            want(name, value, str)
        elif value is not None or kind != "IProgressMonitor":
            initialised(want(name, value, getattr(self._m, kind)))
        setattr(self, f"_{name}", value)

    return property(lambda self: getattr(self, f"_{name}"), put if settable else None)


def initialised(made: Any) -> None:
    if isinstance(made, Native) and not hasattr(made, "_alive"):
        raise TypeError(f"tensorrt.{type(made).__name__}.__init__() must be called when overriding __init__")


class IHostMemory(Native):
    nbytes = property(lambda self: len(self._data))
    dtype = property(lambda self: self._m.DataType.INT8)

    def __bytes__(self) -> bytes:
        return self._data


