"""Where a product stands: in a branch, in the body of a Loop or Scan, in a function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from formats.onnx.random_graphs.protos import element_type
from formats.onnx.random_graphs.scope import Scope
from formats.onnx.random_graphs.values import Runtime
from onnx import TensorProto, helper

Inner = Callable[[Scope], str]


@dataclass(frozen=True)
class Wrapper:
    """One of the things a product stands in.

    Attributes:
        kind: function, if, loop or scan.
        condition: Of an If, an input of the graph.
        taken: The branch of an If that the product is in.
        trips: How often a Loop or Scan runs.
    """

    kind: str
    condition: Runtime | None = None
    taken: bool = True
    trips: int = 1

    @property
    def repeats(self) -> bool:
        """Whether the output has one more axis."""
        return self.kind in ("loop", "scan")


@dataclass(frozen=True)
class Place:
    """What a product stands in, from the outside in, and its first input."""

    wrappers: tuple[Wrapper, ...]
    x: Runtime
    dtype: str  # of the output
    guest: Inner | None = None  # writes what stands in the other branch of an If

    @property
    def axes(self) -> int:
        """How many axes the wrappers add to the output."""
        return sum(wrapper.repeats for wrapper in self.wrappers)

    def write(self, scope: Scope, inner: Inner, level: int = 0) -> str:
        if level == len(self.wrappers):
            return inner(scope)
        wrapper = self.wrappers[level]
        kinds = {"function": "function", "if": "branch"}
        child = scope.child(
            kinds.get(wrapper.kind, "body"), lambda value: value.level > level
        )
        if wrapper.kind == "function":
            return scope.call(child, self.write(child, inner, level + 1))
        writers = {"if": self._if, "loop": self._loop, "scan": self._scan}
        return writers[wrapper.kind](scope, child, inner, level)

    def _if(self, scope: Scope, child: Scope, inner: Inner, level: int) -> str:
        wrapper = self.wrappers[level]
        assert wrapper.condition is not None
        y = self.write(child, inner, level + 1)
        other = scope.child("branch", lambda value: value.level > level)
        if self.guest is None:
            z = other.node("Identity", [other.constant([[0]], self.dtype)])
        else:
            z = self.guest(other)
        graphs = [child.graph([], [nameless(y)]), other.graph([], [nameless(z)])]
        if not wrapper.taken:
            graphs.reverse()
        condition = scope.emit(wrapper.condition)
        made: str = scope.node(
            "If", [condition], then_branch=graphs[0], else_branch=graphs[1]
        )
        return made

    def _loop(self, scope: Scope, child: Scope, inner: Inner, level: int) -> str:
        step, go = child.fresh(), child.fresh()
        y = self.write(child, inner, level + 1)
        onward = child.node("Identity", [go])
        states = carried_on(child)
        body = child.graph(
            [
                helper.make_tensor_value_info(step, TensorProto.INT64, []),
                helper.make_tensor_value_info(go, TensorProto.BOOL, []),
                *entering(child),
            ],
            [nameless(name) for name in (onward, *states, y)],
        )
        trips = scope.constant(self.wrappers[level].trips)
        outer = [name for name, _, _ in child.entered]
        made = scope.node("Loop", [trips, "", *outer], len(states) + 1, body=body)
        return _last(made)

    def _scan(self, scope: Scope, child: Scope, inner: Inner, level: int) -> str:
        x, element = scope.emit(self.x), child.fresh()
        child.known[id(self.x)] = element
        y = self.write(child, inner, level + 1)
        states = carried_on(child)
        kind = element_type(self.x.dtype)
        body = child.graph(
            [
                *entering(child),
                helper.make_tensor_value_info(element, kind, self.x.shape),
                *(helper.make_empty_tensor_value_info(e) for _, e in child.elements),
            ],
            [nameless(name) for name in (*states, y)],
        )
        outer = [name for name, _, _ in child.entered]
        trips = self.wrappers[level].trips
        many = scope.node("Reshape", [x, scope.constant([1, *self.x.shape])])
        many = scope.node("Concat", [many] * trips, axis=0)
        scanned = [many, *(name for name, _ in child.elements)]
        made = scope.node(
            "Scan",
            [*outer, *scanned],
            len(states) + 1,
            body=body,
            num_scan_inputs=len(scanned),
        )
        return _last(made)


def carried_on(child: Scope) -> list[str]:
    """What the next trip gets."""
    return [
        child.node(child.changes.get(name, "Identity"), [name])
        for _, name, _ in child.entered
    ]


def entering(child: Scope) -> list[Any]:
    return [
        helper.make_tensor_value_info(name, element_type(value.dtype), value.shape)
        for _, name, value in child.entered
    ]


def nameless(name: str) -> Any:
    """An output of a subgraph: its type is left to inference."""
    return helper.make_empty_tensor_value_info(name)


def _last(made: str | list[str]) -> str:
    return made if isinstance(made, str) else made[-1]
