"""Which stored tensors the nodes of a graph multiply by, and along which axis.

It starts from the products of `operators`. Each of their factors is followed back to
stored tensors; what depends on stored tensors alone and cannot be followed makes those
untraced.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.onnx.data import NIBBLES, TensorData
from step_cli.formats.onnx.graph import ModelReader
from step_cli.formats.onnx.model import Model, Node, Tensor, domain_of
from step_cli.formats.onnx.operators import OTHER_PRODUCTS, PRODUCTS
from step_cli.formats.onnx.weights.dependence import Dependence
from step_cli.formats.onnx.weights.nesting import scopes_of
from step_cli.formats.onnx.weights.operands import Factor, operand_of
from step_cli.formats.onnx.weights.scopes import Made, Scope, Source
from step_cli.formats.onnx.weights.tracer import Read, Tracer
from step_cli.formats.onnx.weights.use import Use, use_of

MOST_BOXES_IN_ALL = 1 << 18  # parts of stored tensors, before they are put together
MOST_OF_A_MASK = 4096  # numbers that are looked at
# Numbers of TensorProto.DataType that a matrix of weights may have.
_WEIGHTS = frozenset({1, 2, 3, 5, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23})


@dataclass(eq=False)
class Uses:
    """All that the products of a model use.

    Attributes:
        scopes: The graphs of the model.
        tracer: What followed the operands.
        products: Each use, in the order of the nodes.
        untraced: Stored tensors that reach a product by a way that is not followed, by
            their ids.
        followed: The values on the ways that were, by their ids.
        edges: The inputs on those ways: ids of scope and node, and which input.
    """

    scopes: list[Scope]
    tracer: Tracer
    products: list[Use] = field(default_factory=list)
    untraced: dict[int, Tensor] = field(default_factory=dict)
    followed: dict[int, Source] = field(default_factory=dict)
    edges: set[tuple[int, int, int]] = field(default_factory=set)
    _searched: set[tuple[int, bool]] = field(default_factory=set)
    _boxes: int = 0

    def __post_init__(self) -> None:
        self.dependence = Dependence(self.tracer)

    def find(self) -> None:
        """Look at every product."""
        for scope in self.scopes:
            for node in scope.graph.nodes:
                if scope.function(node) is not None:
                    continue  # its own nodes are in a scope of theirs
                key = domain_of(node.domain), node.op_type
                for factor in PRODUCTS.get(key, ()):
                    self._factor(scope, node, factor)
                for index in OTHER_PRODUCTS.get(key, ()):
                    self._not_followed(self._input(scope, node, index))

    def _input(self, scope: Scope, node: Node, index: int) -> Source | None:
        name = node.inputs[index] if index < len(node.inputs) else ""
        return self.tracer.source(scope, name)

    def _factor(self, scope: Scope, node: Node, factor: Factor) -> None:
        """Follow one operand of a product."""
        source = self._input(scope, node, factor.index)
        view = self.tracer.view(source)
        if source is None or view is None:
            self._not_followed(source)
            return
        operand = operand_of(factor, view, self.tracer.step(scope, node))
        found = 0
        for piece in operand.view.pieces if operand is not None else view.pieces:
            use = use_of(node, operand, piece) if operand is not None else None
            self._boxes += len(use.boxes) if use is not None else 0
            if use is not None and self._boxes <= MOST_BOXES_IN_ALL:
                found += 1
                self.products.append(use)
            elif _may_be_matrix(piece.tensor, True):
                self.untraced[id(piece.tensor)] = piece.tensor
        if found:
            self.edges.add((id(scope), id(node), factor.index))
            self._mark(source)

    def _mark(self, source: Source) -> None:
        """Note the way that an operand has come."""
        waiting = [source]
        while waiting:
            one = waiting.pop()
            if id(one) in self.followed:
                continue
            self.followed[id(one)] = one
            for index, before in self.tracer.followed(one):
                waiting.append(before)
                if not isinstance(one, Tensor):
                    self.edges.add((id(one.scope), id(one.node), index))

    def _not_followed(self, source: Source | None) -> None:
        """Make the matrices untraced that such an operand depends on, and only they."""
        if source is None or not self.dependence.on_stored_alone(source):
            return
        waiting = [(source, True)]
        while waiting:
            one, matrix = waiting.pop()
            if (id(one), matrix) in self._searched:
                continue
            self._searched.add((id(one), matrix))
            if isinstance(one, Tensor):
                if _may_be_matrix(one, matrix):
                    self.untraced[id(one)] = one
                continue
            needs = [x for x in self.dependence.shown(one) if _may_be_weights(x)]
            joins = isinstance(one, Made) and one.node.op_type in ("Concat", "If")
            if len(needs) > 1 and not joins:
                needs = self._without_companions(one, needs)
                matrix = (matrix and len(needs) == 1) or self._shows_matrix(one)
            waiting += [(need, matrix or self._shows_matrix(need)) for need in needs]

    def _without_companions(self, source: Source, needs: list[Source]) -> list[Source]:
        """Those of some values that meet in a node which may be matrices of weights.

        Not a mask, and no scale, bias or index where anything else may be one.
        """
        is_mul = isinstance(source, Made) and source.node.op_type == "Mul"
        masks = [need for need in needs if is_mul and self._is_mask(need)]
        if len(masks) == 1:
            needs = [need for need in needs if need is not masks[0]]
        shapes = [(need, self.tracer.view(need)) for need in needs]
        some = [x for x, view in shapes if view is None or _is_matrix(view.shape)]
        return some or needs

    def _shows_matrix(self, source: Source) -> bool:
        """Whether it is known to be a matrix, whatever the stored tensor looks like."""
        view = self.tracer.view(source)
        if view is not None or not isinstance(source, Made):
            return view is not None and _is_matrix(view.shape)
        if source.node.op_type != "Reshape":
            return False
        shape = self.tracer.step(source.scope, source.node).numbers("shape", 1)
        return shape is not None and _is_matrix(shape)

    def _is_mask(self, source: Source) -> bool:
        """Whether the first numbers of a stored tensor are all 0 or 1."""
        tensor = self.tracer.stored(source)
        if tensor is None or tensor.values or tensor.data_type in NIBBLES:
            return False
        first = self.tracer.read(tensor).reshape(-1)[:MOST_OF_A_MASK]
        return bool(((first == 0) | (first == 1)).all())


def uses_of(model: Model, read: Read) -> Uses:
    """Every product by a stored tensor.

    Args:
        model: The model.
        read: The data of a stored tensor; asked for small constants alone.

    Raises:
        WireError: Its graphs are too many, or nested too deep.
    """
    uses = Uses(scopes_of(model), Tracer(read))
    uses.find()
    return uses


def _may_be_weights(source: Source) -> bool:
    """Whether it is not stored, or numbers that a matrix of weights could have."""
    if not isinstance(source, Tensor):
        return True
    return source.data_type in _WEIGHTS and math.prod(source.shape) > 1


def _is_matrix(shape: Sequence[int]) -> bool:
    """Whether it has two axes of more than one element; -1 is of any number."""
    return sum(size not in (0, 1) for size in shape) > 1


def _may_be_matrix(tensor: Tensor, matrix: bool) -> bool:
    """Whether a stored tensor may be a matrix, or becomes one on its way."""
    return _may_be_weights(tensor) and (matrix or _is_matrix(tensor.shape))


def nodes_of_weights(path: Path) -> dict[str, list[str]]:
    """Names of the nodes that multiply by each stored weight, by the weight's name."""
    found: dict[str, list[str]] = {}
    file = map_file(path)
    model = ModelReader(file.data.data).model()
    for use in uses_of(model, TensorData(file).read).products:
        found.setdefault(use.tensor.name, []).append(use.node.name)
    return found


def operators_of(path: Path) -> dict[str, set[str]]:
    """The operators that take each value of a graph, by the value's name."""
    found: dict[str, set[str]] = {}
    for node in ModelReader(map_file(path).data.data).model().graph.nodes:
        for name in node.inputs:
            found.setdefault(name, set()).add(node.op_type)
    return found
