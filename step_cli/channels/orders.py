"""Orders of channels: the best one found for a set, and a checkpoint taken in them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.channels.axes import Axis, find
from step_cli.channels.channel_sets import ChannelSet, Index, occurrences
from step_cli.channels.graph import TensorAxes
from step_cli.channels.permutation import kept_magnitude, search_permutation
from step_cli.errors import StepError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.nm.pattern import NMPattern

Array = npt.NDArray[Any]
Orders = Mapping[int, Index]  # by axis
Found = Mapping[Axis, tuple[ChannelSet, Index]]  # by leaf: ``[*within, channels]``

# Channels squared times rows that a search looks at; of more rows, every second or so.
LARGEST = 1 << 33


@dataclass(frozen=True)
class SearchedLayer:
    """A weight that is pruned along the channels.

    Attributes:
        name: Of the tensor.
        weight: As stored.
        axis: Its group axis.
        channels: That axis.
    """

    name: str
    weight: Array
    axis: int
    channels: Axis

    def magnitudes(self) -> Array:
        """``[channels, rows]`` in fp64."""
        wide = np.moveaxis(self.weight, self.axis, 0).astype(np.float64)
        return np.abs(wide).reshape(len(wide), -1)


def search_order(
    channels: ChannelSet, layers: list[SearchedLayer], pattern: NMPattern, *, seed: int
) -> Index | None:
    """The order of a channel set, ``[*within, channels]``; None if nothing is gained.

    Raises:
        NonFiniteError: A weight is NaN or infinite.
    """
    sizes = tuple(leaf.size for leaf in channels.within)
    table = np.empty((*sizes, channels.leaf.size), np.int64)
    gained = 0.0
    rows = _rows(channels, layers)
    for at in np.ndindex(sizes):
        context = dict(zip(channels.within, at, strict=True))
        every = [_seen(channels, layer, context) for layer in layers]
        found = np.concatenate([magnitudes for magnitudes in every], axis=1)
        most = max(1, LARGEST // channels.leaf.size**2)
        step = math.ceil(rows / most)
        try:
            order = search_permutation(found[:, ::step], pattern, seed=seed)
        except StepError as error:
            error.tensor = error.tensor or layers[0].name
            raise
        gain = kept_magnitude(found[order], pattern) - kept_magnitude(found, pattern)
        if gain > 0:
            table[at], gained = order, gained + gain
        else:
            table[at] = np.arange(channels.leaf.size)
    return table if gained > 0 else None


def _rows(channels: ChannelSet, layers: list[SearchedLayer]) -> int:
    total = 0
    for layer in layers:
        times = sum(
            len(found.starts)
            for found in occurrences(layer.channels)
            if found.leaf is channels.leaf
        )
        total += times * layer.weight.size // layer.weight.shape[layer.axis]
    return total // math.prod(leaf.size for leaf in channels.within)


def _seen(
    channels: ChannelSet, layer: SearchedLayer, context: Mapping[Axis, int]
) -> Array:
    """What a layer has of the channels in one context, ``[channels, rows]``."""
    magnitudes, parts = layer.magnitudes(), []
    for found in occurrences(layer.channels):
        if found.leaf is channels.leaf:
            here = np.ones(len(found.starts), np.bool_)
            for leaf, at in context.items():
                here &= found.beside[leaf] == at
            part = magnitudes[found.positions()[here]]  # [starts, channels, rows]
            parts.append(part.transpose(1, 0, 2).reshape(channels.leaf.size, -1))
    return np.concatenate(parts, axis=1)


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
