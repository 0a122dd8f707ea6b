"""The check of ONNX files against TensorRT releases: every rule has a small model that breaks it."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from calibration.onnx_rules import EVERY, TABLES, RuleError, assert_clean, check, releases
from engines.sidecar import DEFAULT_WEIGHTS, load

pytestmark = pytest.mark.lab
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CLAIMED = ("8.6.1", "10.3.0", "10.7.0", "10.13.3", "10.16.1", "11.0.0", "11.4.0")
CHANNELS, KERNELS = 4, 6


class Graph:
    """A quantised 2-D convolution from `x` to `y`, as the stem has three, in pieces that a test may change."""

    def __init__(self, opset: int = 17, dtype: type = np.float32, shape: tuple[int, ...] = (3, 3)) -> None:
        self.opset, self.ir, self.domains, self.dtype = opset, 8, [], dtype
        self.kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
        self.io = ["FLOAT", "FLOAT"]
        self.size = (1, CHANNELS) + (8,) * len(shape)
        rng = np.random.default_rng(1)
        self.constants = {
            "w": rng.integers(-127, 128, (KERNELS, CHANNELS, *shape)).astype(np.int8), "b": np.zeros(KERNELS, dtype),
            "w_scale": np.full(KERNELS, 0.01, dtype), "w_zero": np.zeros(KERNELS, np.int8),
            "x_scale": np.array(0.02, dtype), "x_zero": np.array(0, np.int8)}
        source = "x" if dtype == np.float32 else "x16"
        result = "y" if dtype == np.float32 else "y16"
        self.nodes = {
            "quantise": ("QuantizeLinear", [source, "x_scale", "x_zero"], ["xq"], {}),
            "dequantise": ("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"], {}),
            "weights": ("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], {"axis": 0}),
            "conv": ("Conv", ["xd", "wd", "b"], [result], {"kernel_shape": list(shape), "pads": [1] * 2 * len(shape)})}
        if dtype == np.float16:
            self.nodes = {"in": ("Cast", ["x"], ["x16"], {"to": TensorProto.FLOAT16}), **self.nodes,
                          "out": ("Cast", ["y16"], ["y"], {"to": TensorProto.FLOAT})}

    def model(self) -> onnx.ModelProto:
        nodes = [helper.make_node(op, inputs, outputs, name=name, **attributes)
                 for name, (op, inputs, outputs, attributes) in self.nodes.items()]
        used = {name for _, inputs, _, _ in self.nodes.values() for name in inputs}
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", getattr(TensorProto, self.io[0]), self.size)],
            [helper.make_tensor_value_info("y", getattr(TensorProto, self.io[1]), [None] * len(self.size))],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items() if name in used])
        domains = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(name, 1) for name in self.domains)]
        return helper.make_model(graph, opset_imports=domains, ir_version=self.ir)

    def after(self, *nodes: tuple) -> None:
        """Put these between the convolution and the output."""
        op, inputs, _, attributes = self.nodes["conv"]
        self.nodes["conv"] = (op, inputs, ["c"], attributes)
        self.nodes |= {f"after{i}": node for i, node in enumerate(nodes)}


def rules(graph: Graph, *wanted: str) -> set[str]:
    return {finding.rule for finding in check(graph.model(), wanted or ("10.3.0",))}


def set_constant(name: str, value: np.ndarray) -> Callable[[Graph], None]:
    return lambda graph: graph.constants.update({name: value})


def set_node(name: str, *node: object) -> Callable[[Graph], None]:
    return lambda graph: graph.nodes.update({name: node})


def set_field(**fields: object) -> Callable[[Graph], None]:
    return lambda graph: graph.__dict__.update(fields)


def computed(name: str, value: np.ndarray) -> Callable[[Graph], None]:
    """The constant comes out of an operator."""
    def change(graph: Graph) -> None:
        graph.constants = {key: kept for key, kept in graph.constants.items() if key != name} | {f"{name}_was": value}
        graph.nodes = {"copy": ("Identity", [f"{name}_was"], [name], {}), **graph.nodes}
    return change


def quantised_bias(graph: Graph) -> None:
    graph.constants |= {"b32": np.zeros(KERNELS, np.int32), "b_scale": np.full(KERNELS, 2e-4, np.float32)}
    graph.nodes = {"bias": ("DequantizeLinear", ["b32", "b_scale"], ["b"], {"axis": 0}), **graph.nodes}


def int32_added(graph: Graph) -> None:
    """A bias that is added after the convolution."""
    graph.constants |= {"b32": np.zeros((1, KERNELS, 1, 1), np.int32), "b_scale": np.array(2e-4, np.float32)}
    graph.after(("DequantizeLinear", ["b32", "b_scale"], ["bd"], {}), ("Add", ["c", "bd"], ["y"], {}))


def int8_bias(graph: Graph) -> None:
    graph.constants |= {"b8": np.zeros(KERNELS, np.int8), "b_scale": np.full(KERNELS, 2e-4, np.float32)}
    graph.nodes = {"bias": ("DequantizeLinear", ["b8", "b_scale", "w_zero"], ["b"], {"axis": 0}), **graph.nodes}


def per_channel_signal(graph: Graph) -> None:
    graph.constants |= {"x_scale": np.full(CHANNELS, 0.02, np.float32), "x_zero": np.zeros(CHANNELS, np.int8)}
    for name in ("quantise", "dequantise"):
        graph.nodes[name] = (*graph.nodes[name][:3], {"axis": 1})


def wrong_axis(graph: Graph) -> None:
    graph.constants |= {"w_scale": np.full(CHANNELS, 0.01, np.float32), "w_zero": np.zeros(CHANNELS, np.int8)}
    graph.nodes["weights"] = (*graph.nodes["weights"][:3], {"axis": 1})


def square_wrong_axis(graph: Graph) -> None:
    """As many input as output channels: the scales' number alone cannot tell."""
    graph.constants |= {"w": graph.constants["w"][:CHANNELS], "b": np.zeros(CHANNELS, np.float32)}
    wrong_axis(graph)


