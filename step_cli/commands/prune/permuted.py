"""`prune --permute`: channels in another order, before anything is pruned."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from step_cli.channels.axes import Axis
from step_cli.channels.channel_sets import ChannelSet, Index, find_channel_sets
from step_cli.channels.graph import Network
from step_cli.channels.orders import (
    Orders,
    SearchedLayer,
    orders_of,
    reordered,
    search_order,
)
from step_cli.commands.prune.tensors import (
    LayerToPrune,
    change_to,
    only_modules_that_stay_dense,
)
from step_cli.config.commands import PruneConfig
from step_cli.errors import InputError, NothingSelectedError, UsageError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.patched_copy import Change
from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.formats.onnx.session import difference
from step_cli.models.source import model_source
from step_cli.nm.weight_rule import SkipReason

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]

# Of the outputs, relative to max(1, their largest). A graph that computes in fp16
# rounds each sum, in whatever order.
TOLERANCE = {"float16": 1e-2}
FINE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Permuted:
    """A checkpoint with channels in another order.

    Attributes:
        layers: What is to be pruned, as it is now.
        checkpoint: All tensors, as they are now.
        changes: Those that moved and are not pruned.
        moved: Names of layers that are pruned in another order.
        left: Why other layers are in the old one.
        arrays: Where the moved tensors are.
        stay_dense: Why weights of other modules are left out, by the tensor's name.
    """

    layers: list[LayerToPrune]
    checkpoint: Checkpoint
    changes: list[Change]
    moved: set[str]
    left: dict[str, str]
    arrays: ArraysOnDisk
    stay_dense: dict[str, SkipReason]


def permuted(
    config: PruneConfig,
    checkpoint: Checkpoint,
    layers: Sequence[LayerToPrune],
    folder: Path | None,
) -> Permuted:
    """Find orders that keep more, and see that the network computes what it did.

    Raises:
        NothingSelectedError: The graph lets no layer be permuted.
        StepError: The model is refused, or its outputs changed.
    """
    network = _network(config, checkpoint)
    stay_dense = {
        name: why
        for name, why in network.stay_dense.items()
        if name not in config.include
    }
    layers = [
        x for x in layers if (x.tensor.tied_to or x.tensor.name) not in stay_dense
    ]
    if not layers:
        raise NothingSelectedError(only_modules_that_stay_dense(stay_dense))
    _tie(network, checkpoint)
    for tensor in checkpoint.tensors:
        stored = tensor.place or tensor.among
        if stored is None and tensor.name in network.tensors:
            network.graph.fix(
                network.tensors[tensor.name], "it is not stored in one piece"
            )
    plan = {x.tensor.name: x.spec for x in layers if x.tensor.tied_to is None}
    sets, left = find_channel_sets(network.graph, network.tensors, plan)
    if not sets:
        raise NothingSelectedError(
            f"--permute: no layer can be permuted, {_most_common(left)}"
        )
    orders = _orders(config, network, sets, layers)
    arrays = ArraysOnDisk(folder)
    try:
        now = reordered(checkpoint, orders, arrays)
        if orders:
            _compare(network.outputs(checkpoint), network.outputs(now))
        found = _result(now, layers, orders, left, arrays)
        return replace(found, stay_dense=stay_dense)
    except BaseException:
        arrays.close()
        raise


def _network(config: PruneConfig, checkpoint: Checkpoint) -> Network:
    if checkpoint.format == "onnx":
        from step_cli.channels.onnx_graph import onnx_network

        if config.model is not None or config.input:
            raise UsageError("--model and --input do not apply to ONNX")
        return onnx_network(checkpoint)
    from step_cli.channels.torch_graph import torch_network

    source = model_source(config.model, checkpoint)
    return torch_network(source, checkpoint, config.input)


def _tie(network: Network, checkpoint: Checkpoint) -> None:
    """Tensors that share their data move together."""
    for tensor in checkpoint.tensors:
        first, other = (
            network.tensors.get(name) for name in (tensor.tied_to or "", tensor.name)
        )
        if first is not None and other is not None:
            network.graph.same(first, other)
        elif tensor.tied_to is not None:
            for value in (first, other):
                network.graph.fix(value or (), "it is tied to what the model lacks")


def _orders(
    config: PruneConfig,
    network: Network,
    sets: Sequence[ChannelSet],
    layers: Sequence[LayerToPrune],
) -> dict[str, Orders]:
    """The order of each axis of each tensor that moves."""
    by_name = {layer.tensor.name: layer for layer in layers}
    found: dict[Axis, tuple[ChannelSet, Index]] = {}
    for number, channels in enumerate(sets, 1):
        searched = []
        for name in channels.layers:
            layer, value = by_name[name], network.tensors[name]
            axis = layer.spec.axis
            weight = layer.tensor.read()
            searched.append(SearchedLayer(name, weight, axis, value[axis]))
        pattern = by_name[channels.layers[0]].spec.pattern
        log.info(
            "permuting %d of %d: %d channels of %s",
            number,
            len(sets),
            channels.leaf.size,
            ", ".join(channels.layers[:3]),
        )
        table = search_order(channels, searched, pattern, seed=config.seed)
        if table is not None:
            found[channels.leaf] = channels, table
    return {
        name: orders
        for name, value in network.tensors.items()
        if (orders := orders_of(value, found))
    }


def _compare(before: Sequence[Array], after: Sequence[Array]) -> None:
    names = [f"output {number}" for number in range(len(before))]
    worst = difference(names, after, before)
    coarse = [TOLERANCE.get(array.dtype.name, FINE_TOLERANCE) for array in before]
    if not worst.within(max(coarse, default=FINE_TOLERANCE)):
        raise InputError(
            f"--permute: {worst.output} of the model would change by "
            f"{worst.max_abs:.2g}, more than rounding; run without --permute"
        )


def _result(
    now: Checkpoint,
    layers: Sequence[LayerToPrune],
    orders: Mapping[str, Orders],
    left: dict[str, str],
    arrays: ArraysOnDisk,
) -> Permuted:
    tensors = {tensor.name: tensor for tensor in now.tensors}
    planned = {layer.tensor.name for layer in layers}
    changes = [
        change_to(tensors[name], tensors[name].read())
        for name in orders
        if name not in planned and tensors[name].tied_to is None
    ]
    moved = {
        layer.tensor.name
        for layer in layers
        if layer.spec.axis in orders.get(layer.tensor.name, {})
    }
    replaced = [layer._replace(tensor=tensors[layer.tensor.name]) for layer in layers]
    return Permuted(replaced, now, changes, moved, left, arrays, {})


def _most_common(left: Mapping[str, str]) -> str:
    """The reason that most layers have, and how many."""
    ((reason, count),) = Counter(left.values()).most_common(1)
    example = next(name for name, why in left.items() if why == reason)
    return f"{count} of {len(left)} as of {example!r}: {reason}"
