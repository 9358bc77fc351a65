"""Tensors whose elements do not lie row by row: in another order, or among others."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from step_cli.errors import InputError
from step_cli.formats.checkpoint import NamedTensor
from step_cli.nm.dtypes import numpy_dtype

CHUNK = 4 << 20  # bytes put together at a time, or those of one row

Array = npt.NDArray[Any]


def order_of(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The axes from the slowest to the fastest."""
    # Where an axis has one element, its stride means nothing.
    step = [
        0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True)
    ]
    return tuple(sorted(range(len(step)), key=lambda axis: (-step[axis], axis)))


def fills(
    shape: Sequence[int], strides: Sequence[int], itemsize: int, order: Sequence[int]
) -> bool:
    """Whether the elements lie one after another, in the order of the axes.

    A transposed or channels-last tensor fills its bytes too, in another order.
    """
    step = itemsize
    for axis in reversed(order):
        if shape[axis] != 1 and strides[axis] != step:
            return False
        step *= shape[axis]
    return True


def in_place(
    tensor: NamedTensor, blocks: Iterable[Array]
) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes from a tensor's first element to its last, with new numbers in it.

    Args:
        tensor: It has elements among others: `NamedTensor.among`.
        blocks: The new numbers, axis by axis in the order of its place.

    Raises:
        InputError: Elements that are stored once would have to differ.
    """
    place, itemsize = tensor.among, numpy_dtype(tensor.dtype).itemsize
    assert place is not None and place.order is not None and place.strides is not None
    shape = [tensor.shape[axis] for axis in place.order]
    strides = [place.strides[axis] for axis in place.order]
    code = np.dtype(f"u{itemsize}")
    bounds = _bounds(shape, strides, itemsize)
    row = math.prod(shape[1:])
    numbers = _regrouped(blocks, [(last - first) * row for first, last in bounds], code)
    for (first, last), new in zip(bounds, numbers, strict=True):
        begin = place.begin + first * strides[0]
        end = place.end if last == shape[0] else place.begin + last * strides[0]
        span = place.file.data[begin:end].copy()
        view = as_strided(span.view(code), (last - first, *shape[1:]), strides)
        view[...] = new.reshape(view.shape)
        if not np.array_equal(view, new.reshape(view.shape)):
            raise InputError(
                "one stored number is several of its elements (expanded), and they "
                "would differ; save it with .contiguous()",
                tensor=tensor.name,
            )
        yield span


def _bounds(
    shape: Sequence[int], strides: Sequence[int], itemsize: int
) -> list[tuple[int, int]]:
    """Pieces of the first axis whose bytes lie apart; all of it where none do."""
    rows, step = shape[0], strides[0]
    inner = zip(shape[1:], strides[1:], strict=True)
    apart = step >= sum((n - 1) * s for n, s in inner) + itemsize
    each = max(1, CHUNK // step) if apart else rows
    return [(first, min(first + each, rows)) for first in range(0, rows, each)]


def _regrouped(
    blocks: Iterable[Array], sizes: Iterable[int], code: np.dtype[Any]
) -> Iterator[Array]:
    """The numbers of the blocks as arrays of these sizes; all blocks are taken."""
    given, left = iter(blocks), np.empty(0, code)
    for size in sizes:
        out, at = np.empty(size, code), 0
        while at < size:
            if not left.size:
                left = np.ascontiguousarray(next(given)).reshape(-1).view(code)
            taken = left[: size - at]
            out[at : at + taken.size] = taken
            at, left = at + taken.size, left[taken.size :]
        yield out
    for _ in given:
        pass  # what was done is counted at the end
