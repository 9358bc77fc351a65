"""Loop and Scan: what their bodies are given in each turn, and what they hand on."""

from collections.abc import Sequence
from dataclasses import dataclass

from step_cli.formats.onnx.model import Graph, Node

STANDARD = ("", "ai.onnx")  # both name the domain of ONNX itself


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
    """

    body: Graph
    first: int
    output: int
    states: int
    axes: list[int]

    def handed_on(self, state: int) -> str:
        """The name of the state that the next turn is given."""
        place = self.output + state
        return self.body.outputs[place] if place < len(self.body.outputs) else ""

    def keeps(self, state: int) -> bool:
        """Whether the body hands a state on as it was given."""
        given = self.body.inputs[self.first + state]
        name = self.handed_on(state)
        identities = {
            one.outputs[0]: one.inputs[0]
            for one in self.body.nodes
            if one.op_type == "Identity" and one.domain in STANDARD
            if one.inputs and one.outputs
        }
        for _ in range(len(identities) + 1):
            if name == given:
                return True
            name = identities.get(name, "")
        return False


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
        return Turns(body, 2, 1, inputs - 2, [])
    if scanned is None or not 0 <= scanned <= inputs or inputs != len(body.inputs):
        return Turns(body, 0, 0, 0, [])  # Scan of opset 8 among them
    return Turns(body, 0, 0, inputs - scanned, list(axes) or [0] * scanned)
