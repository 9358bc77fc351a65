"""What an ONNX file says besides its weights: inputs, and the nodes of each weight."""

from pathlib import Path
from typing import Any

from step_cli.errors import InputError, StepError
from step_cli.formats.onnx.inputs import Dimension, GraphInput
from step_cli.formats.onnx.names import SEEN_THROUGH, WEIGHT_INPUTS


def load_graph(path: Path) -> Any:
    """The graph of an ONNX file, an ``onnx.GraphProto``, external data left alone.

    Raises:
        InputError: It is no ONNX model.
    """
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False).graph
    except StepError:
        raise
    except Exception as error:  # protobuf's own class, which is not public
        raise InputError(f"not an ONNX model: {error}", file=path) from None


def nodes_of_weights(path: Path) -> dict[str, list[str]]:
    """Names of the nodes that multiply by each stored weight, by the weight's name."""
    graph = load_graph(path)
    stored = {tensor.name for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    found: dict[str, list[str]] = {}
    for node in graph.node:
        for index in WEIGHT_INPUTS.get(node.op_type, ()):
            if index < len(node.input):
                name = _traced(node.input[index], makers, stored)
                if name is not None:
                    found.setdefault(name, []).append(node.name)
    return found


def operators_of(path: Path) -> dict[str, set[str]]:
    """The operators that take each value of a graph, by the value's name."""
    found: dict[str, set[str]] = {}
    for node in load_graph(path).node:
        for name in node.input:
            found.setdefault(name, set()).add(node.op_type)
    return found


def _traced(name: str, makers: dict[str, Any], stored: set[str]) -> str | None:
    """Follow a value back to the stored weight it is made of, if it is one."""
    for _ in range(len(makers) + 1):  # a graph may lead back to itself
        if name in stored:
            return name
        maker = makers.get(name)
        if maker is None:
            return None
        if maker.op_type == "Constant":
            return name
        if maker.op_type not in SEEN_THROUGH or not maker.input:
            return None
        name = maker.input[0]
    return None


def inputs_of_onnx(path: Path) -> list[GraphInput]:
    """The inputs of an ONNX file, without its weights.

    Raises:
        InputError: An input has no shape, or the file is no ONNX model.
    """
    graph = load_graph(path)
    stored = {initializer.name for initializer in graph.initializer}
    return [
        _graph_input(value, path) for value in graph.input if value.name not in stored
    ]


def _graph_input(value: Any, path: Path) -> GraphInput:  # an onnx.ValueInfoProto
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise InputError("this input has no shape", file=path, tensor=value.name)
    shape: list[Dimension] = [
        dimension.dim_value
        if dimension.HasField("dim_value") and dimension.dim_value > 0
        else dimension.dim_param or f"{value.name}_{index}"
        for index, dimension in enumerate(kind.shape.dim)
    ]
    dtype = tensor_dtype_to_np_dtype(kind.elem_type).name
    return GraphInput(value.name, dtype, tuple(shape))
