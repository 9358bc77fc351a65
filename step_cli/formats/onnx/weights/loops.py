"""Loop and Scan: what their bodies are given in each turn, and what they hand on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from step_cli.formats.onnx.model import STANDARD, Graph, Node

MOST_IDENTITIES = 1000  # one after another


def is_loop(node: Node) -> bool:
    """Whether its body runs again and again."""
    return node.domain in STANDARD and node.op_type in ("Loop", "Scan")


@dataclass(frozen=True)
class Turns:
    """How the body of a Loop or Scan is given its inputs, and what it hands on.

    Attributes:
        body: Its graph.
        first: Which input, of the node and of the body alike, is the first state.
        output: Which output of the body is the first state.
        states: How many there are.
        axes: Of each further input, the axis whose indices enter in their turn.
        kept: The states that the body hands on as it was given them.
    """

    body: Graph
    first: int
    output: int
    states: int
    axes: Sequence[int] = ()
    kept: frozenset[int] = frozenset()

    def handed_on(self, state: int) -> str:
        """The name of the state that the next turn is given."""
        place = self.output + state
        return self.body.outputs[place] if place < len(self.body.outputs) else ""


def turns_of(
    node: Node, body: Graph, scanned: int | None, axes: Sequence[int]
) -> Turns:
    """What a Loop or Scan does; no states where it is malformed.

    Args:
        node: The Loop or Scan.
        body: Its body.
        scanned: How many of the last inputs of a Scan are given index by index.
        axes: Along which axis each of them; none: all along the first.
    """
    inputs = len(node.inputs)
    if node.op_type == "Loop" and len(body.inputs) >= inputs >= 2:
        return _with_kept(Turns(body, 2, 1, inputs - 2))
    if scanned is None or not 0 <= scanned <= inputs or inputs != len(body.inputs):
        return Turns(body, 0, 0, 0)  # Scan of opset 8 among them
    if len(axes) not in (0, scanned):
        return Turns(body, 0, 0, 0)
    return _with_kept(Turns(body, 0, 0, inputs - scanned, axes or [0] * scanned))


def _with_kept(turns: Turns) -> Turns:
    body = turns.body
    before = {
        one.outputs[0]: one.inputs[0]
        for one in body.nodes
        if one.op_type == "Identity" and one.domain in STANDARD
        if one.inputs and one.outputs
    }
    kept = set()
    for state in range(turns.states):
        name = turns.handed_on(state)
        for _ in range(MOST_IDENTITIES):
            if name == body.inputs[turns.first + state]:
                kept.add(state)
                break
            if name not in before:
                break
            name = before[name]
    return replace(turns, kept=frozenset(kept))