def one_scale(graph: Graph) -> None:
    graph.constants |= {"w_scale": np.array(0.01, np.float32), "w_zero": np.array(0, np.int8)}


def dq_as_output(graph: Graph) -> None:
    graph.after(("QuantizeLinear", ["c", "x_scale", "x_zero"], ["cq"], {}),
                ("DequantizeLinear", ["cq", "x_scale", "x_zero"], ["y"], {}))


def many_scales_of_no_weight(graph: Graph) -> None:
    graph.constants |= {"k": np.ones((1, KERNELS, 1, 1), np.int8)}
    graph.after(("DequantizeLinear", ["k", "w_scale", "w_zero"], ["kd"], {"axis": 1}), ("Mul", ["c", "kd"], ["y"], {}))


def raw_int8(graph: Graph) -> None:
    graph.after(("Cast", ["c"], ["c8"], {"to": TensorProto.INT8}),
                ("DequantizeLinear", ["c8", "x_scale", "x_zero"], ["cd"], {}), ("Relu", ["cd"], ["y"], {}))


def int8_to_others(graph: Graph) -> None:
    graph.after(("Cast", ["xq"], ["xf"], {"to": TensorProto.FLOAT}), ("ReduceMean", ["xf"], ["xm"], {"keepdims": 1}),
                ("Add", ["c", "xm"], ["y"], {}))


def followed_by(op: str, *more: str, **attributes: object) -> Callable[[Graph], None]:
    return lambda graph: graph.after((op, ["c", *more], ["y"], attributes))


def in_double(graph: Graph) -> None:
    graph.after(("Cast", ["c"], ["cd"], {"to": TensorProto.DOUBLE}), ("Relu", ["cd"], ["cr"], {}),
                ("Cast", ["cr"], ["y"], {"to": TensorProto.FLOAT}))


