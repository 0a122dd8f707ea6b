"""A stand-in for torch2trt 0.5.0: its hooks on torch's functions, its gaps, and a TensorRT network that computes with numpy.

`make(trt, models)` gives the module. The real converters are not copied: where torch2trt 0.5.0 has one, the stand-in's checks
what TensorRT would check (every input known, equal ranks, no negative axis) and takes torch's own answer. What our converters
put into the network is computed with numpy, so that a wrong one gives wrong values. models: ONNX bytes by the names of the
inputs; the engine is the one that the stand-in TensorRT builds of them.
"""

from __future__ import annotations

import copy
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

HAS = ("torch.nn.functional.conv2d", "torch.nn.functional.relu", "torch.nn.functional.avg_pool2d", "torch.cat", "torch.stack",
       "torch.nn.functional.linear", "torch.nn.functional.softmax", "torch.sqrt", "torch.log", "torch.abs", "torch.sigmoid",
       *(f"torch.Tensor.{name}" for name in (
           "flatten", "transpose", "permute", "reshape", "clamp", "max", "sum", "mean", "__getitem__", "__add__", "__radd__",
           "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__matmul__", "__pow__", "__neg__")))
"""Those of 0.5.0's converters that the student could meet."""

LACKS = ("torch.softmax", "torch.Tensor.norm")
"""Listed, but with nothing behind them."""


class Value:
    """A TensorRT tensor that knows its numbers."""

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)
        self.shape = self.array.shape


class Layer:
    def __init__(self, compute: Any) -> None:
        self._compute = compute

    def get_output(self, index: int) -> Value:
        return Value(self._compute(self))


class Network:
    """As much of INetworkDefinition as our converters use. `added` counts layers by name."""

    def __init__(self) -> None:
        self.added: dict[str, int] = {}

    def _layer(self, name: str, compute: Any) -> Layer:
        self.added[name] = self.added.get(name, 0) + 1
        return Layer(compute)

    def add_constant(self, shape: tuple[int, ...], weights: Any) -> Layer:
        # TensorRT reads the memory as it lies
        return self._layer("constant", lambda layer: weights.ravel(order="K").reshape(shape))

    def add_elementwise(self, a: Value, b: Value, op: Any) -> Layer:
        if len(a.shape) != len(b.shape):
            raise RuntimeError(f"IElementWiseLayer: ranks differ: {a.shape} and {b.shape}")
        return self._layer("elementwise", lambda layer: {"PROD": np.multiply, "SUM": np.add}[op.name](a.array, b.array))

    def add_unary(self, a: Value, op: Any) -> Layer:
        return self._layer("unary", lambda layer: {"SQRT": np.sqrt}[op.name](a.array))

    def add_reduce(self, a: Value, op: Any, axes: int, keep_dims: bool) -> Layer:
        dims = tuple(i for i in range(len(a.shape)) if axes >> i & 1)
        if not dims or axes >> len(a.shape):
            raise RuntimeError(f"IReduceLayer: axes {axes:#b} of {a.shape}")
        return self._layer("reduce", lambda layer: {"SUM": np.sum, "AVG": np.mean}[op.name](a.array, dims, keepdims=keep_dims))

    def add_softmax(self, a: Value) -> Layer:
        def compute(layer: Any) -> Any:
            powers = np.exp(a.array - a.array.max())
            return powers / powers.sum(layer.axes.bit_length() - 1, keepdims=True)

        return self._layer("softmax", compute)

    def add_matrix_multiply(self, a: Value, op_a: Any, b: Value, op_b: Any) -> Layer:
        if len(a.shape) != len(b.shape) or len(a.shape) < 2:
            raise RuntimeError(f"IMatrixMultiplyLayer: ranks differ: {a.shape} and {b.shape}")
        assert op_a.name == op_b.name == "NONE"
        return self._layer("matrix_multiply", lambda layer: a.array @ b.array)


def add_missing_trt_tensors(network: Any, tensors: list[Any]) -> list[Value]:
    """Constants lose the ones at the front of their shape, as in 0.5.0."""
    found = []
    for each in tensors:
        if not hasattr(each, "_trt"):
            array = each.detach().numpy() if isinstance(each, torch.Tensor) else np.float32([each])
            while array.ndim and array.shape[0] == 1 and isinstance(each, torch.Tensor):
                array = array[0]
            found.append(Value(array))
        else:
            found.append(each._trt)
    return found


def broadcast_trt_tensors(network: Any, values: list[Value], ndim: int) -> list[Value]:
    return [Value(each.array.reshape((1,) * (ndim - len(each.shape)) + each.shape)) for each in values]


