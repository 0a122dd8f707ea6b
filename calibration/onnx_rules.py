"""Whether TensorRT will take an ONNX file: operators and types by release, and the rules of explicit quantisation.

Read from tensorrt_operators.json beside this file, which says where each table comes from. A finding here is refused, or
silently slower or wrong, on the device. What a table cannot say (limits on an operator's attributes, which fusion is chosen)
only the device tells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

TABLES = Path(__file__).with_name("tensorrt_operators.json")

EVERY = "every release"
"""The release of a finding that does not depend on it."""

MAX_IR = 10
KERNEL_SHAPE_INFERRED = (10, 4)
"""From here on the parser works out the kernel of a Conv with quantised weights by itself."""

FP16_SCALES, FP16_SCALES_OPSET = (10, 0), 19

CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": 1}
"""Where the output channels of these operators' weights (input 1) lie; Gemm's move to 0 with transB."""

QDQ = ("QuantizeLinear", "DequantizeLinear")


class RuleError(RuntimeError):
    """A model breaks a rule of a release that it is claimed for; the message lists what, where and for which."""


@dataclass(frozen=True)
class Finding:
    """One broken rule. node: its name, or "" where the whole file is meant."""

    release: str
    node: str
    rule: str
    message: str

    def __str__(self) -> str:
        return f"TensorRT {self.release}: {self.rule}: {self.node + ': ' if self.node else ''}{self.message}"


Broken = tuple[str, str, str]
"""node, rule, message."""


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    return json.loads(TABLES.read_text(encoding="utf-8"))


def releases() -> tuple[str, ...]:
    """Every release that the tables know, oldest first."""
    return tuple(_tables()["releases"])


def check(model: ModelProto | Path | str, wanted: Sequence[str]) -> list[Finding]:
    """Everything about a model that these releases would not take; empty for a clean one.

    Raises ValueError for no release, or one that is not in the tables, and RuleError for a file that is no ONNX.
    """
    if not wanted or set(wanted) - set(releases()):
        raise ValueError(f"releases {', '.join(wanted) or 'none'}: choose from {', '.join(releases())}")
    graph = _Graph(model)
    found = [Finding(EVERY, *broken) for rule in (_file, _pairs, _weights, _convolutions) for broken in rule(graph)]
    for release in wanted:
        version = tuple(int(part) for part in release.split("."))
        table = _tables()["tables"][_tables()["releases"][release]]
        found += [Finding(release, *broken) for broken in _operators(graph, table, version)]
        found += [Finding(release, *broken) for broken in _by_version(graph, version)]
    return found


def assert_clean(model: ModelProto | Path | str, wanted: Sequence[str], what: str = "") -> None:
    """Raise RuleError with every finding. what: how the message calls a model that is not given as a file."""
    if found := check(model, wanted):
        name = what or (str(model) if isinstance(model, (str, Path)) else "the model")
        lines = "\n".join(f"  {finding}" for finding in found)
        raise RuleError(f"{name}: {len(found)} broken rule{'s' * (len(found) > 1)}:\n{lines}")


class _Graph:
    """A model's graph as the rules ask about it: who makes a tensor, who reads it, its type, and its value if constant."""

    def __init__(self, model: ModelProto | Path | str) -> None:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper

        if isinstance(model, (str, Path)):
            try:
                model = onnx.load(str(model))
            except (OSError, DecodeError) as e:
                raise RuleError(f"{model} cannot be read as ONNX: {e}") from e
        self.model = model
        self.nodes = list(model.graph.node)
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        self.attributes = {id(node): {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                           for node in self.nodes}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[tuple[NodeProto, int]]] = {}
        for node in self.nodes:
            for place, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, place))
        self.constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and "value" in self.attributes[id(node)]:
                self.constants[node.output[0]] = numpy_helper.to_array(self.attributes[id(node)]["value"])
        self.outputs = {value.name for value in model.graph.output}
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]
        self.invalid, self.types = self._inferred()

    def _inferred(self) -> tuple[str, dict[str, str]]:
        """(what is wrong with the file as ONNX, or ""; element type of every tensor by name)."""
        import onnx

        wrong = ""
        try:
            onnx.checker.check_model(self.model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
            wrong = " ".join(str(e).split())[:300]
        graph = onnx.shape_inference.infer_shapes(self.model).graph
        types = {i.name: _type(i.data_type) for i in graph.initializer}
        for value in (*graph.value_info, *graph.input, *graph.output):
            types[value.name] = _type(value.type.tensor_type.elem_type)
        return wrong, types

    def named(self, node: NodeProto) -> str:
        return node.name or f"{node.op_type} that makes {node.output[0]}"

    def of_type(self, *kinds: str) -> Iterator[NodeProto]:
        return (node for node in self.nodes if node.op_type in kinds)

    def constant_behind(self, node: NodeProto) -> NDArray | None:
        """The constant that a QuantizeLinear or DequantizeLinear reads, directly or through its pair; None for a signal."""
        name = node.input[0]
        maker = self.maker.get(name)
        if maker is not None and node.op_type == "DequantizeLinear" and maker.op_type == "QuantizeLinear":
            name = maker.input[0]
        return self.constants.get(name)


_NAMES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "DOUBLE": "FP64", "FLOAT8E4M3FN": "FP8", "FLOAT4E2M1": "FP4"}


