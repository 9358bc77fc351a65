"""A checkpoint as if its channels had always been in another order."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.files.temporary import ArraysOnDisk

Array = npt.NDArray[Any]
Orders = Mapping[int, npt.NDArray[np.int64]]  # by axis


def reordered(
    checkpoint: Checkpoint, orders: Mapping[str, Orders], spill: ArraysOnDisk
) -> Checkpoint:
    """The same checkpoint, some tensors taken in other orders.

    Args:
        checkpoint: What was read.
        orders: By the tensor's name; tied tensors have the same.
        spill: Where what changes is put aside.
    """
    done: dict[str, NamedTensor] = {}
    for tensor in checkpoint.tensors:
        if not orders.get(tensor.name):
            done[tensor.name] = tensor
        elif tensor.tied_to is not None:
            done[tensor.name] = replace(tensor, read=done[tensor.tied_to].read)
        else:
            moved = spill.add(taken(tensor.read(), orders[tensor.name]))
            done[tensor.name] = replace(tensor, read=partial(_given, moved))
    return replace(checkpoint, tensors=list(done.values()))


def _given(array: Array) -> Array:
    return array


def taken(array: Array, orders: Orders) -> Array:
    """The array with its axes in other orders."""
    bits = array.view(f"u{array.dtype.itemsize}") if array.ndim else array
    for axis, order in orders.items():
        bits = bits.take(order, axis=axis)
    return bits.view(array.dtype)
