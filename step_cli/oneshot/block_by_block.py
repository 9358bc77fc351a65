"""Prune the layers of a model in the order in which it runs them.

Each block is pruned by what it sees once the blocks before it are pruned, as the papers
of Wanda and SparseGPT do.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Generic

import torch
from torch import Tensor, nn

from step_cli.errors import InputError, exclude_it
from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.oneshot.block_inputs import BlockInputs
from step_cli.oneshot.blocks import Call, find_block_lists, record_calls
from step_cli.oneshot.calibration import Calibration, Group
from step_cli.oneshot.forward_pass import (
    Batch,
    NotSequentialError,
    StopForward,
    run_model,
)
from step_cli.oneshot.inputs import (
    Pass,
    S,
    TargetLayer,
    collect_statistics,
    input_hooks,
)
from step_cli.oneshot.placement import Placement
from step_cli.oneshot.probe import Probe, probe
from step_cli.oneshot.progress import PruningProgress
from step_cli.render.status_line import working_on

log = logging.getLogger(__name__)


def prune_in_order(calibration: Calibration[S], layers: Sequence[TargetLayer]) -> None:
    """Prune ``layers``, one block after another.

    Raises:
        InputError: A layer does not run, or the model does not take the samples.
        NonFiniteError: An activation is NaN or infinite.
    """
    model = calibration.model
    modules = [layer.name.rpartition(".")[0] for layer in layers]
    block_lists = find_block_lists(model, modules)
    placement = Placement(model, calibration.device, block_lists)
    with (
        torch.no_grad(),
        placement.active(),
        working_on("running samples through the model") as now,
    ):
        first = {name: value[:1] for name, value in calibration.batches[0].items()}
        samples = map(placement.batch, (first, *calibration.batches))
        run = [_with_layers(blocks, layers) for blocks in block_lists]
        shown = probe(model, samples, layers, run)
        _note_unseen(calibration, [x for x in layers if x not in shown.order])
        placement.refresh()
        work = _Work(calibration, placement, shown, PruningProgress(shown.order, now))
        inside = {
            module: number
            for number, blocks in enumerate(block_lists)
            if not shown.broken[number]
            for block in blocks
            for module in block.modules()
        }
        for number, group in groupby(
            _block_lists_together(shown.order, inside),
            lambda layer: inside.get(layer.module),
        ):
            members = list(group)
            if number is None or not _prune_blocks(
                work, block_lists[number], members, alike=shown.alike[number]
            ):
                _prune_by_parent(work, members)


def _note_unseen(calibration: Calibration[S], layers: Sequence[TargetLayer]) -> None:
    """Hand over the layers that the model does not run."""
    if layers and calibration.unseen is None:
        exclude = exclude_it([layer.name for layer in layers])
        raise InputError(
            "its inputs cannot be observed, as the model does not run it as a module "
            "of its own on any sample; give more samples if it is an expert, "
            f"{exclude}, or use --method magnitude",
            tensor=layers[0].name,
        )
    if calibration.unseen is not None:
        for layer in layers:
            calibration.unseen(layer)


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


@dataclass
class _Work(Generic[S]):
    """What is being done, and how much of it was done by the run this one goes on from.

    Attributes:
        calibration: What is to be done.
        placement: Where the model computes.
        shown: What is known of how the model runs.
        progress: What is told of it.
        group: How many groups are done, those restored among them.
    """

    calibration: Calibration[S]
    placement: Placement
    shown: Probe
    progress: PruningProgress
    group: int = field(default=0, init=False)

    @property
    def finished_ahead(self) -> bool:
        """Whether the next group was finished by another run."""
        finished = self.calibration.finished
        return finished is not None and self.group < finished.count

    def restored(self, layers: Sequence[TargetLayer]) -> bool:
        """Take the next group over from the run that finished it, if one did."""
        finished = self.calibration.finished
        if finished is None or not self.finished_ahead:
            return False
        finished.restore(self.group, layers)
        self.progress.skip(layers)
        self.group += 1
        return True

    def prune(
        self,
        place: str,
        layers: Sequence[TargetLayer],
        passes: Sequence[Pass],
        block: nn.Module | None = None,
    ) -> None:
        """Prune the next group."""
        self.progress.begin(place, layers)
        once = self.shown.again.isdisjoint(layers)
        group = Group(layers, passes, block, once)
        self.calibration.around(group, partial(self._prune_layers, group))

    def finish(
        self, layers: Sequence[TargetLayer], inputs: ArraysOnDisk | None = None
    ) -> None:
        """Keep the results of the group."""
        if self.calibration.finished is not None:
            self.calibration.finished.finish(layers, inputs)
        self.group += 1

    def _prune_layers(self, group: Group) -> None:
        make, prune = self.calibration.new_statistics, self.calibration.prune
        found = (
            {}
            if make is None
            else collect_statistics(group.layers, make, group.passes, once=group.once)
        )
        for layer in group.layers:
            seen = None
            if make is not None:
                # A Hessian goes with its last layer.
                seen = found.pop(layer.name, None)
                _refuse_unused(layer, seen)
            prune(layer, seen)
            self.progress.pruned(layer)


def _refuse_unused(layer: TargetLayer, seen: S | None) -> None:
    unused = 0 if seen is None else seen.unused
    if seen is None or unused == seen.inputs:
        found = (
            "no sample reaches this layer"
            if seen is None
            else "all inputs of this layer are zero on every sample"
        )
        raise InputError(
            f"{found}, so nothing is known "
            "of its weights; give other samples, --exclude it, or use "
            "--method magnitude",
            tensor=layer.name,
        )
    if unused:
        log.info("%s: %d inputs were never active", layer.name, unused)


def _prune_blocks(
    work: _Work[S],
    blocks: list[nn.Module],
    layers: Sequence[TargetLayer],
    *,
    alike: bool,
) -> bool:
    """Prune block by block; False if the blocks do not simply feed each other."""
    total = len(blocks)
    blocks = _with_layers(blocks, layers)
    members = [
        [layer for layer in layers if layer.module in own]
        for own in (set(block.modules()) for block in blocks)
    ]
    recorded = _recorded(work, blocks, alike=alike)
    if recorded is None:
        return False
    inputs, calls = recorded
    with inputs:
        for number, (block, inside) in enumerate(zip(blocks, members, strict=True)):
            last = number + 1 == len(blocks)
            if work.finished_ahead:
                if inside and work.restored(inside) and not last:
                    _take_over(work, inputs)
                continue
            passes = [
                partial(_run_block, of_batch[number], block, main, work.placement)
                for of_batch, main in zip(calls, inputs.current, strict=True)
            ]
            with work.placement.held(block):
                if inside:
                    place = f"block {number + 1} of {total}"
                    work.prune(place, inside, passes, block)
                if not last:
                    inputs.into(_place_of_inputs(work, lasting=bool(inside)))
                    for run in passes:
                        inputs.add(run())
            if inside:
                work.finish(inside, None if last else inputs.file)
            if not last:
                inputs.next_block()
    return True


def _with_layers(
    blocks: Sequence[nn.Module], layers: Sequence[TargetLayer]
) -> list[nn.Module]:
    """The blocks up to the last with a layer: nothing behind needs to be run."""
    wanted = {layer.module for layer in layers}
    last = [n for n, x in enumerate(blocks, 1) if not wanted.isdisjoint(x.modules())]
    return list(blocks[: last[-1]])


def _recorded(
    work: _Work[S], blocks: list[nn.Module], *, alike: bool
) -> tuple[BlockInputs, list[list[Call]]] | None:
    """What enters the first block for each batch, and the calls of all of them."""
    inputs, calls = BlockInputs(), []
    inputs.into(ArraysOnDisk(work.calibration.folder))
    try:
        for batch in work.calibration.batches:
            moved = work.placement.batch(batch)
            found = record_calls(work.calibration.model, blocks, moved, alike=alike)
            inputs.add(found.main)
            calls.append(found.calls)
    except BaseException as error:
        inputs.file.close()
        if isinstance(error, NotSequentialError):
            return None
        raise
    inputs.next_block()
    return inputs, calls


def _take_over(work: _Work[S], inputs: BlockInputs) -> None:
    """After the last finished group: what left its block."""
    finished = work.calibration.finished
    if finished is not None and not work.finished_ahead:
        inputs.current = finished.inputs(work.group - 1)


def _place_of_inputs(work: _Work[S], *, lasting: bool) -> ArraysOnDisk:
    finished = work.calibration.finished
    if finished is None or not lasting:
        return ArraysOnDisk(work.calibration.folder)
    return finished.new_inputs()


def _run_block(
    call: Call, block: nn.Module, main: Tensor, placement: Placement
) -> Tensor:
    return call.run(block, main.to(placement.device))


def _prune_by_parent(work: _Work[S], layers: Sequence[TargetLayer]) -> None:
    """Prune the layers of each module together, by passes of the whole model."""
    parents = groupby(layers, lambda layer: layer.name.split(".")[:-2])
    for parent, group in parents:
        members = list(group)
        if work.restored(members):
            work.placement.refresh()
            continue
        # Of a layer that runs again, every call counts.
        last = members if work.shown.again.isdisjoint(members) else ()
        passes = [
            partial(_as_far_as, work, batch, last) for batch in work.calibration.batches
        ]
        work.prune(".".join(parent) or "the model", members, passes)
        work.finish(members)
        work.placement.refresh()


def _as_far_as(work: _Work[S], batch: Batch, layers: Sequence[TargetLayer]) -> None:
    """Run a batch until each of ``layers`` was called; without any, to the end."""
    waiting = set(layers)

    def reached(layer: TargetLayer, x: Tensor) -> None:
        waiting.discard(layer)
        if not waiting:
            raise StopForward

    work.placement.refresh()
    try:
        with input_hooks({layer: partial(reached, layer) for layer in layers}):
            run_model(work.calibration.model, work.placement.batch(batch))
    except StopForward:
        pass
