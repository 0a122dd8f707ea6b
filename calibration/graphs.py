"""Cutting and joining the student's ONNX graphs, so that tools see the part that they are meant to change and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper
from onnx.utils import Extractor

LEARNED = ("Conv", "Relu")
"""Operators of the stem that hold its arithmetic. The rest (plain cell means, joining, turning) stays in FP32."""

MAX_IR = 10
"""Newest file version that TensorRT 10.3's parser knows."""


class GraphError(RuntimeError):
    """The graph is not shaped as a student's: exported by another release, or already converted."""


def learned_part(stem: ModelProto) -> ModelProto:
    """The stem's convolutions alone, from its input to the last one's output, both float32."""
    last = [node for node in stem.graph.node if node.op_type in LEARNED]
    if not last:
        raise GraphError("the stem holds no convolution; export the student again with physvlm-lab export")
    inputs = [each.name for each in stem.graph.input]
    return Extractor(_inferred(stem)).extract_model(inputs, [last[-1].output[0]])


def rejoined(stem: ModelProto, learned: ModelProto) -> ModelProto:
    """The stem with its convolutions replaced by `learned`, which another tool made of `learned_part`.

    The plain cell means are so taken from the frames as they came: rounding to 8 bits before averaging is what would hide
    a weak pulse.
    """
    joined = copy.deepcopy(stem)
    rest = [node for node in joined.graph.node if node.op_type not in LEARNED]
    replace_nodes(joined, [*learned.graph.node, *rest], list(learned.graph.initializer))
    del joined.opset_import[:]
    joined.opset_import.extend(each for each in learned.opset_import if each.domain in ("", "ai.onnx"))
    joined.ir_version = min(max(stem.ir_version, learned.ir_version), MAX_IR)
    checker.check_model(joined, full_check=True)
    return joined


def packed(model: ModelProto, least_values: int = 256) -> ModelProto:
    """Every constant kept once, and the large float32 ones as FP16 with a Cast behind: half the bytes, computed in FP32."""
    model = copy.deepcopy(model)
    constants = {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in model.graph.node if is_constant(node)}
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer} | constants
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    name_of = {name: first.setdefault((a.dtype.str, a.shape, a.tobytes()), name) for name, a in arrays.items()}
    kept, casts = [], []
    for name in dict.fromkeys(name_of.values()):
        if arrays[name].dtype == np.float32 and arrays[name].size >= least_values:
            kept.append(numpy_helper.from_array(arrays[name].astype(np.float16), f"{name}_fp16"))
            casts.append(helper.make_node("Cast", [f"{name}_fp16"], [name], name=f"{name}_up", to=TensorProto.FLOAT))
        else:
            kept.append(numpy_helper.from_array(arrays[name], name))
    nodes = [node for node in model.graph.node if not is_constant(node)]
    for node in nodes:
        node.input[:] = [name_of.get(each, each) for each in node.input]
    replace_nodes(model, [*casts, *nodes], kept)
    checker.check_model(model, full_check=True)
    return model


def fixed_convolutions(model: ModelProto) -> list[str]:
    """Names of the convolutions with a constant kernel: wavelet filters and running means.

    What they take off is ten times what remains, so they are no place for FP16. Learned kernels are initializers.
    """
    learned = {each.name for each in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] not in learned]


def is_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and node.attribute[0].name == "value"


def replace_nodes(model: ModelProto, nodes: list[NodeProto], initializers: list[Any]) -> None:
    """In place; whatever was known of the shapes in between is dropped with the old nodes."""
    del model.graph.value_info[:]
    for kept, new in ((model.graph.node, nodes), (model.graph.initializer, initializers)):
        new = [copy.deepcopy(each) for each in new]
        del kept[:]
        kept.extend(new)


def _inferred(model: ModelProto) -> ModelProto:
    from onnx import shape_inference

    return shape_inference.infer_shapes(model)