def _type(number: int) -> str:
    """The tables' name of an ONNX element type; "" where it is not known."""
    from onnx import TensorProto

    name = TensorProto.DataType.Name(number)
    return "" if name == "UNDEFINED" else _NAMES.get(name, name)


# --- rules of every release


def _file(graph: _Graph) -> Iterator[Broken]:
    """Of the file as a whole."""
    model = graph.model
    if graph.invalid:
        yield "", "invalid", f"not valid ONNX: {graph.invalid}"
    if model.ir_version > MAX_IR:
        yield "", "ir", f"IR version {model.ir_version}; expected at most {MAX_IR}"
    for domain in sorted({o.domain for o in model.opset_import} - {"", "ai.onnx"}):
        yield "", "domain", f"imports the operators of {domain}; expected ONNX's own alone (drop the import if unused)"
    if model.functions:
        yield "", "domain", f"defines the function {model.functions[0].name}; expected it written out"
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield graph.named(node), "domain", f"operator {node.domain}.{node.op_type}; expected ONNX's own alone"
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            yield graph.named(node), "subgraph", f"{node.op_type} holds a graph of its own; write it out"
    for name in (*graph.inputs, *sorted(graph.outputs)):
        if graph.types.get(name) != "FP32":
            yield name, "io", f"is {graph.types.get(name) or 'of unknown type'}; inputs and outputs are FP32 in every artefact"
    for node in graph.of_type("DequantizeLinear"):
        if node.output[0] in graph.outputs:
            yield graph.named(node), "dq_output", f"makes the graph's output {node.output[0]}; drop this pair"


def _pairs(graph: _Graph) -> Iterator[Broken]:
    """Of every QuantizeLinear and DequantizeLinear: int8, symmetric, constant positive scale, one scale for a signal."""
    for node in graph.of_type(*QDQ):
        name, quantises = graph.named(node), node.op_type == "QuantizeLinear"
        kind = graph.types.get(node.output[0] if quantises else node.input[0])
        if kind == "INT32":
            yield name, "bias", "dequantises int32, which is a quantised bias; biases stay float"
        elif kind != "INT8":
            yield name, "int8", f"quantised type {kind or 'unknown'}; expected INT8 (a missing zero point means uint8)"
        if len(node.input) > 2 and node.input[2]:
            zero = graph.constants.get(node.input[2])
            if zero is None or np.any(zero != 0):
                yield name, "zero_point", f"zero point {_shown(zero)}; expected constant 0 (symmetric)"
        scale = graph.constants.get(node.input[1])
        if scale is None:
            yield name, "scale_constant", f"scale {node.input[1]} is not a constant"
        elif not scale.size or not np.all(np.isfinite(scale.astype(np.float64))) or not np.all(scale > 0):
            yield name, "scale_value", f"scale {_shown(scale)}; expected every one above 0 and finite (floor dead channels)"
        elif scale.size > 1 and graph.constant_behind(node) is None:
            yield name, "activation_scale", f"{scale.size} scales on a signal; expected one for the whole tensor"
        yield from _unpaired(graph, node, name)


def _shown(values: NDArray | None) -> str:
    """A value that a rule refuses, of many the least."""
    return "that is computed" if values is None else f"{values.min():g}" if values.size else "that is empty"


def _unpaired(graph: _Graph, node: NodeProto, name: str) -> Iterator[Broken]:
    if node.op_type == "QuantizeLinear":
        others = [reader.op_type for reader, _ in graph.readers.get(node.output[0], []) if reader.op_type != QDQ[1]]
        if others or node.output[0] in graph.outputs:
            yield name, "unpaired", f"its int8 goes to {others[0] if others else 'an output'}; expected DequantizeLinear alone"
        return
    maker = graph.maker.get(node.input[0])
    if graph.constant_behind(node) is None and (maker is None or maker.op_type != "QuantizeLinear"):
        yield name, "unpaired", f"reads {node.input[0]}; expected a QuantizeLinear's output or a constant"


def _weights(graph: _Graph) -> Iterator[Broken]:
    """Of quantised constants: weights have one scale for each output channel, along that axis; biases are float."""
    for node in graph.of_type("DequantizeLinear"):
        value, scale = graph.constant_behind(node), graph.constants.get(node.input[1])
        maker = graph.maker.get(node.input[0])
        for reader, place in graph.readers.get(node.output[0], []):
            if reader.op_type in ("Conv", "ConvTranspose", "Gemm") and place == 2:
                yield graph.named(reader), "bias", f"its bias comes from {graph.named(node)}; biases stay float"
            elif value is not None and scale is not None:
                for quantiser in (node, maker) if maker is not None and maker.op_type == "QuantizeLinear" else (node,):
                    yield from _weight_axis(graph, quantiser, value, reader, place)


