"""Which products of an exported graph can be quantized, and at which tensors.

A quantizer belongs behind what an int8 kernel does before it rounds: the layer's bias
and its Relu. One that stood before them would round twice.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.onnx.data import TensorData
from step_cli.formats.onnx.graph import ModelReader
from step_cli.formats.onnx.model import Node, domain_of
from step_cli.formats.onnx.surroundings import NamedGraph
from step_cli.formats.onnx.weight_uses import uses_of
from step_cli.formats.onnx.weights.use import Use

QUANTIZABLE = ("Conv", "Gemm", "MatMul")
ENDS = ("Relu", "Clip")
FLOAT = 1  # of TensorProto.DataType


@dataclass(frozen=True)
class Product:
    """A product by a stored weight that gets quantizers.

    Attributes:
        node: Its name.
        weight: The name of the stored weight.
        outputs: The weight's axis of the outputs.
        enters: The tensor that it multiplies the weight by.
        leaves: Its output, behind its bias and its Relu.
    """

    node: str
    weight: str
    outputs: int
    enters: str
    leaves: str


@dataclass(frozen=True)
class Found:
    """The products of a graph.

    Attributes:
        products: Those that get quantizers, in the order of the nodes.
        left: Why other weights stay as they are, by name.
    """

    products: list[Product]
    left: Mapping[str, str]


def products_to_quantize(path: Path, weights: Collection[str]) -> Found:
    """Find the products by some stored weights of an ONNX file.

    Args:
        path: The file; its weights are fp32.
        weights: Names of initializers.
    """
    file = map_file(path)
    model = ModelReader(file.data.data).model()
    graph = NamedGraph(model.graph, {})
    products: list[Product] = []
    left: dict[str, str] = {}
    for use in uses_of(model, TensorData(file).read).products:
        name = use.tensor.name
        if name not in weights:
            continue
        obstacle = _obstacle(graph, use)
        if obstacle is not None:
            left.setdefault(name, obstacle)
        else:
            products.append(_product(graph, use))
    axes: dict[str, set[int]] = {}
    for product in products:
        axes.setdefault(product.weight, set()).add(product.outputs)
    for name, several in axes.items():
        if len(several) > 1:
            left.setdefault(name, "products use it in both directions")
    return Found([one for one in products if one.weight not in left], left)


def _obstacle(graph: NamedGraph, use: Use) -> str | None:
    """Why a product by a weight cannot be quantized."""
    node = use.node
    if domain_of(node.domain) or node.op_type not in QUANTIZABLE:
        return f"{node.op_type} has no quantized form here"
    own = any(node is other for other in graph.graph.nodes)
    if not own or not node.name:
        return "its product is inside of another graph, or has no name"
    stored = [i for i in node.inputs[:2] if graph.stored.get(i) is use.tensor]
    if len(stored) != 1 or use.tensor not in graph.graph.initializers:
        return f"an operation stands between it and its {node.op_type}"
    if use.tensor.data_type != FLOAT:
        return "it is not fp32"
    if use.outputs is None or _entering(node, use.tensor.name) in graph.stored:
        return f"its {node.op_type} is no layer"
    return None


def _product(graph: NamedGraph, use: Use) -> Product:
    assert use.outputs is not None
    node, weight = use.node, use.tensor.name
    leaves = end_of_layer(graph, node)
    return Product(node.name, weight, use.outputs, _entering(node, weight), leaves)


def _entering(node: Node, weight: str) -> str:
    first, second = node.inputs[:2]
    return second if first == weight else first


def end_of_layer(graph: NamedGraph, node: Node) -> str:
    """The output of a product, behind the bias that is added to it and its Relu."""
    name = node.outputs[0]
    bias = _only_taker(graph, name)
    if bias is not None and bias.op_type == "Add" and _adds_stored(graph, bias, name):
        name = bias.outputs[0]
    end = _only_taker(graph, name)
    if end is not None and end.op_type in ENDS and _bounds_are_stored(graph, end):
        name = end.outputs[0]
    return name


def _only_taker(graph: NamedGraph, name: str) -> Node | None:
    takers = graph.takers.get(name, [])
    alone = len(takers) == 1 and name not in graph.graph.outputs
    return takers[0] if alone else None


def _adds_stored(graph: NamedGraph, node: Node, name: str) -> bool:
    others = [other for other in node.inputs if other != name]
    if len(others) != 1:
        return False
    maker = graph.makers.get(others[0])
    # Behind a quantizer of its own it is still the same bias.
    source = maker.inputs[0] if maker and maker.op_type == "DequantizeLinear" else ""
    return others[0] in graph.stored or source in graph.stored


def _bounds_are_stored(graph: NamedGraph, node: Node) -> bool:
    return all(not bound or bound in graph.stored for bound in node.inputs[1:])
