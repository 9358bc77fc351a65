"""What each value of a graph looks like, followed back to the stored tensors."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from step_cli.formats.onnx.data import DTYPES
from step_cli.formats.onnx.model import STANDARD, Node, Tensor, domain_of
from step_cli.formats.onnx.operators import LOOKED_THROUGH, LookedThrough
from step_cli.formats.onnx.weights import views
from step_cli.formats.onnx.weights.loops import is_loop
from step_cli.formats.onnx.weights.node_step import NodeStep
from step_cli.formats.onnx.weights.rules import scaled_input
from step_cli.formats.onnx.weights.scopes import Entering, Made, Scope, Source
from step_cli.formats.onnx.weights.views import View

Array = npt.NDArray[Any]
Read = Callable[[Tensor], Array]

MOST_PIECES_IN_ALL = 1_000_000


def looked_through(made: Made) -> LookedThrough | None:
    """How the operator of a node is looked through, if it is."""
    node = made.node
    if made.scope.function(node) is not None:
        return None
    return LOOKED_THROUGH.get((domain_of(node.domain), node.op_type))


def is_choice(node: Node) -> bool:
    """Whether it is an If."""
    return node.op_type == "If" and node.domain in STANDARD


@dataclass(eq=False)
class Tracer:
    """Follows values back to stored tensors, each value once.

    Args:
        read: The data of a stored tensor; asked for small constants alone.
    """

    read: Read
    _views: dict[int, View | None] = field(default_factory=dict)
    _sources: dict[tuple[int, str], Source | None] = field(default_factory=dict)
    _pieces: int = 0

    def source(self, scope: Scope, name: str) -> Source | None:
        """What makes a value, aliases followed."""
        key = id(scope), name
        if key not in self._sources:
            self._sources[key] = scope.find(name)
        return self._sources[key]

    def view(self, source: Source | None) -> View | None:
        """What a value looks like; None if it cannot be followed."""
        if source is None:
            return None
        for one in self._in_order(source):
            self._views[id(one)] = self._counted(self._view(one))
        return self._views[id(source)]

    def came_from(self, source: Source) -> list[Source]:
        """The values that a view of this one is made from."""
        found: Sequence[Source | None] = []
        if isinstance(source, Entering):
            if source.axis is not None:
                inputs = source.node.inputs
                found = [self.source(source.scope, inputs[source.index])]
        elif isinstance(source, Made):
            operator = looked_through(source)
            if operator is not None:
                names = source.node.inputs[: operator.inputs]
                found = [self.source(source.scope, name) for name in names]
            elif is_choice(source.node):
                found = self.branches(source)
        return [one for one in found if one is not None]

    def followed(self, source: Source) -> list[tuple[int, Source]]:
        """The inputs, and their values, that an operand has come through."""
        if isinstance(source, Entering):
            return [(source.index, one) for one in self.came_from(source)]
        if not isinstance(source, Made):
            return []
        operator = looked_through(source)
        if operator is None:
            return [(-1, one) for one in self.came_from(source)]
        chosen: int | None = None
        if operator.inputs == 2:
            either = source.node.op_type == "Mul"
            chosen = scaled_input(self._step(source), either=either)
        return [
            (index, one)
            for index, name in enumerate(source.node.inputs[: operator.inputs])
            if chosen in (None, index)
            and (one := self.source(source.scope, name)) is not None
        ]

    def small(self, scope: Scope, name: str, most: int) -> Array | None:
        """A constant of at most that many elements, or None."""
        tensor = self.stored(self.source(scope, name))
        return self.read(tensor) if tensor and math.prod(tensor.shape) <= most else None

    def stored(self, source: Source | None) -> Tensor | None:
        """The stored tensor of numbers that a value is, but for casts."""
        for _ in range(100):
            if not isinstance(source, Made) or source.node.domain not in STANDARD:
                break
            if source.node.op_type not in ("Identity", "Cast"):
                break
            inputs = source.node.inputs
            source = self.source(source.scope, inputs[0] if inputs else "")
        known = isinstance(source, Tensor) and DTYPES.get(source.data_type) is not None
        return source if isinstance(source, Tensor) and known else None

    def step(self, scope: Scope, node: Node, index: int = 0) -> NodeStep:
        """A node as the rules for operators see it."""
        sources = [self.source(scope, name) for name in node.inputs]
        known = [None if one is None else self._views.get(id(one)) for one in sources]
        return NodeStep(scope, node, index, known, self.small)

    def _step(self, made: Made) -> NodeStep:
        return self.step(made.scope, made.node, made.index)

    def _view(self, source: Source) -> View | None:
        if isinstance(source, Tensor):
            return views.whole(source) if min(source.shape, default=0) >= 0 else None
        if isinstance(source, Entering):
            before = self.came_from(source)
            view = self._views.get(id(before[0])) if before else None
            if view is None or source.axis is None:
                return None
            return views.without_axis(view, source.axis)
        operator = looked_through(source)
        if operator is not None:
            return operator.rule(self._step(source)) if source.node.inputs else None
        return self._either(source) if is_choice(source.node) else None

    def _either(self, made: Made) -> View | None:
        """What an If makes: of one branch or of the other."""
        branches = self.branches(made)
        found = [self._views.get(id(one)) for one in branches if one is not None]
        known = [view for view in found if view is not None]
        if not known or len(known) != len(branches):
            return None
        if any(view.shape != known[0].shape for view in known):
            return None
        pieces = tuple(piece for view in known for piece in view.pieces)
        return View(known[0].shape, pieces)

    def branches(self, made: Made) -> list[Source | None]:
        """What the graphs in an If, Loop or Scan make for an output of it."""
        found: list[Source | None] = []
        for inner in made.scope.inside.get(id(made.node), []):
            index, outputs = made.index, inner.graph.outputs
            if is_loop(made.node):
                index += made.scope.turns(made.node, inner.graph).output
            name = outputs[index] if index < len(outputs) else ""
            found.append(self.source(inner, name))
        return found

    def _counted(self, view: View | None) -> View | None:
        if view is None:
            return None
        self._pieces += len(view.pieces)
        enough = self._pieces > MOST_PIECES_IN_ALL
        return None if enough or len(view.pieces) > views.MOST_PIECES else view

    def _in_order(self, source: Source) -> Iterator[Source]:
        """The values that are not done yet, each after those it is made from.

        Without recursion, as graphs are deep; one that leads back to itself ends.
        """
        opened: set[int] = set()
        waiting = [source]
        while waiting:
            one = waiting[-1]
            if id(one) in self._views:
                waiting.pop()
            elif id(one) in opened:
                waiting.pop()
                yield one
            else:
                opened.add(id(one))
                waiting += [
                    other
                    for other in self.came_from(one)
                    if id(other) not in self._views and id(other) not in opened
                ]
