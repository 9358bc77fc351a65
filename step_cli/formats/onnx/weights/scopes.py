"""What the names in a graph mean: in graphs within graphs, and in functions.

An alias, such as the input of a function, is followed to what makes the value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from step_cli.formats.onnx.constants import numbers_tensor
from step_cli.formats.onnx.graph import DEEPEST
from step_cli.formats.onnx.model import (
    STANDARD,
    Attribute,
    Function,
    Graph,
    Node,
    Tensor,
    domain_of,
)
from step_cli.formats.onnx.protobuf import WireError
from step_cli.formats.onnx.weights.loops import Turns, is_loop, turns_of

MOST_STEPS = 100_000  # from alias to alias; a name may lead back to itself

Functions = Mapping[tuple[str, str, str], Function]


@dataclass(frozen=True, eq=False)
class Made:
    """An output of a node."""

    scope: "Scope"
    node: Node
    index: int


@dataclass(frozen=True, eq=False)
class Entering:
    """What the body of a loop is given anew each time.

    Attributes:
        scope: Where the loop stands.
        node: The Loop or Scan.
        index: Which of its inputs enters.
        axis: Of which each index enters in its turn (Scan); None: the body changes it.
        body: The scope of the body.
        output: What the next turn is given, by its name in the body.
    """

    scope: "Scope"
    node: Node
    index: int
    axis: int | None
    body: "Scope"
    output: str = ""


Source = Tensor | Made | Entering


@dataclass(frozen=True)
class Alias:
    """Another name of the same value."""

    scope: "Scope"
    name: str


@dataclass(eq=False)
class Scope:
    """What names mean inside a graph; a subgraph also sees those around it.

    Attributes:
        graph: The graph.
        functions: Of the model.
        data: The file.
        outer: The scope of the node that the graph belongs to.
        entries: What its inputs are; those that are missing are not known here.
        attributes: Of a function: those of the call, or their defaults.
        is_function: Whether it is one, which does not see the names around it.
        owner: The node that the graph belongs to.
    """

    graph: Graph
    functions: Functions
    data: memoryview
    outer: "Scope | None" = None
    entries: dict[str, Alias | Entering] = field(default_factory=dict)
    attributes: Mapping[str, Attribute] | None = None
    is_function: bool = False
    owner: Node | None = None
    stored: dict[str, Tensor] = field(default_factory=dict)
    made: dict[str, Made] = field(default_factory=dict)
    inside: dict[int, "list[Scope]"] = field(default_factory=dict)
    _turns: dict[int, Turns] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._inputs = set(self.graph.inputs)
        self.depth: int = 0 if self.outer is None else self.outer.depth + 1
        if self.depth > DEEPEST:
            raise WireError(f"graphs and functions nested more than {DEEPEST} deep")
        for stored in (*self.graph.initializers, *self.graph.sparse):
            self.stored[stored.name] = stored
        for node in self.graph.nodes:
            if node.op_type == "Constant" and node.domain in STANDARD:
                tensor = self._constant(node)
                if tensor is not None:
                    tensor.name = node.outputs[0] if node.outputs else ""
                    self.stored[tensor.name] = tensor
                    continue
            for index, name in enumerate(node.outputs):
                self.made[name] = Made(self, node, index)

    @cached_property
    def takers(self) -> dict[str, list[Node]]:
        """The nodes of the graph that take each value; outputs are taken by none."""
        found: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def _constant(self, node: Node) -> Tensor | None:
        """The tensor that a Constant holds, whatever its form."""
        for name in ("value", "sparse_value"):
            value = self.attribute(node, name)
            if value is not None and value.tensor is not None:
                return value.tensor
        for name in ("value_float", "value_floats", "value_int", "value_ints"):
            value = self.attribute(node, name)
            if value is not None:
                return numbers_tensor(value, self.data)
        return None

    def attribute(self, node: Node, name: str) -> Attribute | None:
        """An attribute of a node of the graph; in a function maybe that of the call."""
        own = node.attributes.get(name)
        if own is None or not own.reference:
            return own
        scope = self
        while not scope.is_function and scope.outer is not None:
            scope = scope.outer
        return (scope.attributes or {}).get(own.reference)

    def turns(self, node: Node, body: Graph) -> Turns:
        """What a Loop or Scan of the graph does with its body."""
        if id(node) not in self._turns:
            number = self.attribute(node, "num_scan_inputs")
            axes = self.attribute(node, "scan_input_axes")
            self._turns[id(node)] = turns_of(
                node,
                body,
                None if number is None else number.integer,
                [] if axes is None else axes.integers,
            )
        return self._turns[id(node)]

    def function(self, node: Node) -> Function | None:
        """The function that a node calls, or None."""
        if not self.functions:
            return None
        domain = domain_of(node.domain)
        return self.functions.get((domain, node.op_type, node.overload))

    def find(self, name: str) -> Source | None:
        """What makes the value of that name, or None where that is not known."""
        scope: Scope = self
        for _ in range(MOST_STEPS):
            found = scope._step(name) if name else None
            if not isinstance(found, Alias):
                return found
            scope, name = found.scope, found.name
        return None

    def _step(self, name: str) -> Source | Alias | None:
        stored = self.stored.get(name)
        if stored is not None:
            return stored
        made = self.made.get(name)
        if made is not None:
            return self._result(made)
        if name in self.entries:
            return self.entries[name]
        if self.outer is None or self.is_function or name in self._inputs:
            return None
        return Alias(self.outer, name)

    def _result(self, made: Made) -> Made | Alias:
        """An output, or what it is another name of."""
        node, index = made.node, made.index
        inside = self.inside.get(id(node), [])
        if self.function(node) is not None and inside:
            outputs = inside[0].graph.outputs
            if index < len(outputs):
                return Alias(inside[0], outputs[index])
        for body in inside if is_loop(node) else ():
            turns = self.turns(node, body.graph)
            if index in turns.kept:
                return Alias(self, node.inputs[turns.first + index])
        return made
