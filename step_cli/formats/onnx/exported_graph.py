"""The graph that torch exports, in memory, as the rule for weights reads graphs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from step_cli.formats.onnx.model import Attribute, Graph, Model, Node, Tensor
from step_cli.formats.onnx.weight_uses import uses_of
from step_cli.formats.onnx.weights.use import Use

if TYPE_CHECKING:
    import onnx_ir

Array = npt.NDArray[Any]


@dataclass(eq=False)
class ExportedGraph:
    """A graph of onnx_ir, and what each of our nodes and tensors is in it.

    Attributes:
        model: The graph.
        nodes: Its nodes, by the ids of ours.
        values: Its initializers, by the ids of our tensors.
    """

    model: "onnx_ir.Model"
    nodes: "dict[int, onnx_ir.Node]" = field(default_factory=dict)
    values: "dict[int, onnx_ir.Value]" = field(default_factory=dict)
    _data: dict[int, Callable[[], Array]] = field(default_factory=dict)

    def uses(self) -> list[Use]:
        """Every product by an initializer that has a group axis."""
        found = uses_of(Model(self._graph(self.model.graph)), self._read)
        return [
            use
            for use in found.products
            if use.axis is not None and id(use.tensor) in self.values
        ]

    def _read(self, tensor: Tensor) -> Array:
        return self._data[id(tensor)]()

    def _graph(self, graph: "onnx_ir.Graph") -> Graph:
        found = Graph(
            graph.name or "",
            inputs=[_name(value) for value in graph.inputs],
            outputs=[_name(value) for value in graph.outputs],
        )
        for value in graph.initializers.values():
            if value.const_value is not None:
                tensor = self._tensor(value.const_value, _name(value))
                self.values[id(tensor)] = value
                found.initializers.append(tensor)
        for node in graph:
            own = Node(node.name or "", node.op_type, node.domain, node.overload)
            own.inputs = [_name(value) for value in node.inputs]
            own.outputs = [_name(value) for value in node.outputs]
            for attribute in node.attributes.values():
                own.attributes[attribute.name] = self._attribute(attribute)
            self.nodes[id(own)] = node
            found.nodes.append(own)
        return found

    def _attribute(self, attribute: "onnx_ir.Attr") -> Attribute:
        """An attribute, as far as weights need it."""
        kind, found = attribute.type.name, Attribute(attribute.name)
        if kind == "INT":
            found.integer = attribute.as_int()
        elif kind == "INTS":
            found.integers = list(attribute.as_ints())
        elif kind == "TENSOR":
            found.tensor = self._tensor(attribute.as_tensor(), "")
        elif kind == "GRAPH":
            found.graphs = [self._graph(attribute.as_graph())]
        return found

    def _tensor(self, tensor: "onnx_ir.TensorProtocol", name: str) -> Tensor:
        shape = [int(size) for size in tensor.shape.numpy()]
        own = Tensor(name, shape, int(tensor.dtype))
        self._data[id(own)] = tensor.numpy
        return own


def _name(value: "onnx_ir.Value | None") -> str:
    return "" if value is None or value.name is None else value.name
