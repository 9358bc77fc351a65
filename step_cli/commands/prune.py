"""`prune`: a checkpoint in its own format again, its weights pruned to N:M."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from step_cli.commands.selecting import (
    choose,
    plan_that_holds,
    skipped_tensors,
    why_nothing,
)
from step_cli.config import PruneConfig
from step_cli.core.check import Job, tally_all
from step_cli.core.groups import Weights
from step_cli.core.one_shot import PRUNABLE, OneShot
from step_cli.core.plan import LayerPlan, Plan
from step_cli.core.pruned import Pruned
from step_cli.core.tensorrt_rule import tensorrt_view
from step_cli.core.weight_rule import is_head
from step_cli.errors import (
    InputError,
    NothingSelectedError,
    OutputError,
    StepError,
    UsageError,
)
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.patched_copy import Change
from step_cli.formats.rewriter import Rewriter
from step_cli.formats.weights import open_checkpoint
from step_cli.reports import PrunedLayer, PruneReport, PruneTotals, SkippedTensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """A tensor to prune, what it promises, and what was done to it so far."""

    tensor: NamedTensor
    plan: LayerPlan
    done: Pruned


def run(config: PruneConfig) -> PruneReport:
    """Prune ``config.checkpoint`` into ``config.out``.

    Raises:
        UsageError: OUT is the input or of another format, or tied tensors are torn.
        NothingSelectedError: No tensor can be pruned.
        InputError: The checkpoint is refused, or cannot be written anew.
        NonFiniteError: A selected tensor holds NaN or infinity.
        OutputError: OUT exists, or could not be written.
    """
    checkpoint = open_checkpoint(config.checkpoint)
    extra = () if config.plan is None else (config.plan,)
    rewriter = Rewriter(checkpoint, config.out, config.force, extra)
    rewriter.check()
    try:
        layers, skipped = _choose(checkpoint, config)
        if config.dry_run:
            for layer in layers:
                for _ in _pruned(layer, config):
                    pass
        else:
            _write(rewriter, layers, config)
    except StepError as error:
        error.file = error.file or str(config.checkpoint)
        raise
    return _report(config, rewriter, layers, skipped)


def _choose(
    checkpoint: Checkpoint, config: PruneConfig
) -> tuple[list[Layer], list[SkippedTensor]]:
    chosen = choose(config, checkpoint, plan_that_holds(config, checkpoint))
    layers = []
    for tensor, layer_plan in chosen.layers:
        if tensor.dtype in PRUNABLE:
            layers.append(Layer(tensor, layer_plan, Pruned()))
        else:
            chosen.skipped.append((tensor, "dtype"))
    if not layers:
        raise NothingSelectedError(why_nothing(chosen, "prune"))
    _refuse_torn_ties(checkpoint.tensors, layers)
    _warn_of_heads(layers)
    order = {layer.tensor.name: layer for layer in layers}
    return [order[name] for name in sorted(order)], skipped_tensors(chosen)


def _refuse_torn_ties(tensors: Sequence[NamedTensor], layers: Sequence[Layer]) -> None:
    """Pruning one of two tied tensors prunes the other as well."""
    plans = {layer.tensor.name: layer.plan for layer in layers}
    for tensor in tensors:
        first = tensor.tied_to
        if first is not None and plans.get(first) != plans.get(tensor.name):
            raise UsageError(
                f"tied to {first!r}: select both or neither, with one pattern and axis",
                tensor=tensor.name,
            )


def _warn_of_heads(layers: Sequence[Layer]) -> None:
    for layer in layers:
        name = layer.tensor.name
        if is_head(name):
            log.warning(
                "%s looks like an output head, mostly left dense: --exclude %r",
                name,
                name,
            )


def _pruned(layer: Layer, config: PruneConfig) -> Iterator[np.ndarray]:
    """The new data of a layer, in the order of the file; counts in ``layer.done``."""
    tensor, weights = layer.tensor, layer.tensor.weights()
    plan, order = layer.plan, tensor.place.order if tensor.place else None
    if order is not None:  # in the file, its axes stand in another order
        array = weights.array.transpose(order)
        weights = Weights(array, weights.dtype, weights.zero, weights.zero_axis)
        plan = replace(plan, axis=order.index(plan.axis))
    seed = config.seed if config.method == "random" else None
    one_shot = OneShot(weights, plan, name=tensor.name, seed=seed)
    yield from one_shot.blocks()
    # Set, not added: the data may be asked for twice.
    vars(layer.done).update(vars(one_shot.done))


def _write(rewriter: Rewriter, layers: Sequence[Layer], config: PruneConfig) -> None:
    changes = []
    for layer in layers:
        tensor = layer.tensor
        if tensor.tied_to is not None:
            continue
        if tensor.place is None:
            raise InputError(
                "is not stored in one piece and cannot be changed in place; save the "
                "checkpoint again with contiguous tensors",
                tensor=tensor.name,
            )
        chunks = lambda layer=layer: _pruned(layer, config)  # noqa: E731
        changes.append(Change(tensor.name, tensor.place, chunks))
    plan = {layer.tensor.name: layer.plan for layer in layers}
    rewriter.write(changes, plan, lambda written: _check(written, layers, plan))


def _check(written: Checkpoint, layers: Sequence[Layer], plan: Plan) -> None:
    """Judge what was written as `verify-nm` would, before it gets its name.

    Raises:
        OutputError: It does not hold its plan.
    """
    tensors = {tensor.name: tensor for tensor in written.tensors}
    if written.plan not in (None, plan):
        raise OutputError("the plan that was written does not read back")
    jobs = (Job(tensors[x.tensor.name].weights(), x.plan) for x in layers)
    for layer, tally in zip(layers, tally_all(jobs), strict=True):
        wrong = tally.violations or tally.nonfinite
        if wrong or (
            not layer.tensor.tied_to and tally.nonzeros != layer.done.nonzeros
        ):
            raise OutputError(
                "what was written does not read back as pruned; check the disk",
                tensor=layer.tensor.name,
            )


def _report(
    config: PruneConfig,
    rewriter: Rewriter,
    layers: Sequence[Layer],
    skipped: list[SkippedTensor],
) -> PruneReport:
    done = {layer.tensor.name: layer.done for layer in layers}
    total = Pruned()
    for layer in layers:
        if layer.tensor.tied_to is None:
            total.add(layer.done)
    rows = [_row(x, done[x.tensor.tied_to or x.tensor.name]) for x in layers]
    parent = Path(os.path.realpath(config.out)).parent
    return PruneReport(
        ok=True,
        out=str(config.out),
        method=config.method,
        dry_run=config.dry_run,
        bytes_needed=rewriter.needed_bytes,
        bytes_free=shutil.disk_usage(parent).free,
        layers=rows,
        skipped=skipped,
        totals=PruneTotals(
            layers=sum(layer.tensor.tied_to is None for layer in layers),
            skipped=len(skipped),
            elements=total.elements,
            nonzeros=total.nonzeros,
            density=total.density,
            retained=total.retained,
            changed=total.changed,
        ),
    )


def _row(layer: Layer, done: Pruned) -> PrunedLayer:
    tensor, plan = layer.tensor, layer.plan
    job = Job(tensor.weights(), plan)
    return PrunedLayer(
        name=tensor.name,
        pattern=str(plan.pattern),
        axis=plan.axis,
        shape=list(tensor.shape),
        dtype=tensor.dtype,
        density=done.density,
        retained=done.retained,
        changed=done.changed,
        tied_to=tensor.tied_to,
        advice=tensorrt_view(tensor, job, holds=True).advice,
    )
