"""The best order found for a set of channels, on the weights pruned along it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.channels.axes import Axis
from step_cli.channels.channel_sets import ChannelSet, Index, occurrences
from step_cli.channels.permutation import kept_magnitude, search_permutation
from step_cli.errors import StepError
from step_cli.nm.pattern import NMPattern

Array = npt.NDArray[Any]

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
