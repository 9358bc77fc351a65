"""A bf16 graph as an fp32 one with the same rounded weights.

ONNX Runtime's CPU provider has no bf16 products. The copy computes in fp32 what the
graph would round after each node: it says what the rounded weights do, not what rounded
activations add to that.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from step_cli.errors import InputError

if TYPE_CHECKING:
    import onnx

LARGEST = 2**31 - 1  # bytes of one protobuf message
NAMES_OF_TYPES = frozenset({"to", "dtype", "output_dtype"})  # attributes


def widened(path: Path) -> bytes | None:
    """The model in ``path`` with fp32 wherever it has bf16; None where it has none.

    Raises:
        InputError: The copy would be larger than a model in memory may be.
    """
    import onnx

    model = onnx.load(str(path))  # with its external data
    changed = False
    for graph in (model.graph, *model.functions):
        for message in _messages(graph):
            changed |= _widen(message)
    if not changed:
        return None
    if model.ByteSize() > LARGEST:
        raise InputError(
            "ONNX Runtime has no bf16 kernels for the CPU, and as fp32 the graph would "
            "be larger than 2 GiB; export it with --precision fp32",
            file=path,
        )
    content: bytes = model.SerializeToString()
    return content


def _messages(graph: "onnx.GraphProto | onnx.FunctionProto") -> Iterator[Any]:
    """Everything in a graph or function that names a type, inner graphs included."""
    for field in ("initializer", "input", "output", "value_info"):
        for message in getattr(graph, field, ()):
            if not isinstance(message, str):  # a function has names alone
                yield message
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield sparse.values
    for node in graph.node:
        yield from _in_attributes(node.attribute)


def _in_attributes(attributes: "Iterable[onnx.AttributeProto]") -> Iterator[Any]:
    for attribute in attributes:
        yield attribute
        yield from (attribute.t, *attribute.tensors, attribute.sparse_tensor.values)
        for inner in (attribute.g, *attribute.graphs):
            yield from _messages(inner)


def _widen(message: Any) -> bool:
    """Widen a tensor, a declared value or an attribute; whether it was bf16."""
    from onnx import AttributeProto, TensorProto, ValueInfoProto, numpy_helper

    narrow, wide = TensorProto.BFLOAT16, TensorProto.FLOAT
    if isinstance(message, TensorProto) and message.data_type == narrow:
        array = numpy_helper.to_array(message).astype(np.float32)
        message.CopyFrom(numpy_helper.from_array(array, message.name))
        return True
    if isinstance(message, ValueInfoProto):
        tensor = message.type.tensor_type
        if tensor.elem_type == narrow:
            tensor.elem_type = wide
            return True
    named = isinstance(message, AttributeProto) and message.name in NAMES_OF_TYPES
    if named and message.i == narrow:
        message.i = wide
        return True
    return False
