"""What an operand looks like behind each operator that is looked through."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.formats.onnx.weights import views
from step_cli.formats.onnx.weights.codes import dequantized
from step_cli.formats.onnx.weights.node_step import NodeStep
from step_cli.formats.onnx.weights.reshaping import reshaped
from step_cli.formats.onnx.weights.scales import rescaled
from step_cli.formats.onnx.weights.slicing import sliced
from step_cli.formats.onnx.weights.views import View

Array = npt.NDArray[Any]


def transpose(step: NodeStep) -> View | None:
    """Transpose: the axes in another order."""
    view = step.views[0]
    return view and views.transposed(view, step.numbers("perm"))


def same(step: NodeStep) -> View | None:
    """Identity."""
    return step.views[0]


def cast(step: NodeStep) -> View | None:
    """What changes the form of the numbers, and leaves 0 as it is."""
    view = step.views[0]
    return view and views.scaled(view, ())


def reshape(step: NodeStep) -> View | None:
    """Reshape to a constant shape; 0 keeps a size, -1 is what is left."""
    view, shape = step.views[0], step.numbers("shape", 1)
    if view is None or shape is None:
        return None
    if not step.number("allowzero"):
        if any(not n and i >= len(view.shape) for i, n in enumerate(shape)):
            return None
        shape = [n or view.shape[i] for i, n in enumerate(shape)]
    if shape.count(-1) == 1:
        known, total = 1, 1
        for size in shape:
            known *= 1 if size == -1 else size
        for size in view.shape:
            total *= size
        if known <= 0 or total % known:
            return None
        shape = [total // known if size == -1 else size for size in shape]
    return None if any(n < 0 for n in shape) else reshaped(view, shape)


def flatten(step: NodeStep) -> View | None:
    """Flatten to a matrix."""
    view, axis = step.views[0], step.number("axis")
    if view is None:
        return None
    axis, rank = 1 if axis is None else axis, len(view.shape)
    if not -rank <= axis <= rank:
        return None
    rows = columns = 1
    for place, size in enumerate(view.shape):
        if place < (axis + rank if axis < 0 else axis):
            rows *= size
        else:
            columns *= size
    return reshaped(view, [rows, columns])


def squeeze(step: NodeStep) -> View | None:
    """Squeeze: axes of size 1 gone."""
    view, axes = step.views[0], step.numbers("axes", 1)
    if view is None or (axes is None and step.given("axes", 1)):
        return None
    return views.squeezed(view, axes)


def unsqueeze(step: NodeStep) -> View | None:
    """Unsqueeze: new axes of size 1."""
    view, axes = step.views[0], step.numbers("axes", 1)
    return None if view is None or axes is None else views.unsqueezed(view, axes)


def cut(step: NodeStep) -> View | None:
    """Slice with steps of 1."""
    view = step.views[0]
    starts, ends = step.numbers("starts", 1), step.numbers("ends", 2)
    if view is None or starts is None or ends is None:
        return None
    axes, steps = step.numbers("axes", 3), step.numbers("steps", 4)
    unknown = [name for name, found in (("axes", axes), ("steps", steps)) if not found]
    if any(step.given(name, 3 if name == "axes" else 4) for name in unknown):
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    rank = len(view.shape)
    if {len(ends), len(axes), len(steps)} != {len(starts)} or set(steps) - {1}:
        return None
    if any(not -rank <= axis < rank for axis in axes):
        return None
    for axis, start, end in zip(axes, starts, ends, strict=True):
        begin, stop, _ = slice(start, end).indices(view.shape[axis])
        found = sliced(view, axis % rank, begin, max(begin, stop))
        if found is None:
            return None
        view = found
    return view


def split(step: NodeStep) -> View | None:
    """Split: one of the parts."""
    view, axis = step.views[0], step.number("axis") or 0
    if view is None or not -len(view.shape) <= axis < len(view.shape):
        return None
    size, sizes = view.shape[axis], step.numbers("split", 1)
    if sizes is None:
        if step.given("split", 1) or step.number("num_outputs") not in (
            None,
            step.outputs,
        ):
            return None
        each = -(-size // step.outputs)
        ends = [min(size, each * (place + 1)) for place in range(step.outputs)]
        sizes = [end - min(size, each * place) for place, end in enumerate(ends)]
    if sum(sizes) != size or min(sizes) < 0 or step.index >= len(sizes):
        return None
    begin = sum(sizes[: step.index])
    end = begin + sizes[step.index]
    return sliced(view, axis % len(view.shape), begin, end)


def concat(step: NodeStep) -> View | None:
    """Concat: all inputs one after another."""
    found, axis = [view for view in step.views if view], step.number("axis")
    if not found or len(found) != len(step.views):
        return None
    return views.joined(found, 1 if axis is None else axis)


def multiply(step: NodeStep) -> View | None:
    """Mul by a scale."""
    index = scaled_input(step, either=True)
    return None if index is None else _scaled(step, index, step.constant(1 - index))


def divide(step: NodeStep) -> View | None:
    """Div by a scale."""
    index = scaled_input(step, either=False)
    if index is None:
        return None
    by = step.constant(1 - index)
    with np.errstate(divide="ignore"):
        return _scaled(step, index, None if by is None else 1 / by.astype(np.float32))


def scaled_input(step: NodeStep, *, either: bool) -> int | None:
    """Which input of Mul or Div the other one scales, or None.

    A scale has fewer axes of more than one element; with as many it is a mask.
    """
    if len(step.views) != 2 or step.given("axis", 2):  # as it was before opset 7
        return None
    one, other = step.views
    if one is None or other is None or len(one.shape) < len(other.shape):
        return 1 if either and one and other and _scales(one, other) else None
    if _scales(other, one):
        return 0
    return 1 if either and _scales(one, other) else None


def _scales(scale: View, view: View) -> bool:
    apart = len(view.shape) - len(scale.shape)
    if apart < 0:
        return False
    sizes = list(zip(scale.shape, view.shape[apart:], strict=True))
    fits = all(own in (1, size) for own, size in sizes)
    shorter = [1] * apart + [own for own, _ in sizes] != list(view.shape)
    return fits and (shorter or all(size == 1 for size in view.shape))


def _scaled(step: NodeStep, index: int, by: Array | None) -> View | None:
    """An input multiplied by the other one, whose numbers are ``by`` if known."""
    view, scale = step.views[index], step.views[1 - index]
    assert view is not None and scale is not None
    apart = len(view.shape) - len(scale.shape)
    found = views.scaled(
        view, [axis + apart for axis, size in enumerate(scale.shape) if size != 1]
    )
    if found is None:
        return None
    wide = None if by is None else by.reshape((1,) * apart + by.shape)
    return rescaled(found, wide, None)


def quantize(step: NodeStep) -> View | None:
    """QuantizeLinear: the numbers become codes around its zero point."""
    view = step.views[0]
    if view is None:
        return None
    zero = step.zero(2)
    pieces = [replace(p, meaning=p.meaning.quantized(zero)) for p in view.pieces]
    return View(view.shape, tuple(pieces))


def dequantize(step: NodeStep) -> View | None:
    """DequantizeLinear: its zero point tells what is zero, its scale the rest."""
    view, axis = step.views[0], step.number("axis")
    if view is None:
        return None
    return dequantized(
        view,
        step.zero(2),
        step.constant(1),
        1 if axis is None else axis,
        step.number("block_size") or 0,
    )
