"""Names that ONNX Runtime's quantizer makes, kept free in a graph before it works.

It names what it adds to a tensor after the tensor, and looks at no other name: a
parameter ``x_scale`` beside an input ``x`` would become the scale of that input.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from step_cli.errors import InputError

if TYPE_CHECKING:
    import onnx

MADE = ("_scale", "_zero_point", "_quantized", "_QuantizeLinear", "_DequantizeLinear")


def make_room(graph: "onnx.GraphProto", quantized: Collection[str]) -> None:
    """Rename what has a name that the quantizer will make.

    Args:
        graph: The graph, which is changed.
        quantized: Names of the tensors that get quantizers.

    Raises:
        InputError: An input or an output of the graph has one, or one of ``quantized``.
    """
    fixed = {value.name for value in (*graph.input, *graph.output)} | {*quantized}
    values = [tensor.name for tensor in graph.initializer]
    values += [name for node in graph.node for name in node.output]
    nodes = [node.name for node in graph.node]
    taken = {*values, *nodes, *fixed}
    new: dict[str, str] = {}
    for name in sorted({*values, *nodes, *fixed}):
        if not _is_made(name, quantized):
            continue
        if name in fixed:
            raise InputError(
                f"--quantize: {name} has a name that the quantizer of another tensor "
                "needs; rename it in the model"
            )
        new[name] = free(f"{name}.own", taken)
    if new:
        _rename(graph, new)


def free(name: str, taken: set[str]) -> str:
    """A name that is not taken; it is from now on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _is_made(name: str, quantized: Collection[str]) -> bool:
    """Whether it is the name of a tensor, one of the endings, and maybe more."""
    return any(
        name[:place] in quantized
        for ending in MADE
        if (place := name.rfind(ending)) > 0
    )


def _rename(graph: "onnx.GraphProto", new: dict[str, str]) -> None:
    """Give values and nodes other names, wherever they are made or read."""
    for tensor in (*graph.initializer, *graph.value_info):
        tensor.name = new.get(tensor.name, tensor.name)
    for node in graph.node:
        node.name = new.get(node.name, node.name)
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = new.get(name, name)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, new)  # reads values of the graph around it
