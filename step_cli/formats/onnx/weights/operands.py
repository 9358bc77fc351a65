"""What a product makes of its inputs: the axes that it sums over, and the others."""

from dataclasses import dataclass, replace

from step_cli.formats.onnx.weights import views
from step_cli.formats.onnx.weights.codes import dequantized
from step_cli.formats.onnx.weights.node_step import NodeStep
from step_cli.formats.onnx.weights.views import View


@dataclass(frozen=True)
class Factor:
    """An input of a product that may be a weight.

    Attributes:
        index: Which input.
        side: Its place: ``left`` [.., out, in] or ``right`` [.., in, out] of a matrix
            product, a ``kernel`` [out, in, window...], the ``gates`` [direction, out,
            in] of a recurrent layer, ``turned gates`` [direction, in, out].
        zero: The input with its zero point, one or one for each output.
        turned: The attribute that swaps its last two axes.
        batched: The attribute that makes its first axis the last but one.
    """

    index: int
    side: str
    zero: int | None = None
    turned: str | None = None
    batched: str | None = None


@dataclass(frozen=True)
class Operand:
    """A factor as a product multiplies by it.

    Attributes:
        view: What it looks like.
        summed: The axis that the product sums over first.
        outputs: The axis of the outputs; None: it is a vector.
        window: Further axes that it sums over.
    """

    view: View
    summed: int
    outputs: int | None
    window: tuple[int, ...] = ()


def operand_of(factor: Factor, view: View, step: NodeStep) -> Operand | None:
    """What a product makes of an input; None if its rank does not fit."""
    rank = len(view.shape)
    turned = factor.turned and step.number(factor.turned)
    batched = factor.batched and step.number(factor.batched)
    if rank >= 2 and (turned or batched):
        order = list(range(rank))
        if batched:
            order = [*order[1:-1], order[0], order[-1]]
        if turned:
            order[-2:] = order[:-3:-1]
        found = views.transposed(view, order)
        assert found is not None
        view = found
    operand = _placed(factor.side, view)
    if operand is None or factor.zero is None:
        return operand
    axis = operand.outputs or 0
    if factor.side == "turned gates":
        axis = 0  # one for each direction
    view = dequantized(view, step.zero(factor.zero), axis)
    return replace(operand, view=view)


def _placed(side: str, view: View) -> Operand | None:
    rank = len(view.shape)
    if side.endswith("gates"):
        summed, outputs = (2, 1) if side == "gates" else (1, 2)
        return Operand(view, summed, outputs) if rank == 3 else None
    if rank == 1 and side != "kernel":
        return Operand(view, 0, None)
    if rank < 2:
        return None
    if side == "kernel":
        return Operand(view, 1, 0, tuple(range(2, rank)))
    if side == "left":
        return Operand(view, rank - 1, rank - 2)
    return Operand(view, rank - 2, rank - 1)
