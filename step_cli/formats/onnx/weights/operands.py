"""What a product makes of its inputs: the axes that it sums over, and the others."""

from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from step_cli.formats.onnx.weights import views
from step_cli.formats.onnx.weights.behind import scale_behind
from step_cli.formats.onnx.weights.codes import dequantized
from step_cli.formats.onnx.weights.node_step import NodeStep
from step_cli.formats.onnx.weights.views import View

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Factor:
    """An input of a product that may be a weight.

    Attributes:
        index: Which input.
        side: Its place: ``left`` [.., out, in] or ``right`` [.., in, out] of a matrix
            product, a ``kernel`` [out, in, window...], the ``gates`` [direction, out,
            in] of a recurrent layer, ``turned gates`` [direction, in, out].
        zero: The input with its zero point, one or one for each output.
        scale: The input with its scale, likewise.
        turned: The attribute that swaps its last two axes.
        batched: The attribute that makes its first axis the last but one.
    """

    index: int
    side: str
    zero: int | None = None
    scale: int | None = None
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
    # Of recurrent layers there is one zero point for each direction.
    axis = 0 if factor.side == "turned gates" else operand.outputs or 0
    scale = _scale(factor, step, 1 if operand.outputs is None else view.shape[axis])
    view = dequantized(view, step.zero(factor.zero), scale, axis)
    return replace(operand, view=view)


def _scale(factor: Factor, step: NodeStep, outputs: int) -> Array | None:
    """What a product, or what stands behind it, multiplies codes by."""
    if factor.scale is None:
        scale = scale_behind(step.scope, step.node, step.small)
        # On the left, a row of numbers is of the outputs of the other factor.
        most = 1 if factor.side == "left" else outputs
        return scale if scale is not None and scale.size in (1, most) else None
    scale = step.constant(factor.scale)
    if scale is not None and factor.side == "turned gates" and scale.ndim == 2:
        return scale[:, None]  # one for each gate of each direction
    return scale


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
