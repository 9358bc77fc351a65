"""The parts of an ONNX model that locate its weights, read by position.

Field numbers are those of onnx.proto. The onnx package would load all weights, twice
where they are inline, and take longer to import than a model takes to check.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from step_cli.formats.onnx import protobuf
from step_cli.formats.onnx.model import (
    Attribute,
    Extent,
    Function,
    Graph,
    Model,
    Node,
    Tensor,
)
from step_cli.formats.onnx.protobuf import LENGTH, Field, WireError, fields, signed

DEEPEST = 64  # graphs within graphs
MOST_PARTS = 2_000_000  # nodes, tensors and attributes; each costs about 1 kB


@dataclass
class ModelReader:
    """Reads a model from the bytes of its file, with a bound on what it may hold.

    Raises (from `model`):
        WireError: The bytes are no ONNX model, or over a limit.
    """

    data: memoryview
    parts: int = 0
    around: tuple[Field, ...] = ()

    def model(self) -> Model:
        """Read the whole file as one ModelProto."""
        graph, version = None, None
        functions: list[Function] = []
        properties: dict[str, str] = {}
        places: dict[str, Extent] = {}
        for item in fields(self.data, 0, len(self.data)):
            if item.number == 1:
                version = item.value
            elif item.number == 7 and item.wire == LENGTH:
                graph = self._graph(item, 0)
            elif item.number == 25 and item.wire == LENGTH:
                functions.append(self._function(item))
            elif item.number == 14 and item.wire == LENGTH:
                key, value = self._pair(item)
                properties[key], places[key] = value, (item.start, item.end)
        if graph is None or not version:
            raise WireError("it has no graph or no version")
        return Model(graph, functions, properties, places, self.data)

    def _graph(self, place: Field, depth: int) -> Graph:
        if depth > DEEPEST:
            raise WireError(f"graphs nested more than {DEEPEST} deep")
        graph = Graph()
        for item in self._inside(place):
            if item.wire != LENGTH:
                continue
            if item.number == 1:
                graph.nodes.append(self._node(item, depth))
            elif item.number == 2:
                graph.name = self._text(item)
            elif item.number == 5:
                graph.initializers.append(self._tensor(item))
            elif item.number == 11:
                graph.inputs.append(self._name(item))
            elif item.number == 12:
                graph.outputs.append(self._name(item))
            elif item.number == 15:
                graph.sparse.append(self._sparse(item))
        return graph

    def _function(self, place: Field) -> Function:
        self._count()
        function = Function()
        for item in self._inside(place):
            if item.wire != LENGTH:
                continue
            if item.number == 1:
                function.name = self._text(item)
            elif item.number == 4:
                function.graph.inputs.append(self._text(item))
            elif item.number == 5:
                function.graph.outputs.append(self._text(item))
            elif item.number == 7:
                function.graph.nodes.append(self._node(item, 0))
            elif item.number == 10:
                function.domain = self._text(item)
            elif item.number == 11:
                attribute = self._attribute(item, 0)
                function.defaults[attribute.name] = attribute
            elif item.number == 13:
                function.overload = self._text(item)
        function.graph.name = function.name
        return function

    def _node(self, place: Field, depth: int) -> Node:
        self._count()
        node = Node()
        for item in self._inside(place):
            if item.wire != LENGTH:
                continue
            if item.number == 1:
                node.inputs.append(self._text(item))
            elif item.number == 2:
                node.outputs.append(self._text(item))
            elif item.number == 3:
                node.name = self._text(item)
            elif item.number == 4:
                node.op_type = self._text(item)
            elif item.number == 5:
                attribute = self._attribute(item, depth)
                node.attributes[attribute.name] = attribute
            elif item.number == 7:
                node.domain = self._text(item)
            elif item.number == 8:
                node.overload = self._text(item)
        return node

    def _attribute(self, place: Field, depth: int) -> Attribute:
        self._count()
        attribute = Attribute(place=place)
        for item in self._inside(place):
            if item.number == 1:
                attribute.name = self._text(item)
            elif item.number == 3:
                attribute.integer = signed(item.value)
            elif item.number == 5:
                attribute.tensor = self._tensor(item)
            elif item.number in (6, 11):
                attribute.graphs.append(self._graph(item, depth + 1))
            elif item.number == 8:
                attribute.integers += self._integers(item)
            elif item.number == 21:
                attribute.reference = self._text(item)
            elif item.number == 22:
                attribute.tensor = self._sparse(item)
        return attribute

    def _tensor(self, place: Field) -> Tensor:
        self._count()
        tensor = Tensor(around=(*self.around, place))
        for item in fields(self.data, place.begin, place.end):
            if item.number == 1:
                tensor.shape += self._integers(item)
            elif item.number == 2:
                tensor.data_type = item.value
            elif item.number == 8:
                tensor.name = self._text(item)
            elif item.number == 9:
                tensor.raw = (item.begin, item.end)
            elif item.number in (4, 5, 6, 7, 10, 11):
                tensor.typed.setdefault(item.number, []).append(item)
            elif item.number == 13:
                key, value = self._pair(item)
                tensor.external[key] = value
                tensor.external_at[key] = (item.start, item.end)
            elif item.number == 14:
                tensor.is_external = item.value == 1
        return tensor

    def _sparse(self, place: Field) -> Tensor:
        """A SparseTensorProto; its name is that of its values."""
        self._count()
        sparse = Tensor()
        for item in self._inside(place):
            if item.number == 1:
                sparse.values = self._tensor(item)
            elif item.number == 2:
                sparse.indices = self._tensor(item)
            elif item.number == 3:
                sparse.shape += self._integers(item)
        if sparse.values is None or sparse.indices is None:
            raise WireError("a sparse tensor has no values, or no indices")
        sparse.name, sparse.data_type = sparse.values.name, sparse.values.data_type
        return sparse

    def _name(self, place: Field) -> str:
        """The name of a ValueInfoProto."""
        for item in fields(self.data, place.begin, place.end):
            if item.number == 1:
                return self._text(item)
        return ""

    def _inside(self, place: Field) -> Iterator[Field]:
        """The fields of a message; while one is looked at, ``around`` includes it."""
        outer, self.around = self.around, (*self.around, place)
        yield from fields(self.data, place.begin, place.end)
        self.around = outer

    def _pair(self, place: Field) -> tuple[str, str]:
        found = {1: "", 2: ""}
        for item in fields(self.data, place.begin, place.end):
            if item.number in found:
                found[item.number] = self._text(item)
        return found[1], found[2]

    def _integers(self, item: Field) -> list[int]:
        if item.wire != LENGTH:
            return [signed(item.value)]
        at, values = item.begin, []
        while at < item.end:
            value, at = protobuf.varint(self.data, at, item.end)
            values.append(signed(value))
        return values

    def _text(self, item: Field) -> str:
        try:
            return bytes(self.data[item.begin : item.end]).decode()
        except UnicodeDecodeError:
            raise WireError(f"a name at byte {item.begin} is not text") from None

    def _count(self, parts: int = 1) -> None:
        self.parts += parts
        if self.parts > MOST_PARTS:
            raise WireError(f"more than {MOST_PARTS} nodes and tensors")
