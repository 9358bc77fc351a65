"""Prune the layers of a model in the order in which it runs them.

Each block is pruned by what it sees once the blocks before it are pruned, as the papers
of Wanda and SparseGPT do.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor, nn

from step_cli.errors import InputError
from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.formats.pytorch.arrays import mapped_tensor, to_array
from step_cli.oneshot.blocks import (
    NotSequentialError,
    StopForward,
    find_block_lists,
    record_calls,
)
from step_cli.oneshot.inputs import (
    Pass,
    S,
    TargetLayer,
    collect_statistics,
    input_hooks,
)

log = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Group:
    """Layers that are pruned together, and what runs them.

    Attributes:
        layers: In the order in which the model first runs them.
        passes: Each runs one batch.
        block: What the passes run, and return the output of; None: all of the model.
    """

    layers: Sequence[TargetLayer]
    passes: Sequence[Pass]
    block: nn.Module | None = None


def _prune_only(group: Group, prune: Callable[[], None]) -> None:
    prune()


@dataclass(frozen=True)
class Calibration(Generic[S]):
    """A model, the samples it is run on, and how a layer is pruned by its inputs.

    Attributes:
        model: In evaluation mode.
        batches: Arguments of its ``forward``; at least one.
        new_statistics: Makes empty statistics of a layer's inputs; None: they are not
            needed, and ``prune`` gets None.
        prune: Prunes a layer by them; its module computes with the result from then on.
        folder: Where activations are stored; None: where temporary files go.
        around: Called with each group and what prunes it, which it has to call.
        unseen: Called with layers that the model does not run as modules; None: such
            layers are refused.
    """

    model: nn.Module
    batches: Sequence[Batch]
    new_statistics: Callable[[], S] | None
    prune: Callable[[TargetLayer, S | None], None]
    folder: Path | None = None
    around: Callable[[Group, Callable[[], None]], None] = _prune_only
    unseen: Callable[[TargetLayer], None] | None = None


def prune_in_order(calibration: Calibration[S], layers: Sequence[TargetLayer]) -> None:
    """Prune ``layers``, one block after another.

    Raises:
        InputError: A layer does not run, or the model does not take the samples.
        NonFiniteError: An activation is NaN or infinite.
    """
    with torch.no_grad():
        order = _order(calibration, layers)
        modules = [layer.name.rpartition(".")[0] for layer in order]
        block_lists = find_block_lists(calibration.model, modules)
        inside = {
            module: number
            for number, blocks in enumerate(block_lists)
            for block in blocks
            for module in block.modules()
        }
        for number, group in groupby(
            _block_lists_together(order, inside), lambda layer: inside.get(layer.module)
        ):
            members = list(group)
            if number is None or not _prune_blocks(
                calibration, block_lists[number], members
            ):
                _prune_by_parent(calibration, members)


def _order(
    calibration: Calibration[S], layers: Sequence[TargetLayer]
) -> list[TargetLayer]:
    """The layers in the order in which the model first runs them."""
    seen: dict[TargetLayer, None] = {}
    first = {name: value[:1] for name, value in calibration.batches[0].items()}
    note = {layer: partial(_note, seen, layer) for layer in layers}
    with input_hooks(note):
        run_model(calibration.model, first)
    for missing in (layer for layer in layers if layer not in seen):
        if calibration.unseen is None:
            raise InputError(
                "its inputs cannot be observed, as the model does not run it as a "
                "module of its own; --exclude it, or use --method magnitude",
                tensor=missing.name,
            )
        calibration.unseen(missing)
    return list(seen)


def _note(seen: dict[TargetLayer, None], layer: TargetLayer, x: Tensor) -> None:
    seen.setdefault(layer)


def _block_lists_together(
    order: Sequence[TargetLayer], inside: Mapping[nn.Module, int]
) -> Iterator[TargetLayer]:
    """The same order, but each list of blocks as a whole at its first layer's place."""
    started: set[int] = set()
    for layer in order:
        number = inside.get(layer.module)
        if number is None:
            yield layer
        elif number not in started:
            started.add(number)
            yield from (other for other in order if inside.get(other.module) == number)