def with_a_condition(graph: Graph) -> None:
    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node("Identity", ["c"], [name])], name, [],
                                 [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
    graph.constants |= {"yes": np.array(True)}
    graph.after(("If", ["yes"], ["y"], {"then_branch": branch("a"), "else_branch": branch("b")}))


BREAKERS: list[tuple[str, Callable[[Graph], object]]] = [
    ("ir", set_field(ir=11)), ("domain", set_field(domains=["com.microsoft"])), ("opset", set_field(opset=21, ir=10)),
    ("io", lambda graph: graph.io.__setitem__(0, "FLOAT16")), ("subgraph", with_a_condition),
    ("invalid", set_node("conv", "Conv", ["xd", "nowhere", "b"], ["y"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})),
    ("dq_output", dq_as_output), ("bias", quantised_bias), ("bias", int8_bias), ("bias", int32_added),
    ("int8", lambda graph: graph.constants.update(x_zero=np.array(0, np.uint8))),
    ("int8", set_node("quantise", "QuantizeLinear", ["x", "x_scale"], ["xq"], {})),
    ("zero_point", set_constant("x_zero", np.array(3, np.int8))),
    ("zero_point", set_constant("w_zero", np.array([0, 0, 0, 0, 0, -1], np.int8))),
    ("zero_point", computed("x_zero", np.array(0, np.int8))),
    ("scale_constant", computed("x_scale", np.array(0.02, np.float32))),
    ("scale_value", set_constant("x_scale", np.array(0.0, np.float32))),
    ("scale_value", set_constant("w_scale", np.array([1, 1, 1, -1, 1, 1], np.float32))),
    ("scale_value", set_constant("w_scale", np.array([1, 1, np.inf, 1, 1, 1], np.float32))),
    ("scale_value", set_constant("x_scale", np.array(np.nan, np.float32))),
    ("activation_scale", per_channel_signal), ("weight_axis", wrong_axis), ("weight_axis", square_wrong_axis),
    ("weight_axis", one_scale), ("weight_axis", many_scales_of_no_weight), ("unpaired", raw_int8), ("unpaired", int8_to_others),
    ("operator", followed_by("Unique")), ("operator", followed_by("Det")), ("type", in_double),
    ("kernel_shape", set_node("conv", "Conv", ["xd", "wd", "b"], ["y"], {"pads": [1, 1, 1, 1]})),
]


def test_a_quantised_convolution_by_the_rules_is_clean_for_every_claimed_release():
    assert check(Graph().model(), CLAIMED) == []
    assert_clean(Graph().model(), CLAIMED)


@pytest.mark.parametrize(("rule", "change"), BREAKERS, ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(BREAKERS)])
def test_a_model_that_breaks_a_rule_is_found(rule, change):
    graph = Graph()
    change(graph)
    assert rule in rules(graph)


def test_every_rule_has_a_model_that_breaks_it():
    source = ast.parse(TABLES.with_name("onnx_rules.py").read_text(encoding="utf-8"))
    written = {node.value.elts[1].value for node in ast.walk(source)
               if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 3}
    assert written == {rule for rule, _ in BREAKERS} | {"conv_1d", "fp16_scale", "scale_type"}  # these have tests of their own


def test_a_1d_convolution_with_quantised_weights_is_found_and_a_float_one_is_not():
    graph = Graph(shape=(3,))
    assert rules(graph, *CLAIMED) == {"conv_1d"}
    graph.constants["w"] = graph.constants["w"].astype(np.float32)
    graph.nodes.pop("weights")
    graph.nodes["conv"] = ("Conv", ["xd", "w", "b"], ["y"], {"kernel_shape": [3], "pads": [1, 1]})
    assert rules(graph, *CLAIMED) == set()


def test_fp16_scales_need_opset_19_and_tensorrt_10():
    graph = Graph(opset=19, dtype=np.float16)
    graph.ir = 9
    assert rules(graph, *CLAIMED[1:]) == set()
    assert "fp16_scale" in rules(graph, "8.6.1")
    graph.opset = 17
    assert "fp16_scale" in rules(graph, "10.3.0")


def test_a_scale_of_another_type_than_its_input_is_found_where_typing_is_strong():
    graph = Graph(opset=19)
    graph.ir = 9
    graph.constants["x_scale"] = graph.constants["x_scale"].astype(np.float16)
    assert "scale_type" in rules(graph, "10.3.0")
    assert "scale_type" not in rules(graph, "8.6.1")


def test_a_missing_kernel_shape_matters_up_to_10_3_only():
    graph = Graph()
    graph.nodes["conv"] = ("Conv", ["xd", "wd", "b"], ["y"], {"pads": [1, 1, 1, 1]})
    found = {finding.release for finding in check(graph.model(), CLAIMED)}
    assert found == {"8.6.1", "10.3.0"}


def test_opsets_and_operators_are_judged_by_each_release():
    graph = Graph(opset=20)
    graph.ir = 10
    graph.after(("Gelu", ["c"], ["y"], {}))
    found = check(graph.model(), CLAIMED)
    assert {(f.release, f.rule) for f in found} == {("8.6.1", "opset"), ("8.6.1", "operator")}
    assert all(f.rule != "operator" or f.node == "after0" for f in found)