def get_arg(ctx: Any, name: str, pos: int, default: Any) -> Any:
    if name in ctx.method_kwargs:
        return ctx.method_kwargs[name]
    return ctx.method_args[pos] if len(ctx.method_args) > pos else default


def _flat(args: Any) -> list[Any]:
    return [each for arg in args for each in (_flat(arg) if isinstance(arg, (tuple, list)) else [arg])]


def _has(name: str) -> Any:
    """What the stand-in does for a converter that torch2trt has."""

    def convert(ctx: Any) -> None:
        output = ctx.method_return
        output = output[0] if isinstance(output, tuple) and not isinstance(output, torch.Tensor) else output
        known = [each for each in _flat(ctx.method_args) if isinstance(each, torch.Tensor) and hasattr(each, "_trt")]
        if name == "torch.Tensor.__getitem__" and not known:
            return
        if name in ("torch.Tensor.sum", "torch.Tensor.mean"):
            dims = get_arg(ctx, "dim", 1, ())
            _ = [1 << each for each in (dims if isinstance(dims, tuple) else (dims,))]  # as 0.5.0 reckons axes
        if name == "torch.Tensor.__matmul__":
            a, b = add_missing_trt_tensors(ctx.network, list(ctx.method_args[:2]))
            ctx.network.add_matrix_multiply(a, SimpleNamespace(name="NONE"), b, SimpleNamespace(name="NONE"))
        output._trt = Value(output.detach().numpy())

    return convert


def make(trt: Any, models: dict[tuple[str, ...], bytes]) -> ModuleType:
    made: Any = ModuleType("torch2trt")
    made.__version__, made.CONVERTERS, made.calls, made.networks = "0.5.0", {}, [], []
    made.get_arg, made.add_missing_trt_tensors = get_arg, add_missing_trt_tensors
    made.broadcast_trt_tensors = broadcast_trt_tensors

    def holder(method: str) -> tuple[Any, str]:
        *path, last = method.split(".")[1:]
        found: Any = torch
        for part in path:
            found = getattr(found, part)
        return found, last

    def tensorrt_converter(method: str, is_real: bool = True) -> Any:
        def register(converter: Any) -> Any:
            owner, name = holder(method)
            made.CONVERTERS[method] = {"converter": converter, "is_real": is_real, "owner": owner, "name": name,
                                       "method_impl": copy.deepcopy(getattr(owner, name))}
            return converter

        return register

    def hooked(ctx: Any, entry: dict[str, Any]) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            skip, ctx.lock = ctx.lock, ctx.lock or entry["is_real"]
            output = entry["method_impl"](*args, **kwargs)
            if not skip:
                ctx.method_args, ctx.method_kwargs, ctx.method_return = args, kwargs, output
                entry["converter"](ctx)
                ctx.lock = False
            return output

        return wrapper

    def convert(module: Any, inputs: list[Any], input_names: list[str], output_names: list[str], **asked: Any) -> Any:
        made.calls.append({"input_names": input_names, "output_names": output_names, **asked})
        ctx = SimpleNamespace(network=Network(), lock=False)
        made.networks.append(ctx.network)
        for each in inputs:
            each._trt = Value(each.numpy())
        try:
            for entry in made.CONVERTERS.values():
                setattr(entry["owner"], entry["name"], hooked(ctx, entry))
            outputs = module(*inputs)
        finally:
            for entry in made.CONVERTERS.values():
                setattr(entry["owner"], entry["name"], entry["method_impl"])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        made.outputs = [(each._trt.array, each.numpy()) for each in outputs]
        return SimpleNamespace(engine=_engine(trt, models[tuple(input_names)], inputs, input_names, asked["fp16_mode"]))

    made.tensorrt_converter, made.torch2trt = tensorrt_converter, convert
    for name in HAS:
        tensorrt_converter(name)(_has(name))
    for name in LACKS:
        tensorrt_converter(name, is_real=False)(lambda ctx: None)
    return made


def _engine(trt: Any, model: bytes, inputs: list[Any], names: list[str], fp16: bool) -> Any:
    """Weakly typed, as torch2trt builds; None where TensorRT makes no plan."""
    logger = trt.Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    trt.OnnxParser(network, logger).parse(model)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, each in zip(names, inputs, strict=True):
        profile.set_shape(name, *[tuple(each.shape)] * 3)
    config.add_optimization_profile(profile)
    if fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    plan = builder.build_serialized_network(network, config)
    return None if plan is None else SimpleNamespace(serialize=lambda: plan)