def run_model(model: nn.Module, batch: Batch) -> None:
    """Run a batch; what the model raises on it becomes one line.

    Raises:
        InputError: It raises.
    """
    try:
        model(**batch)
    except (StopForward, MemoryError):
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"the model does not take the calibration samples: "
            f"{type(error).__name__}: {said[:200]}"
        ) from error


def _prune_blocks(
    calibration: Calibration[S], blocks: list[nn.Module], layers: Sequence[TargetLayer]
) -> bool:
    """Prune block by block; False if the blocks do not simply feed each other."""
    inputs, calls = _BlockInputs(calibration.folder), []  # of each batch
    with inputs:
        try:
            for batch in calibration.batches:
                recorded = record_calls(calibration.model, blocks, batch)
                inputs.add(recorded.main)
                calls.append(recorded.calls)
        except NotSequentialError:
            return False
        inputs.next_block()
        for number, block in enumerate(blocks):
            own = set(block.modules())
            inside = [layer for layer in layers if layer.module in own]
            passes = [
                partial(of_batch[number].run, block, main)
                for of_batch, main in zip(calls, inputs.current, strict=True)
            ]
            if inside:
                log.info(
                    "block %d of %d: %d layers", number + 1, len(blocks), len(inside)
                )
                _prune_group(calibration, Group(inside, passes, block))
            if number + 1 < len(blocks):
                for run in passes:
                    inputs.add(run())
                inputs.next_block()
    return True


class _BlockInputs:
    """What enters a block for each batch, on the disk, and what leaves it."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files = [ArraysOnDisk(folder)]
        self._next: list[Tensor] = []
        self.current: list[Tensor] = []

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, main: Tensor) -> None:
        """Store what leaves a block."""
        self._next.append(mapped_tensor(self._files[-1].add(to_array(main))))

    def next_block(self) -> None:
        """Take what left one block as the inputs of the next."""
        self.current, self._next = self._next, []
        for file in self._files[:-1]:
            file.close()
        self._files = [self._files[-1], ArraysOnDisk(self._folder)]


def _prune_by_parent(
    calibration: Calibration[S], layers: Sequence[TargetLayer]
) -> None:
    """Prune the layers of each module together, by passes of the whole model."""
    parents = groupby(layers, lambda layer: layer.name.split(".")[:-2])
    for _, group in parents:
        members = list(group)
        passes = [
            partial(_as_far_as, calibration.model, batch, members)
            for batch in calibration.batches
        ]
        _prune_group(calibration, Group(members, passes))


def _as_far_as(model: nn.Module, batch: Batch, layers: Sequence[TargetLayer]) -> None:
    """Run a batch until each of ``layers`` was called."""
    waiting = set(layers)

    def reached(layer: TargetLayer, x: Tensor) -> None:
        waiting.discard(layer)
        if not waiting:
            raise StopForward

    try:
        with input_hooks({layer: partial(reached, layer) for layer in layers}):
            run_model(model, batch)
    except StopForward:
        pass


def _prune_group(calibration: Calibration[S], group: Group) -> None:
    calibration.around(group, partial(_prune_layers, calibration, group))


def _prune_layers(calibration: Calibration[S], group: Group) -> None:
    if calibration.new_statistics is None:
        for layer in group.layers:
            calibration.prune(layer, None)
        return
    statistics = collect_statistics(
        group.layers, calibration.new_statistics, group.passes
    )
    for layer in group.layers:
        found = statistics[layer.name]
        if found.unused == found.inputs:
            raise InputError(
                "all inputs of this layer are zero on every sample, which tells "
                "nothing of its weights; give other samples, --exclude it, or use "
                "--method magnitude",
                tensor=layer.name,
            )
        if found.unused:
            log.info("%s: %d inputs were never active", layer.name, found.unused)
        calibration.prune(layer, found)
