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
from step_cli.oneshot.blocks import NotAChainError, find_chains, record
from step_cli.oneshot.inputs import S, Watched, gather, hooked

log = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]


class _Reached(Exception):
    """The last layer of a group is about to run: what follows is not needed."""


@dataclass(frozen=True)
class Work(Generic[S]):
    """What is to be pruned, and how.

    Attributes:
        model: In evaluation mode.
        batches: Arguments of its ``forward``; at least one.
        make: Makes an empty statistic of a layer's inputs.
        prune: Prunes a layer by that statistic; its module computes with the result
            from then on.
        folder: Where activations are put aside; None: where temporary files go.
    """

    model: nn.Module
    batches: Sequence[Batch]
    make: Callable[[], S]
    prune: Callable[[Watched, S], None]
    folder: Path | None = None


def prune_in_order(work: Work[S], layers: Sequence[Watched]) -> None:
    """Prune ``layers``, one block after another.

    Raises:
        InputError: A layer does not run, or the model does not take the samples.
        NonFiniteError: An activation is NaN or infinite.
    """
    with torch.no_grad():
        order = _order(work, layers)
        modules = [layer.name.rpartition(".")[0] for layer in order]
        chains = find_chains(work.model, modules)
        inside = {
            module: number
            for number, blocks in enumerate(chains)
            for block in blocks
            for module in block.modules()
        }
        for number, group in groupby(
            _chains_together(order, inside), lambda layer: inside.get(layer.module)
        ):
            members = list(group)
            if number is None or not _prune_chain(work, chains[number], members):
                _prune_by_parent(work, members)


def _order(work: Work[S], layers: Sequence[Watched]) -> list[Watched]:
    """The layers in the order in which the model first runs them."""
    seen: dict[Watched, None] = {}
    first = {name: value[:1] for name, value in work.batches[0].items()}
    note = {layer: partial(_note, seen, layer) for layer in layers}
    with hooked(note):
        run_model(work.model, first)
    missing = [layer for layer in layers if layer not in seen]
    if missing:
        raise InputError(
            "its inputs cannot be observed, as the model does not run it as a module "
            "of its own; --exclude it, or use --method magnitude",
            tensor=missing[0].name,
        )
    return list(seen)


def _note(seen: dict[Watched, None], layer: Watched, x: Tensor) -> None:
    seen.setdefault(layer)


def _chains_together(
    order: Sequence[Watched], inside: Mapping[nn.Module, int]
) -> Iterator[Watched]:
    """The same order, but each chain as a whole where its first layer stands."""
    started: set[int] = set()
    for layer in order:
        number = inside.get(layer.module)
        if number is None:
            yield layer
        elif number not in started:
            started.add(number)
            yield from (other for other in order if inside.get(other.module) == number)


def run_model(model: nn.Module, batch: Batch) -> None:
    """Run a batch and tell in one line what the model raises on it.

    Raises:
        InputError: It raises.
    """
    try:
        model(**batch)
    except (_Reached, MemoryError):
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"the model does not take the calibration samples: "
            f"{type(error).__name__}: {said[:200]}"
        ) from error


def _prune_chain(
    work: Work[S], blocks: list[nn.Module], layers: Sequence[Watched]
) -> bool:
    """Prune block by block; False if the blocks do not simply feed each other."""
    mains, calls = _Aside(work.folder), []  # of each batch
    with mains:
        try:
            for batch in work.batches:
                recorded = record(work.model, blocks, batch)
                mains.add(recorded.main)
                calls.append(recorded.calls)
        except NotAChainError:
            return False
        mains.turn()
        for number, block in enumerate(blocks):
            own = set(block.modules())
            inside = [layer for layer in layers if layer.module in own]
            passes = [
                partial(of_batch[number].run, block, main)
                for of_batch, main in zip(calls, mains.ready, strict=True)
            ]
            if inside:
                log.info(
                    "block %d of %d: %d layers", number + 1, len(blocks), len(inside)
                )
                _prune_group(work, inside, passes)
            if number + 1 < len(blocks):
                for run in passes:
                    mains.add(run())
                mains.turn()
    return True


class _Aside:
    """What enters a block, of each batch, on the disk; and what leaves it."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files = [ArraysOnDisk(folder)]
        self._coming: list[Tensor] = []
        self.ready: list[Tensor] = []

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, main: Tensor) -> None:
        """Put aside what leaves a block."""
        self._coming.append(mapped_tensor(self._files[-1].add(to_array(main))))

    def turn(self) -> None:
        """What left one block enters the next."""
        self.ready, self._coming = self._coming, []
        for file in self._files[:-1]:
            file.close()
        self._files = [self._files[-1], ArraysOnDisk(self._folder)]


def _prune_by_parent(work: Work[S], layers: Sequence[Watched]) -> None:
    """Prune the layers of each module together, by passes of the whole model."""
    parents = groupby(layers, lambda layer: layer.name.split(".")[:-2])
    for _, group in parents:
        members = list(group)
        passes = [
            partial(_as_far_as, work.model, batch, members) for batch in work.batches
        ]
        _prune_group(work, members, passes)


def _as_far_as(model: nn.Module, batch: Batch, layers: Sequence[Watched]) -> None:
    """Run a batch until each of ``layers`` was called."""
    waiting = set(layers)

    def reached(layer: Watched, x: Tensor) -> None:
        waiting.discard(layer)
        if not waiting:
            raise _Reached

    try:
        with hooked({layer: partial(reached, layer) for layer in layers}):
            run_model(model, batch)
    except _Reached:
        pass


def _prune_group(
    work: Work[S],
    layers: Sequence[Watched],
    passes: Sequence[Callable[[], object]],
) -> None:
    statistics = gather(layers, work.make, passes)
    for layer in layers:
        found = statistics[layer.name]
        if found.unused:
            log.info("%s: %d inputs were never active", layer.name, found.unused)
        work.prune(layer, found)
