"""What stands around the weights of a graph: what their libraries ask of a layer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.onnx.graph import ModelReader
from step_cli.formats.onnx.model import Graph, Node, Tensor

CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv", "FusedConv"}
PRODUCTS = CONVOLUTIONS | {
    *("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"),
    *("FusedGemm", "FusedMatMul", "QGemm"),
}
CODES_OUT = {"QLinearConv", "QLinearMatMul"}  # as their outputs are codes
QUANTIZERS = {"QuantizeLinear", "TRT_INT8QuantizeLinear", "TRT_FP8QuantizeLinear"}
# Between a stored tensor and its product, and between a product and its quantizer.
BEFORE = QUANTIZERS | {
    *("DequantizeLinear", "TRT_INT8DequantizeLinear", "TRT_FP8DequantizeLinear"),
    *("Cast", "Identity", "Transpose"),
}
# There too, but what they give is not known to become a constant with sparse kernels.
BETWEEN = {"Add", "Concat", "Gather", "Mul", "Reshape", "Slice"}
BEHIND = {"Add", "BatchNormalization", "Cast", "Clip", "Identity", "LeakyRelu", "Relu"}
QUANTIZED = {3: "int8", 17: "float8_e4m3fn"}  # by the zero point's data type
MOST_STEPS = 1000


@dataclass(frozen=True)
class Surroundings:
    """Of one stored weight.

    Attributes:
        groups: Of the convolution that uses it.
        int8_output: Whether a quantizer follows each product that uses it.
        quantized: The dtype that it is quantized to on its way, or None.
        between: The operator of ``BETWEEN`` on its way, or None.
    """

    groups: int = 1
    int8_output: bool = True
    quantized: str | None = None
    between: str | None = None


@dataclass
class NamedGraph:
    """A graph with the names that can be seen in it.

    Attributes:
        graph: The graph.
        stored: Stored tensors, by name; those of the graphs around it too.
        makers: The node that gives each value, by the value's name.
        takers: The nodes that take each value.
        constants: The values that depend on stored tensors alone.
    """

    graph: Graph
    stored: Mapping[str, Tensor]
    makers: dict[str, Node] = field(default_factory=dict)
    takers: dict[str, list[Node]] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        own = {tensor.name: tensor for tensor in self.graph.initializers}
        for node in self.graph.nodes:
            self.makers.update(dict.fromkeys(node.outputs, node))
            for name in node.inputs:
                self.takers.setdefault(name, []).append(node)
            value = node.attributes.get("value")
            if node.op_type == "Constant" and value and value.tensor:
                own |= dict.fromkeys(node.outputs, value.tensor)
        self.stored = {**self.stored, **own}
        for node in self.graph.nodes:  # each stands behind those that it depends on
            if all(x in self.stored or x in self.constants for x in node.inputs if x):
                self.constants.update(node.outputs if node.inputs else ())

    def inside(self) -> Iterator["NamedGraph"]:
        """This one, and those of its control flow."""
        yield self
        for node in self.graph.nodes:
            for attribute in node.attributes.values():
                for graph in attribute.graphs:
                    yield from NamedGraph(graph, self.stored).inside()


def surroundings(path: Path) -> dict[str, Surroundings]:
    """What stands around each stored weight of an ONNX file, by its name.

    Functions are not looked into.
    """
    found: dict[str, Surroundings] = {}
    graph = ModelReader(map_file(path).data.data).model().graph
    for at in NamedGraph(graph, {}).inside():
        for node in at.graph.nodes:
            if node.op_type in PRODUCTS:
                for name, quantized, between in _weights(at, node):
                    one = _around(at, node, quantized, between)
                    found[name] = _both(found[name], one) if name in found else one
    return found


def _weights(
    at: NamedGraph, node: Node
) -> Iterator[tuple[str, str | None, str | None]]:
    """The stored matrices that a product uses.

    With what each is quantized to, and the operator of ``BETWEEN`` that it passes.
    """
    waiting: list[tuple[str, str | None, str | None]]
    waiting, seen = [(name, None, None) for name in node.inputs], set[str]()
    while waiting and len(seen) < MOST_STEPS:
        name, quantized, between = waiting.pop()
        if name in at.stored and len(at.stored[name].shape) > 1:
            yield name, quantized, between
        maker = at.makers.get(name)
        if name in seen or name in at.stored or maker is None or not maker.inputs:
            continue
        seen.add(name)
        if maker.op_type in BETWEEN and name in at.constants:
            waiting += [(one, quantized, maker.op_type) for one in maker.inputs]
        if maker.op_type not in BEFORE:
            continue
        if maker.op_type in QUANTIZERS:
            zero = at.stored.get(maker.inputs[2] if len(maker.inputs) > 2 else "")
            quantized = QUANTIZED.get(zero.data_type) if zero else None
        waiting.append((maker.inputs[0], quantized, between))


def _around(
    at: NamedGraph, node: Node, quantized: str | None, between: str | None
) -> Surroundings:
    group = node.attributes.get("group")
    groups = group.integer if group and node.op_type in CONVOLUTIONS else None
    return Surroundings(groups or 1, _gives_codes(at, node), quantized, between)


def _gives_codes(at: NamedGraph, node: Node) -> bool:
    """Whether a quantizer follows, with nothing between that would not be fused."""
    if node.op_type in CODES_OUT:
        return True
    waiting, seen = list(node.outputs), set(node.outputs)
    while waiting:
        for taker in at.takers.get(waiting.pop(), ()):
            if taker.op_type in QUANTIZERS:
                return True
            if taker.op_type in BEHIND:
                new = [name for name in taker.outputs if name not in seen]
                waiting += new
                seen |= set(new)
    return False


def _both(one: Surroundings, other: Surroundings) -> Surroundings:
    return Surroundings(
        max(one.groups, other.groups),
        one.int8_output and other.int8_output,
        one.quantized if one.quantized == other.quantized else None,
        one.between or other.between,
    )
