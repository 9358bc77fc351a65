"""Which stored tensors the nodes of a graph multiply by, and along which axis.

The rule is that of TensorRT: a weight is what Conv, Gemm or MatMul multiply by, looked
through Transpose, Cast, Identity, QuantizeLinear and DequantizeLinear.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from step_cli.formats.files.mapped_file import map_file
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

MOST_SCOPES = 10_000  # graphs, and functions as often as they are called
STANDARD = ("", "ai.onnx")  # the domain of these operators
WEIGHT_INPUTS = {"Conv": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}
SEEN_THROUGH = frozenset(
    {"Transpose", "Cast", "Identity", "QuantizeLinear", "DequantizeLinear"}
)
TRANSPOSED = "transA", "transB"  # attributes of Gemm, one for each of these inputs


def permuted_axes(axes: Sequence[int], perm: Sequence[int] | None) -> tuple[int, ...]:
    """The stored axis behind each axis of what a Transpose makes.

    Raises:
        WireError: ``perm`` is no order of the axes.
    """
    order = range(len(axes))[::-1] if perm is None else perm
    if sorted(order) != list(range(len(axes))):
        raise WireError(f"Transpose of {len(axes)} axes has perm {list(order)}")
    return tuple(axes[axis] for axis in order)


def summed_axis(
    op_type: str, index: int, axes: Sequence[int], *, transposed: bool
) -> int | None:
    """The stored axis over which a node sums; None if there are too few.

    Args:
        op_type: Of the node.
        index: Which of its inputs the weight is.
        axes: The stored axis behind each axis of that input.
        transposed: Whether a Gemm transposes that input.
    """
    if len(axes) < 2:
        return None
    if op_type == "Conv":
        return axes[1]
    if op_type == "Gemm":
        return axes[1 if transposed == bool(index) else 0]
    return axes[-1 if index == 0 else -2]


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

    node: Node
    tensor: Tensor
    axis: int | None  # group axis of the stored tensor; None if it has too few axes
    dequantize: Node | None  # the node that gives its integer codes a meaning
    code_axes: tuple[int, ...]  # stored axis behind each axis of that node's input
    scope: Scope  # of that node


def scopes_of(model: Model) -> list[Scope]:
    """All graphs of a model; those of a function wherever it is called.

    Raises:
        WireError: They are too many, or nested too deep.
    """
    functions = {(one.domain, one.name): one for one in model.functions}
    scopes = list(islice(_scopes(Scope(model.graph), functions), MOST_SCOPES + 1))
    if len(scopes) > MOST_SCOPES:
        raise WireError(f"more than {MOST_SCOPES} graphs and calls of functions")
    return scopes


def uses_in(scope: Scope) -> Iterator[Use]:
    """Every product by a stored tensor."""
    for node in scope.graph.nodes:
        yield from _uses_of(node, scope)


def nodes_of_weights(path: Path) -> dict[str, list[str]]:
    """Names of the nodes that multiply by each stored weight, by the weight's name."""
    found: dict[str, list[str]] = {}
    for scope in scopes_of(ModelReader(map_file(path).data.data).model()):
        for use in uses_in(scope):
            found.setdefault(use.tensor.name, []).append(use.node.name)
    return found


def operators_of(path: Path) -> dict[str, set[str]]:
    """The operators that take each value of a graph, by the value's name."""
    found: dict[str, set[str]] = {}
    for node in ModelReader(map_file(path).data.data).model().graph.nodes:
        for name in node.inputs:
            found.setdefault(name, set()).add(node.op_type)
    return found


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


def _uses_of(node: Node, scope: Scope) -> Iterator[Use]:
    """The stored tensors that ``node`` multiplies by."""
    if node.domain not in STANDARD:
        return
    for index in WEIGHT_INPUTS.get(node.op_type, ()):
        if index < len(node.inputs):
            use = _traced(node, index, scope)
            if use is not None:
                yield use


def _traced(node: Node, index: int, scope: Scope) -> Use | None:
    """Follow an input of ``node`` back to a stored tensor, if it comes from one."""
    between: list[tuple[Node, Scope]] = []
    made_by, at = scope.find(node.inputs[index])
    while isinstance(made_by, Node):
        if made_by.op_type not in SEEN_THROUGH or made_by.domain not in STANDARD:
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
            perm = step.attributes.get("perm")
            axes = permuted_axes(axes, None if perm is None else perm.integers)
    flag = node.attributes.get(TRANSPOSED[index])
    axis = summed_axis(
        node.op_type, index, axes, transposed=bool(flag and flag.integer)
    )
    return Use(node, made_by, axis, dequantize, code_axes, scope)
