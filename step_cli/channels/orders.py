"""Orders of channels, applied to the axes of a checkpoint's tensors."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.channels.axes import Axis, find
from step_cli.channels.channel_sets import ChannelSet, Index, occurrences
from step_cli.channels.graph import TensorAxes
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.files.temporary import ArraysOnDisk

Array = npt.NDArray[Any]
Orders = Mapping[int, Index]  # by axis
Found = Mapping[Axis, tuple[ChannelSet, Index]]  # by leaf: ``[*within, channels]``


def orders_of(tensor: TensorAxes, found: Found) -> Orders:
    """The order of each axis of a tensor that moves, for ``take``."""
    orders = {place: _order_of(axis, found) for place, axis in enumerate(tensor)}
    return {place: order for place, order in orders.items() if order is not None}


def _order_of(axis: Axis, orders: Found) -> Index | None:
    order = np.arange(find(axis).size)
    moved = False
    for found in occurrences(axis):
        if found.leaf in orders:
            channels, table = orders[found.leaf]
            rows = table[tuple(found.beside[leaf] for leaf in channels.within)]
            came = found.starts[:, None] + found.stride * rows
            order[found.positions()] = order.copy()[came]
            moved = True
    return order if moved else None


def reordered(
    checkpoint: Checkpoint, orders: Mapping[str, Orders], arrays: ArraysOnDisk
) -> Checkpoint:
    """The same checkpoint, some tensors taken in other orders.

    Args:
        checkpoint: What was read.
        orders: By the tensor's name; tied tensors have the same.
        arrays: Where what changes is put aside.
    """
    done: dict[str, NamedTensor] = {}
    for tensor in checkpoint.tensors:
        if not orders.get(tensor.name):
            done[tensor.name] = tensor
        elif tensor.tied_to is not None:
            done[tensor.name] = replace(tensor, read=done[tensor.tied_to].read)
        else:
            moved = arrays.add(taken(tensor.read(), orders[tensor.name]))
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