def _weight_axis(graph: _Graph, quantiser: NodeProto, value: NDArray, reader: NodeProto, place: int) -> Iterator[Broken]:
    scale = graph.constants.get(quantiser.input[1])
    if scale is None or not value.ndim:
        return
    name, where = graph.named(quantiser), f"of {graph.named(reader)}"
    if reader.op_type not in CHANNEL_AXIS or place != 1:
        if scale.size > 1:
            yield name, "weight_axis", f"{scale.size} scales on input {place} {where}; expected one: it is no weight"
        return
    given = graph.attributes[id(reader)].get("transB", 0) if reader.op_type == "Gemm" else 0
    axis = (0 if given else CHANNEL_AXIS[reader.op_type]) % value.ndim
    channels = value.shape[axis]
    if scale.size != channels or scale.ndim > 1:
        yield name, "weight_axis", (f"scale of shape {scale.shape} on the weights {value.shape} {where}; expected one for each "
                                    f"of {channels} output channels")
    elif channels > 1 and (own := graph.attributes[id(quantiser)].get("axis", 1) % value.ndim) != axis:
        yield name, "weight_axis", f"scales along axis {own} of the weights {value.shape} {where}; expected axis {axis}"


def _convolutions(graph: _Graph) -> Iterator[Broken]:
    for node in _quantised_convolutions(graph):
        value = graph.constant_behind(graph.maker[node.input[1]])
        if value is not None and value.ndim == 3:
            yield graph.named(node), "conv_1d", ("a 1-D convolution with quantised weights is not fused; write it as 2-D "
                                                 "(1, k), or leave it float")


def _quantised_convolutions(graph: _Graph) -> list[NodeProto]:
    return [node for node in graph.of_type("Conv", "ConvTranspose")
            if (maker := graph.maker.get(node.input[1])) is not None and maker.op_type == "DequantizeLinear"]


# --- rules that depend on the release


def _operators(graph: _Graph, table: dict[str, Any], version: tuple[int, ...]) -> Iterator[Broken]:
    """The opset, operators and their types, by the release's table."""
    low, high = table["opset"]
    if not low <= graph.opset <= high:
        yield "", "opset", f"opset {graph.opset}; expected {low} to {high}"
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            continue  # told by `domain`
        allowed = table["supported"].get(node.op_type)
        if allowed is None:
            listed = "is listed as not supported" if node.op_type in table["unsupported"].split() else "is in no list"
            yield graph.named(node), "operator", f"{node.op_type} {listed}"
            continue
        kinds = allowed.split() + (["INT64"] if version < (10,) and "INT32" in allowed.split() else [])  # 8.x narrows INT64
        for tensor in _judged(graph, node):
            if (kind := graph.types.get(tensor, "")) not in kinds:
                yield graph.named(node), "type", f"{node.op_type} on {kind or 'an unknown type'} ({tensor}); expected {allowed}"


def _judged(graph: _Graph, node: NodeProto) -> list[str]:
    """Tensors that a table's types are about: the data (T in ONNX's own signature), and anything of a float type.

    Of a quantiser only its input: its other types have rules of their own. A constant that only quantisers read is theirs.
    """
    import onnx

    if node.op_type in QDQ:
        return list(node.input[:1])
    if node.op_type == "Constant":
        readers = graph.readers.get(node.output[0], [])
        return [] if readers and all(reader.op_type in QDQ for reader, _ in readers) else list(node.output)
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opset)
    except onnx.defs.SchemaError:
        return []  # not an operator of this opset: told by `invalid`
    out = []
    for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for place, name in enumerate(names):
            variable = formal[min(place, len(formal) - 1)].type_str if formal else ""  # the last may repeat
            if name and (variable == "T" or graph.types.get(name, "").startswith(("FP", "BF"))):
                out.append(name)
    return list(dict.fromkeys(out))


def _by_version(graph: _Graph, version: tuple[int, ...]) -> Iterator[Broken]:
    for node in graph.of_type(*QDQ):
        name, scale = graph.named(node), graph.types.get(node.input[1], "")
        if scale == "FP16" and (version < FP16_SCALES or graph.opset < FP16_SCALES_OPSET):
            yield name, "fp16_scale", (f"FP16 scale at opset {graph.opset}; expected opset {FP16_SCALES_OPSET} and TensorRT "
                                       f"{FP16_SCALES[0]}, or an FP32 scale")
        if node.op_type == "QuantizeLinear" and version >= (10,) and scale != (kind := graph.types.get(node.input[0], "")):
            yield name, "scale_type", f"scale is {scale}, its input {kind}; strong typing wants them equal"
    if version < KERNEL_SHAPE_INFERRED:
        for node in _quantised_convolutions(graph):
            if "kernel_shape" not in graph.attributes[id(node)]:
                yield graph.named(node), "kernel_shape", "quantised weights and no kernel_shape; the parser refuses it"
