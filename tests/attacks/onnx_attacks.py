"""ONNX models built for tests, and ways to make them wrong."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Arrays = dict[str, NDArray[np.generic]]


def model(
    nodes: Sequence[onnx.NodeProto], arrays: Arrays, *, output: str = "y"
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, None])],
        tensors,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )


def linear(shape: tuple[int, int] = (8, 4), seed: int = 0) -> onnx.ModelProto:
    """``x @ w`` with a bias."""
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    return model(nodes, {"w": weight, "b": np.zeros(shape[1], np.float32)})


def with_external_data(
    path: Path, changes: dict[str, str | None], data: bytes | None = None
) -> Path:
    """The linear model whose weight is external, some of its keys changed."""
    proto = linear()
    tensor = proto.graph.initializer[0]
    raw = tensor.raw_data
    keys: dict[str, str | None] = {
        "location": "m.data",
        "offset": "0",
        "length": str(len(raw)),
    }
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {**keys, **changes}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    (path.parent / "m.data").write_bytes(raw if data is None else data)
    return path


def nested_graphs(depth: int) -> bytes:
    """An If within an If, and so on."""
    proto = linear()
    body = proto.graph.SerializeToString()
    for _ in range(depth):
        attribute = b"\x0a\x04body" + field(6, body)
        node = field(4, b"If") + field(5, attribute)
        body = field(1, node)
    return b"\x08\x0a" + field(7, body)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    out = bytearray([number << 3 | 2])
    length = len(payload)
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out) + payload
