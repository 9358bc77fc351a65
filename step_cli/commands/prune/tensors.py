"""The tensors that `prune` works on, and what it will not do to them."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.commands.prune.codes import is_uncertain, tell_left
from step_cli.commands.prune.other_uses import harms_others, holds_whole
from step_cli.commands.prune.ties import refuse_torn_ties, tied_to_skipped
from step_cli.commands.select import (
    choose,
    plan_that_holds,
    skipped_tensors,
    uncovered_elements,
    why_nothing,
)
from step_cli.config.commands import PruneConfig
from step_cli.errors import InputError, NothingSelectedError, UsageError, few
from step_cli.formats.checkpoint import Checkpoint, NamedTensor, Place
from step_cli.formats.files.patched_copy import Change
from step_cli.formats.files.strided import in_place
from step_cli.nm.allocation import allocate, kept_squares
from step_cli.nm.prune import PRUNABLE
from step_cli.nm.selection import Chosen, Layer
from step_cli.nm.weight_rule import UNCOVERED, SkipReason, is_head
from step_cli.reports import SkippedTensor

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]


LayerToPrune = Layer[NamedTensor]


@dataclass(frozen=True)
class LeftDense:
    """What is not pruned, and how many elements of it a product may use."""

    skipped: list[SkippedTensor]
    uncovered: int


def place_of(tensor: NamedTensor) -> Place:
    """Where a tensor lies in its file, perhaps among other bytes.

    Raises:
        InputError: In more places than one.
    """
    place = tensor.place or tensor.among
    if place is None:
        raise InputError(
            "is not stored in one piece and cannot be changed in place; save the "
            "checkpoint again with contiguous tensors (ONNX: dense, with raw data)",
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


def change_to(tensor: NamedTensor, array: Array) -> Change:
    """The change of a tensor to ``array``, of its dtype and shape.

    Raises:
        InputError: As `place_of`.
    """
    order = place_of(tensor).order
    now = array if order is None else array.transpose(order)
    return change_of(tensor, lambda: [np.ascontiguousarray(now)])


def choose_layers(
    checkpoint: Checkpoint, config: PruneConfig
) -> tuple[list[LayerToPrune], LeftDense]:
    """The layers by name, and the tensors left out.

    Raises:
        NothingSelectedError: No tensor can be pruned.
        UsageError: Nothing settles the group axis of a tensor, tied tensors are torn,
            or the density is too low.
    """
    plan = plan_that_holds(config, checkpoint)
    chosen = choose(config, checkpoint, plan)
    layers, uncertain = list[LayerToPrune](), list[LayerToPrune]()
    left = _left_to_ties(checkpoint, chosen, config.include)
    for layer in chosen.layers:
        named = layer.tensor.name in {*config.include, *(plan or ())}
        if layer.tensor.name in left or harms_others(layer, chosen.layers, named=named):
            chosen.leave_out(layer.tensor, "consumer")
        elif not holds_whole(layer):
            chosen.leave_out(layer.tensor, "size")
        elif layer.tensor.dtype not in PRUNABLE:
            chosen.leave_out(layer.tensor, "dtype")
        elif config.transposable and not _divides(layer):
            chosen.leave_out(layer.tensor, "size")
        elif is_uncertain(layer, config, named=named):
            uncertain.append(layer)
        else:
            layers.append(layer)
    tell_left(checkpoint, chosen)
    for layer in uncertain:
        chosen.leave_out(layer.tensor, "kind")
    if not layers:
        raise NothingSelectedError(why_nothing(chosen, "prune", plan))
    _refuse_unsettled([layer for layer in layers if layer.assumed])
    refuse_torn_ties(checkpoint, {layer.tensor.name: layer.spec for layer in layers})
    if config.density is not None:
        layers = _allocated(layers, config.density)
    _warn_of_heads(layers)
    layers.sort(key=lambda layer: layer.tensor.name)
    return layers, LeftDense(skipped_tensors(chosen), uncovered_elements(chosen))


def without(
    layers: Sequence[LayerToPrune], left: LeftDense, reasons: Mapping[str, SkipReason]
) -> tuple[list[LayerToPrune], LeftDense]:
    """Leave out layers that turn out to be of other modules, each with its reason."""
    kept, skipped, uncovered = [], list(left.skipped), left.uncovered
    for layer in layers:
        tensor = layer.tensor
        reason = reasons.get(tensor.tied_to or tensor.name)
        if reason is None:
            kept.append(layer)
            continue
        counts = reason in UNCOVERED
        if counts and tensor.tied_to is None:
            uncovered += math.prod(tensor.shape)
        skipped.append(
            SkippedTensor(
                name=tensor.name,
                shape=list(tensor.shape),
                dtype=tensor.dtype,
                reason=reason,
                selected=counts,
            )
        )
    skipped.sort(key=lambda tensor: tensor.name)
    return kept, LeftDense(skipped, uncovered)


def only_modules_that_stay_dense(names: Iterable[str]) -> str:
    """Why nothing is left, once the modules are known."""
    return (
        "no tensor to prune, all are weights of modules that stay dense, such as "
        f"transposed convolutions: {few(sorted(names))}"
    )


def _divides(layer: LayerToPrune) -> bool:
    """Whether the outputs divide into groups too, as a transposable mask needs."""
    return layer.tensor.shape[layer.outputs] % layer.spec.pattern.m == 0


def _refuse_unsettled(assumed: Sequence[LayerToPrune]) -> None:
    """Pruning along a wrong axis harms the model, and gains nothing."""
    for layer in assumed:
        name, shape = layer.tensor.name, list(layer.tensor.shape)
        axis, others = layer.spec.axis, range(max(0, len(shape) - 2), len(shape))
        options = " or ".join(f"--axis '{name}={i}'" for i in others)
        if layer.axis_from == "default":
            more = len(assumed) - 1
            raise UsageError(
                f"nothing settles which axis of {shape} is that of the inputs"
                f"{f' (nor for {more} more tensors)' if more else ''}: give {options}",
                tensor=name,
            )
        log.warning("%s: axis %d of %s is assumed: else %s", name, axis, shape, options)


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
        layer._replace(spec=found[layer.tensor.tied_to or layer.tensor.name])
        for layer in layers
    ]


def _left_to_ties(
    checkpoint: Checkpoint, chosen: Chosen[NamedTensor], named: Sequence[str]
) -> set[str]:
    """What is an embedding, say, under another name, unless it is named; warns."""
    left = set()
    for name, (other, reason) in tied_to_skipped(checkpoint, chosen.skipped).items():
        if name not in named:
            left.add(name)
            log.warning(
                "%s is left alone, as it is tied to %s, which is skipped (%s): "
                "--include %r --include %r prunes both",
                *(name, other, reason, name, other),
            )
    return left


def _warn_of_heads(layers: Sequence[LayerToPrune]) -> None:
    for layer in layers:
        name = layer.tensor.name
        if is_head(name):
            log.warning(
                "%s looks like an output head, mostly left dense: --exclude %r",
                name,
                name,
            )
