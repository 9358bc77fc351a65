"""How a product uses a stored tensor, from what its operand looks like."""

from dataclasses import dataclass, replace

from step_cli.formats.onnx.model import Node, Tensor
from step_cli.formats.onnx.weights.boxes import boxes_of
from step_cli.formats.onnx.weights.operands import Operand
from step_cli.formats.onnx.weights.views import Piece, merged, overlap
from step_cli.formats.onnx.weights.zero_points import Meaning
from step_cli.nm.tensor_data import Part


@dataclass(frozen=True)
class Use:
    """How a node multiplies by a stored tensor.

    Attributes:
        node: The product.
        tensor: The stored tensor.
        axis: Its group axis; None if the operand is a vector.
        outputs: Its axis of the outputs, if there is one.
        boxes: What of it the product uses.
        meaning: Which of its numbers mean zero.
    """

    node: Node
    tensor: Tensor
    axis: int | None
    outputs: int | None
    boxes: tuple[Part, ...]
    meaning: Meaning


def use_of(node: Node, operand: Operand, piece: Piece) -> Use | None:
    """How a product uses a piece of its operand; None if that cannot be told."""
    summed = merged(piece.axes[operand.summed])
    flat = len(piece.tensor.shape) < 2
    if operand.outputs is None and flat:
        return Use(node, piece.tensor, None, None, (), piece.meaning)
    wide = [run for run in summed if run.size != 1] or list(summed)
    if flat or not wide or wide[-1].stride != 1 or _is_masked(operand, piece):
        return None
    group = wide[-1]
    axes = list(piece.axes)
    axes[operand.summed] = summed
    phase = piece.at[operand.summed]
    boxes = boxes_of(replace(piece, axes=tuple(axes)), group, phase)
    if boxes is None:
        return None
    outputs = None
    if operand.outputs is not None:
        behind = [run for run in piece.axes[operand.outputs] if run.axis != group.axis]
        lie = [run for run in behind if run.size != 1] or behind
        outputs = lie[-1].axis if lie and lie[-1].stride == 1 else None
    return Use(node, piece.tensor, group.axis, outputs, tuple(boxes), piece.meaning)


def _is_masked(operand: Operand, piece: Piece) -> bool:
    """Whether it is multiplied by different numbers for each input of each output."""
    if operand.outputs is None:
        return False
    inputs = [operand.summed, *operand.window]
    over = tuple(run for axis in inputs for run in piece.axes[axis])
    outputs = piece.axes[operand.outputs]
    hidden = piece.hidden
    return any(
        overlap(one, over, hidden) and overlap(one, outputs, hidden)
        for one in piece.scaled
    )
