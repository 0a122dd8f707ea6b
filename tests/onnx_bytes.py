"""As much of an ONNX file as the stand-in TensorRT needs, read from its bytes: the onnx package is not in the test environment.

Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

KINDS = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF", 16: "BF16"}
"""TensorProto.DataType -> the name that TensorRT has for it."""

_GIVES = {"QuantizeLinear": "INT8", "Shape": "INT64", "Size": "INT64", "Equal": "BOOL", "Greater": "BOOL", "Less": "BOOL",
          "Not": "BOOL", "And": "BOOL", "Or": "BOOL"}
_LIKE = {"DequantizeLinear": 1, "Where": 1}
"""Which input has the type of the output, where it is not the first."""


class Node(NamedTuple):
    """kind: what its first output holds, a value of KINDS."""

    name: str
    op: str
    outputs: tuple[str, ...]
    kind: str


class Graph(NamedTuple):
    opset: int
    nodes: tuple[Node, ...]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("no protobuf: a number does not end")
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield field, value
            continue
        size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}.get(wire, -1), at)
        if size < 0 or field == 0 or at + size > len(data):
            raise ValueError("no protobuf: a field does not end")
        yield field, data[at:at + size]
        at += size


def _all(data: bytes, field: int) -> list[bytes]:
    return [value for number, value in _fields(data) if number == field and isinstance(value, bytes)]


def _number(data: bytes, field: int) -> int:
    return next((value for number, value in _fields(data) if number == field and isinstance(value, int)), 0)


def _text(data: bytes, field: int) -> str:
    return b"".join(_all(data, field)).decode()


def _node(data: bytes, kinds: dict[str, str]) -> Node:
    inputs, outputs = ([name.decode() for name in _all(data, field)] for field in (1, 2))
    op = _text(data, 4)
    attributes = {_text(attribute, 1): attribute for attribute in _all(data, 5)}
    kind = _GIVES.get(op)
    if op == "Cast":
        kind = KINDS.get(_number(attributes["to"], 3))
    elif "value" in attributes and op in ("Constant", "ConstantOfShape"):
        kind = KINDS.get(_number(_all(attributes["value"], 5)[0], 2))
    if kind is None:
        like = inputs[_LIKE.get(op, 0):][:1]
        kind = kinds.get(like[0], "FLOAT") if like else "FLOAT"
    kinds.update((name, kind) for name in outputs)
    return Node(_text(data, 3) or f"({op} {outputs[0]})", op, tuple(outputs), kind)


def read(model: bytes) -> Graph:
    """Raises ValueError for what is no ONNX model."""
    opsets = {_text(each, 1): _number(each, 2) for each in _all(model, 8)}
    graphs = _all(model, 7)
    if len(graphs) != 1 or "" not in opsets:
        raise ValueError("no ONNX model: it has no graph, or no opset")
    kinds = {_text(each, 8): KINDS.get(_number(each, 2), "FLOAT") for each in _all(graphs[0], 5)}
    for each in _all(graphs[0], 11):
        kinds[_text(each, 1)] = KINDS.get(_number(_all(_all(each, 2)[0], 1)[0], 1), "FLOAT")
    return Graph(opsets[""], tuple(_node(each, kinds) for each in _all(graphs[0], 1)))