def test_half_precision_is_taken_only_where_the_table_has_it():
    graph = Graph(opset=20)
    graph.ir = 10
    graph.after(("Cast", ["c"], ["c16"], {"to": TensorProto.BFLOAT16}), ("Relu", ["c16"], ["r"], {}),
                ("Cast", ["r"], ["y"], {"to": TensorProto.FLOAT}))
    assert {f.release for f in check(graph.model(), CLAIMED) if f.rule == "type"} == {"8.6.1"}


def test_weights_quantised_in_the_graph_are_judged_like_stored_int8():
    """As ONNX Runtime and ModelOpt leave them: a float constant, QuantizeLinear, DequantizeLinear."""
    graph = Graph()
    graph.constants["w"] = graph.constants["w"].astype(np.float32)
    graph.nodes["weights"] = ("DequantizeLinear", ["wq", "w_scale", "w_zero"], ["wd"], {"axis": 0})
    graph.nodes = {"w": ("QuantizeLinear", ["w", "w_scale", "w_zero"], ["wq"], {"axis": 0}), **graph.nodes}
    assert rules(graph, *CLAIMED) == set()
    wrong_axis(graph)
    graph.nodes["w"] = (*graph.nodes["w"][:3], {"axis": 1})
    assert rules(graph) == {"weight_axis"}


@pytest.mark.parametrize(("op", "attributes", "axis"), [("MatMul", {}, 1), ("Gemm", {}, 1), ("Gemm", {"transB": 1}, 0)])
def test_the_channels_of_matrix_products_lie_where_the_operator_has_them(op, attributes, axis):
    graph = Graph()
    graph.size = (3, CHANNELS)
    shape = (CHANNELS, KERNELS) if axis else (KERNELS, CHANNELS)
    graph.constants["w"] = np.ones(shape, np.int8)
    graph.nodes["weights"] = (*graph.nodes["weights"][:3], {"axis": axis})
    graph.nodes["conv"] = (op, ["xd", "wd"], ["y"], attributes)
    assert rules(graph, *CLAIMED) == set()
    graph.constants |= {"w_scale": np.full(CHANNELS, 0.01, np.float32), "w_zero": np.zeros(CHANNELS, np.int8)}
    graph.nodes["weights"] = (*graph.nodes["weights"][:3], {"axis": 1 - axis})
    assert rules(graph) == {"weight_axis"}


@pytest.mark.parametrize("part", ["stem", "head"])
def test_the_shipped_fp32_files_are_clean_for_every_claimed_release(part):
    spec, _ = load(DEFAULT_WEIGHTS)
    assert check(spec.path(part, "fp32"), CLAIMED) == []


def test_the_error_names_file_rule_and_release(tmp_path):
    graph = Graph(opset=20)
    graph.ir = 10
    graph.constants["x_scale"] = np.array(0.0, np.float32)
    path = tmp_path / "bad.onnx"
    onnx.save(graph.model(), path)
    with pytest.raises(RuleError, match=r"(?s)bad.onnx: 3 broken rules:.*every release: scale_value: quantise.*8.6.1: opset"):
        assert_clean(path, ("8.6.1", "10.3.0"))
    assert {f.release for f in check(path, ("10.3.0",))} == {EVERY}


def test_a_file_that_is_no_onnx_and_a_release_that_is_in_no_table_are_refused(tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"\xff\xff not ONNX")
    with pytest.raises(RuleError, match="bad.onnx cannot be read as ONNX"):
        check(path, ("10.3.0",))
    with pytest.raises(RuleError, match="missing.onnx cannot be read"):
        check(tmp_path / "missing.onnx", ("10.3.0",))
    for wanted in ((), ("9.9.9",)):
        with pytest.raises(ValueError, match="choose from 8.6.1, 10.3.0"):
            check(Graph().model(), wanted)


def test_every_claimed_release_uses_the_newest_table_that_is_not_newer_than_itself():
    content = json.loads(Path(TABLES).read_text())
    assert releases() == CLAIMED

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    for release, table in content["releases"].items():
        assert table == max((t for t in content["tables"] if number(t) <= number(release)), key=number)
    assert set(content["provenance"]) == set(content["tables"]) == set(content["releases"].values())
    assert TABLES.stat().st_size < 60_000
