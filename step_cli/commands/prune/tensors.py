"""The tensors that `prune` works on, and what it will not do to them."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from step_cli.commands.select import (
    choose,
    plan_that_holds,
    skipped_tensors,
    why_nothing,
)
from step_cli.config.commands import PruneConfig
from step_cli.errors import InputError, NothingSelectedError, UsageError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor, Place
from step_cli.formats.files.patched_copy import Change
from step_cli.formats.files.strided import in_place
from step_cli.nm.allocation import allocate, kept_squares
from step_cli.nm.pattern import NMSpec
from step_cli.nm.prune import PRUNABLE
from step_cli.nm.weight_rule import is_head, output_axis
from step_cli.reports import SkippedTensor

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LayerToPrune:
    """A tensor to prune, and the pattern that it is to hold."""

    tensor: NamedTensor
    spec: NMSpec


def place_of(tensor: NamedTensor) -> Place:
    """Where a tensor lies in its file, perhaps among other bytes.

    Raises:
        InputError: In more places than one.
    """
    place = tensor.place or tensor.among
    if place is None:
        raise InputError(
            "is not stored in one piece and cannot be changed in place; save the "
            "checkpoint again with contiguous tensors",
            tensor=tensor.name,
        )
    return place


def change_of(tensor: NamedTensor, blocks: Callable[[], Iterable[Array]]) -> Change:
    """The change of a tensor in its file.

    Args:
        tensor: What is changed.
        blocks: Yields the new numbers, axis by axis in the order of its place.

    Raises:
        InputError: As `place_of`.
    """
    place = place_of(tensor)
    if tensor.place is not None:
        return Change(tensor.name, place, blocks)
    return Change(tensor.name, place, lambda: in_place(tensor, blocks()))


def choose_layers(
    checkpoint: Checkpoint, config: PruneConfig
) -> tuple[list[LayerToPrune], list[SkippedTensor]]:
    """The layers by name, and the tensors left out.

    Raises:
        NothingSelectedError: No tensor can be pruned.
        UsageError: Tied tensors are torn, or the density is too low.
    """
    chosen = choose(config, checkpoint, plan_that_holds(config, checkpoint))
    layers = []
    for tensor, spec in chosen.layers:
        if tensor.dtype not in PRUNABLE:
            chosen.skipped.append((tensor, "dtype"))
        elif config.transposable and not _divides(tensor, spec):
            chosen.skipped.append((tensor, "size"))
        else:
            layers.append(LayerToPrune(tensor, spec))
    if not layers:
        raise NothingSelectedError(why_nothing(chosen, "prune"))
    _refuse_torn_ties(checkpoint.tensors, layers)
    if config.density is not None:
        layers = _allocated(layers, config.density)
    _warn_of_heads(layers)
    layers.sort(key=lambda layer: layer.tensor.name)
    return layers, skipped_tensors(chosen)


def _divides(tensor: NamedTensor, spec: NMSpec) -> bool:
    """Whether the outputs divide into groups too, as a transposable mask needs."""
    return tensor.shape[output_axis(tensor.shape, spec.axis)] % spec.pattern.m == 0


def _allocated(layers: Sequence[LayerToPrune], density: float) -> list[LayerToPrune]:
    """The layers with an N each; those tied to another have that of the other."""
    own = [layer for layer in layers if layer.tensor.tied_to is None]
    energies = {
        layer.tensor.name: kept_squares(
            layer.tensor.data(), layer.spec.pattern.m, layer.spec.axis
        )
        for layer in own
    }
    shapes = {layer.tensor.name: layer.tensor.shape for layer in own}
    plan = {layer.tensor.name: layer.spec for layer in own}
    found = allocate(energies, shapes, plan, density)
    return [
        replace(layer, spec=found[layer.tensor.tied_to or layer.tensor.name])
        for layer in layers
    ]


def _refuse_torn_ties(
    tensors: Sequence[NamedTensor], layers: Sequence[LayerToPrune]
) -> None:
    """Pruning one of two tied tensors prunes the other as well."""
    specs = {layer.tensor.name: layer.spec for layer in layers}
    for tensor in tensors:
        first = tensor.tied_to
        if first is not None and specs.get(first) != specs.get(tensor.name):
            raise UsageError(
                f"tied to {first!r}: select both or neither, with one pattern and axis",
                tensor=tensor.name,
            )


def _warn_of_heads(layers: Sequence[LayerToPrune]) -> None:
    for layer in layers:
        name = layer.tensor.name
        if is_head(name):
            log.warning(
                "%s looks like an output head, mostly left dense: --exclude %r",
                name,
                name,
            )
