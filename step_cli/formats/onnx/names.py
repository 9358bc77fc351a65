"""Which module each weight of an exported graph belongs to, and names after it.

The exporter's own names are no guide: with a bias ``node_linear`` is the Add and the
product is ``node_MatMul_1``. So it starts from the node that owns a weight, takes the
module from the node's scopes, and confirms by comparing values.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from step_cli.formats.onnx.exported_graph import ExportedGraph

if TYPE_CHECKING:
    import onnx_ir
    from torch import Tensor

SCOPES = "pkg.torch.onnx.name_scopes"
# TensorRT joins names with " + " and ", ", and breaks its log at a newline.
_UNSAFE = re.compile(r"[^A-Za-z0-9_./-]")


@dataclass(frozen=True)
class OnnxWeight:
    """One weight of the model, found in the graph.

    Attributes:
        name: The model's name of it.
        onnx_name: The initializer's name in the file.
        node: The name of the node that multiplies by it.
        axis: Its group axis in the file.
    """

    name: str
    onnx_name: str
    node: str
    axis: int


@dataclass(frozen=True)
class _Use:
    node: "onnx_ir.Node"
    value: "onnx_ir.Value"
    axis: int


def name_weights(
    model: "onnx_ir.Model", state: Mapping[str, "Tensor"]
) -> list[OnnxWeight]:
    """Give weights and their nodes the names of the modules they come from.

    Weights that share memory, or happen to be equal, are stored once; each of their
    names is found.

    Args:
        model: Changed in place.
        state: The state dict of the module that was exported.
    """
    uses = _uses(model)
    sources = {
        use.value: name for use in uses if (name := _source(use, state)) is not None
    }
    _make_room(model, set(sources.values()), set(sources), state)
    names = _Names(set(model.graph.initializers) | _node_names(model))
    found: list[OnnxWeight] = []
    nodes: set[str] = set()
    for use in uses:
        name = sources.get(use.value)
        if name is None:
            continue
        if use.value.name not in state and not _renamed(use.value, found):
            use.value.name = names.new(name)
        module = name.rpartition(".")[0] or name
        if use.node.name not in nodes:
            use.node.name = names.new(module)
            nodes.add(use.node.name)
        found.append(
            OnnxWeight(name, str(use.value.name), str(use.node.name), use.axis)
        )
    return found + list(_stored_once(found, state))


def _stored_once(
    found: list[OnnxWeight], state: Mapping[str, "Tensor"]
) -> Iterator[OnnxWeight]:
    """The weights that stand in the graph under the name of another one."""
    names = {weight.name for weight in found}
    for name in [name for name in state if name not in names]:
        for weight in found:
            if _equal_tensors(state[name], state[weight.name]):
                yield replace(weight, name=name)


def strip_metadata(model: "onnx_ir.Model") -> None:
    """Drop what the exporter noted, source paths among it, for stable bytes."""
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _make_room(
    model: "onnx_ir.Model",
    wanted: set[str],
    weights: "set[onnx_ir.Value]",
    state: Mapping[str, "Tensor"],
) -> None:
    """Free the names of weights from copies that are no weights.

    The exporter stores a tied embedding twice, and may call the table by the name of
    the output head.
    """
    stored = model.graph.initializers
    for name in wanted & set(stored):
        if stored[name] in weights:
            continue
        place = state[name].data_ptr()
        tied = [other for other in state if state[other].data_ptr() == place]
        free = [other for other in tied if other not in stored and other not in wanted]
        stored[name].name = free[0] if free else f"{name}.table"


class _Names:
    """Names that are unique in one graph and safe in a build log."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken

    def new(self, wanted: str) -> str:
        safe = _UNSAFE.sub("_", wanted)
        name, count = safe, 1
        while name in self._taken:
            count += 1
            name = f"{safe}.{count}"
        self._taken.add(name)
        return name


def _node_names(model: "onnx_ir.Model") -> set[str]:
    return {str(node.name) for node in model.graph.all_nodes()}


def _renamed(value: "onnx_ir.Value", found: list[OnnxWeight]) -> bool:
    return any(weight.onnx_name == value.name for weight in found)


def _uses(model: "onnx_ir.Model") -> list[_Use]:
    """Every product by a stored weight, the weight's own group axis with it."""
    graph = ExportedGraph(model)
    return [
        _Use(graph.nodes[id(use.node)], graph.values[id(use.tensor)], use.axis)
        for use in graph.uses()
        if use.axis is not None
    ]


def _source(use: _Use, state: Mapping[str, "Tensor"]) -> str | None:
    """The name in the state dict of the weight behind an initializer."""
    module = _module(use.node) or ""
    prefix = f"{module}." if module else ""
    own = use.value.name if use.value.name in state else None
    if own is not None and own.startswith(prefix):
        return own
    if use.value.const_value is None:
        return own
    # The module's own weights come first: its scope covers its children as well.
    inside = [name for name in state if name.startswith(prefix)]
    inside.sort(key=lambda name: name.count("."))
    stored = use.value.const_value.numpy()
    for name in inside:
        if state[name].ndim >= 2 and _same(stored, state[name]):
            return name
    return own  # of another module, such as a convolution with its norm folded in


def _module(node: "onnx_ir.Node") -> str | None:
    """Path of the module whose code made the node; the whole model is ``""``."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, ""))
        return str(scopes[-2])
    except (ValueError, SyntaxError, IndexError, TypeError):
        return None


def _same(stored: npt.NDArray[np.generic], tensor: "Tensor") -> bool:
    """Whether the stored weight is the tensor, or its transpose."""
    from step_cli.formats.pytorch.arrays import to_array

    shape = tuple(tensor.shape)
    if stored.shape != shape and stored.shape != shape[::-1]:
        return False
    own = to_array(tensor)
    return _equal(stored, own) or (own.ndim == 2 and _equal(stored, own.T))


def _equal_tensors(one: "Tensor", other: "Tensor") -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.ndim < 2:
        return False
    return one.data_ptr() == other.data_ptr() or bool((one == other).all())


def _equal(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one, other))
