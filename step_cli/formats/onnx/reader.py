"""An ONNX model as a list of named arrays; its nodes tell weights and group axes.

The rule is that of TensorRT: a weight is what Conv, Gemm or MatMul multiply by, looked
through Transpose, Cast, Identity, QuantizeLinear and DequantizeLinear.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np

from step_cli.errors import InputError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor, ZeroPoint
from step_cli.formats.files.mapped_file import MappedFile
from step_cli.formats.onnx.data import TensorData, dtype_name
from step_cli.formats.onnx.graph import (
    DEEPEST,
    Function,
    Graph,
    Model,
    ModelReader,
    Node,
    Tensor,
)
from step_cli.formats.onnx.protobuf import WireError
from step_cli.formats.plan import KEY, parse_plan

MOST_SCOPES = 10_000  # graphs, and functions as often as they are called
SEEN_THROUGH = {
    "Transpose",
    "Cast",
    "Identity",
    "QuantizeLinear",
    "DequantizeLinear",
}


@dataclass
class Scope:
    """What names mean inside a graph; a subgraph also sees those around it.

    A function sees its inputs alone: ``given`` has their names outside.
    """

    graph: Graph
    outer: "Scope | None" = None
    given: dict[str, str] | None = None
    stored: dict[str, Tensor] = field(default_factory=dict)
    producers: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stored = {tensor.name: tensor for tensor in self.graph.initializers}
        for node in self.graph.nodes:
            value = node.attributes.get("value")
            if node.op_type == "Constant" and value is not None and value.tensor:
                value.tensor.name = node.outputs[0] if node.outputs else ""
                self.stored[value.tensor.name] = value.tensor
                continue
            self.producers.update((output, node) for output in node.outputs)

    def find(self, name: str) -> "tuple[Tensor | Node | None, Scope]":
        """What makes the value of that name, and where its own names have a meaning.

        A stored tensor, a node, or None for an input.
        """
        found = self.stored.get(name) or self.producers.get(name)
        if found is None and self.outer is not None:
            outside = name if self.given is None else self.given.get(name, "")
            return self.outer.find(outside)
        return found, self

    @property
    def depth(self) -> int:
        """How many graphs it is in."""
        return 0 if self.outer is None else 1 + self.outer.depth


@dataclass(frozen=True)
class Use:
    """How a node multiplies by a stored tensor."""

    tensor: Tensor
    axis: int | None  # group axis of the stored tensor; None if it has too few axes
    dequantize: Node | None  # the node that gives its integer codes a meaning
    code_axes: tuple[int, ...]  # stored axis behind each axis of that node's input
    scope: Scope  # of that node


def open_onnx(file: MappedFile) -> Checkpoint:
    """The checkpoint in an ONNX file, its external data included.

    Raises:
        InputError: It is no ONNX model, or an extent or location does not hold.
    """
    try:
        model = ModelReader(file.data.data).model()
        data = TensorData(file)
        tensors, notes = _tensors(model, data)
    except WireError as error:
        raise InputError(f"not an ONNX model: {error}", file=file.path) from None
    text = model.properties.get(KEY)
    return Checkpoint(
        file.path,
        "onnx",
        tensors,
        None if text is None else parse_plan(text, file=file.path),
        notes,
        (file.path, *(part.path for part in data.external.values())),
    )


def _tensors(
    model: Model, data: TensorData
) -> tuple[list[NamedTensor], tuple[str, ...]]:
    """All initializers, and the Constants that are weights, each once; and notes."""
    functions = {(one.domain, one.name): one for one in model.functions}
    scopes = list(islice(_scopes(Scope(model.graph), functions), MOST_SCOPES + 1))
    if len(scopes) > MOST_SCOPES:
        raise WireError(f"more than {MOST_SCOPES} graphs and calls of functions")
    uses: dict[int, Use] = {}
    torn: dict[str, None] = {}
    for use in (use for scope in scopes for use in _all_uses(scope)):
        first = uses.setdefault(id(use.tensor), use)
        if first.axis != use.axis:
            torn[use.tensor.name] = None
    found: dict[str, NamedTensor] = {}
    listed: set[int] = set()
    for scope in scopes:
        for tensor in scope.graph.initializers:
            _add(found, tensor, uses.get(id(tensor)), scope, data)
        listed |= {id(tensor) for tensor in scope.graph.initializers}
        for tensor in scope.stored.values():
            if id(tensor) in uses and id(tensor) not in listed:
                listed.add(id(tensor))  # a function may be called again
                _add(found, tensor, uses[id(tensor)], scope, data)
        for tensor in scope.graph.sparse:
            found[tensor.name] = _named(tensor.name, tensor, data, skip="kind")
    notes = tuple(
        f"{name} is multiplied along two axes; judged along that of its first node"
        for name in torn
    )
    return list(found.values()), notes


def _scopes(
    scope: Scope, functions: Mapping[tuple[str, str], Function]
) -> Iterator[Scope]:
    """A graph, and those in its nodes; a function counts wherever it is called."""
    if scope.depth > DEEPEST:
        raise WireError(f"graphs and functions nested more than {DEEPEST} deep")
    yield scope
    for node in scope.graph.nodes:
        for attribute in node.attributes.values():
            for graph in attribute.graphs:
                yield from _scopes(Scope(graph, scope), functions)
        called = functions.get((node.domain, node.op_type))
        if called is not None:
            given = dict(zip(called.inputs, node.inputs, strict=False))
            yield from _scopes(Scope(called.graph, scope, given), functions)


def _add(
    found: dict[str, NamedTensor],
    tensor: Tensor,
    use: Use | None,
    scope: Scope,
    data: TensorData,
) -> None:
    name = tensor.name
    while name in found:  # the branches of an If may use the same name
        name = f"{scope.graph.name or 'graph'}/{name}"
    if use is None:
        found[name] = _named(name, tensor, data, skip="consumer")
        return
    zero, readable = _zero_point(use, data)
    found[name] = _named(
        name,
        tensor,
        data,
        skip=None if readable else "kind",
        is_weight=True,
        axis=use.axis,
        zero_point=zero,
    )


def _named(
    name: str,
    tensor: Tensor,
    data: TensorData,
    *,
    skip: str | None = None,
    is_weight: bool = False,
    axis: int | None = None,
    zero_point: ZeroPoint | None = None,
) -> NamedTensor:
    return NamedTensor(
        name=name,
        dtype=dtype_name(tensor),
        shape=tuple(tensor.shape),
        read=partial(data.read, tensor),
        axis=axis,
        skip=skip,
        is_weight=is_weight,
        zero_point=zero_point,
        place=data.place(tensor),
    )


def _all_uses(scope: Scope) -> Iterator[Use]:
    for node in scope.graph.nodes:
        yield from _uses(node, scope)


def _uses(node: Node, scope: Scope) -> Iterator[Use]:
    """The stored tensors that ``node`` multiplies by."""
    if node.domain not in ("", "ai.onnx"):
        return
    for index in {"Conv": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}.get(node.op_type, ()):
        if index < len(node.inputs):
            use = _traced(node, index, scope)
            if use is not None:
                yield use


def _traced(node: Node, index: int, scope: Scope) -> Use | None:
    """Follow an input of ``node`` back to a stored tensor, if it comes from one."""
    between: list[tuple[Node, Scope]] = []
    made_by, at = scope.find(node.inputs[index])
    while isinstance(made_by, Node):
        if made_by.op_type not in SEEN_THROUGH or made_by.domain not in ("", "ai.onnx"):
            return None
        between.append((made_by, at))
        # A name that leads back to itself would be followed for ever.
        if len(between) > 1000 or not made_by.inputs:
            return None
        made_by, at = at.find(made_by.inputs[0])
    if made_by is None:
        return None
    axes = tuple(range(len(made_by.shape)))  # stored axis behind each axis seen so far
    dequantize, code_axes = None, axes
    for step, at in reversed(between):
        if step.op_type == "DequantizeLinear" and dequantize is None:
            dequantize, code_axes, scope = step, axes, at
        if step.op_type == "Transpose":
            axes = _permuted(step, axes)
    return Use(made_by, _reduced(node, index, axes), dequantize, code_axes, scope)


def _permuted(node: Node, axes: tuple[int, ...]) -> tuple[int, ...]:
    perm = node.attributes.get("perm")
    if perm is None:
        return axes[::-1]
    if sorted(perm.integers) != list(range(len(axes))):
        raise WireError(f"Transpose of {len(axes)} axes has perm {perm.integers}")
    return tuple(axes[axis] for axis in perm.integers)


def _reduced(node: Node, index: int, axes: tuple[int, ...]) -> int | None:
    """The stored axis over which ``node`` sums."""
    if len(axes) < 2:
        return None
    if node.op_type == "Conv":
        return axes[1]
    if node.op_type == "Gemm":
        flag = node.attributes.get("transA" if index == 0 else "transB")
        transposed = bool(flag and flag.integer)
        return axes[1 if transposed == bool(index) else 0]
    return axes[-1 if index == 0 else -2]


def _zero_point(use: Use, data: TensorData) -> tuple[ZeroPoint | None, bool]:
    """Which code means zero, and whether the codes have a meaning at all."""
    node = use.dequantize
    if node is None or "int" not in dtype_name(use.tensor):
        return None, True
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        return ZeroPoint(np.zeros((), np.int8)), True
    stored, at = use.scope.find(name)
    for _ in range(1000):  # a name may lead back to itself
        if not (isinstance(stored, Node) and stored.op_type == "Identity"):
            break
        stored, at = at.find(stored.inputs[0] if stored.inputs else "")
    if not isinstance(stored, Tensor):
        return None, False  # computed: nothing here can tell
    codes = data.read(stored)
    if codes.size == 0:
        return None, False
    if (codes == codes.flat[0]).all():
        return ZeroPoint(codes.reshape(-1)[0]), True
    attribute = node.attributes.get("axis")
    axis = 1 if attribute is None or attribute.integer is None else attribute.integer
    rank = len(use.tensor.shape)
    if codes.ndim != 1 or not -rank <= axis < rank:
        return None, False  # one for each block
    stored_axis = use.code_axes[axis]
    if codes.shape[0] != use.tensor.shape[stored_axis]:
        raise InputError(
            f"{codes.shape[0]} zero points for {use.tensor.shape[stored_axis]} slices",
            file=data.file.path,
            tensor=use.tensor.name,
        )
    return ZeroPoint(codes, stored_axis), True
