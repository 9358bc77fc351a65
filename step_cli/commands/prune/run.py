"""`prune`: a checkpoint in its own format again, its weights pruned to N:M."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_cli.commands.prune.codes import refuse_samples
from step_cli.commands.prune.methods import (
    Array,
    Method,
    check_method,
    needs_samples,
    one_by_one,
)
from step_cli.commands.prune.tensors import (
    LayerToPrune,
    LeftDense,
    change_of,
    choose_layers,
    without,
)
from step_cli.commands.select import coverage
from step_cli.config.commands import PruneConfig
from step_cli.errors import OutputError, naming
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.patched_copy import Change
from step_cli.formats.open import open_checkpoint
from step_cli.formats.rewrite import Rewriter
from step_cli.nm.count import TensorToCheck, count_tensors
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.nm.prune import Pruned
from step_cli.nm.targets import operand_of, planned_view
from step_cli.render.status_line import working_on
from step_cli.reports import PrunedLayer, PruneReport, PruneTotals

if TYPE_CHECKING:
    from step_cli.commands.prune.permuted import Permuted


def run(config: PruneConfig) -> PruneReport:
    """Prune ``config.checkpoint`` into ``config.out``.

    Raises:
        UsageError: OUT is the input or of another format, tied tensors are torn,
            options do not go together, or not with quantized weights.
        NothingSelectedError: No tensor can be pruned.
        InputError: The checkpoint is refused, or cannot be written anew.
        NonFiniteError: A selected tensor holds NaN or infinity.
        OutputError: OUT exists, or could not be written.
        MissingError: The device is not there.
    """
    check_method(config)
    if needs_samples(config):
        _refuse_early(config)
    with working_on(f"reading {config.checkpoint}"):
        checkpoint = open_checkpoint(config.checkpoint, config.key)
    given = (config.plan, config.calibration)
    extra = tuple(path for path in given if path is not None)
    rewriter = Rewriter(checkpoint, config.out, config.force, extra)
    rewriter.check()
    with naming(file=config.checkpoint), ExitStack() as stack:
        with working_on("choosing layers"):
            layers, left = choose_layers(checkpoint, config)
        refuse_samples(layers, needs_samples(config))
        folder = None if config.dry_run else _parent(config)
        moved = _permuted(config, checkpoint, layers, folder)
        if moved is not None:
            stack.callback(moved.arrays.close)
            _, left = without(layers, left, moved.stay_dense)
            checkpoint, layers = moved.checkpoint, moved.layers
        own = [layer for layer in layers if layer.tensor.tied_to is None]
        method = _method(config, checkpoint, own, folder, stack)
        if method.left:
            layers, left = without(layers, left, method.left)
            own = [layer for layer in own if layer.tensor.name not in method.left]
        if config.dry_run:
            for layer in own:
                for _ in _blocks(layer, method):
                    pass
        else:
            changes = [_change(layer, method) for layer in own]
            others = {x.name: x for x in moved.changes} if moved else {}
            others |= {x.name: x for x in method.changes}
            changes += others.values()
            _write(config, rewriter, layers, changes, method.done)
    return _report(config, rewriter, layers, left, method, moved)


def _refuse_early(config: PruneConfig) -> None:
    """Refuse what can be refused before any file is read.

    Raises:
        StepError: The device is not there, or what a stopped prune left is in the way.
    """
    from step_cli.commands.prune.unfinished import refuse_early
    from step_cli.oneshot.placement import device_named

    device_named(config.device)
    if not config.dry_run:
        refuse_early(config)


def prune(
    path: str | Path,
    out: str | Path,
    nm: str | NMPattern | None = None,
    **options: Any,
) -> PruneReport:
    """Prune a checkpoint: the report behind `prune --json`.

    Args:
        path: A CHECKPOINT.
        out: What to write, in the format of ``path``.
        nm: The pattern, such as "2:4"; None: that of its plan, else 2:4.
        options: Those of the command: ``exclude=["lm_head.*"]``, ``force=True``, ...

    Raises:
        pydantic.ValidationError: An option is unknown, or its value refused.
        StepError: As `run`.
    """
    given = {"checkpoint": path, "out": out, "nm": nm, **options}
    return run(PruneConfig.model_validate(given))


@working_on("looking for a better order of channels")
def _permuted(
    config: PruneConfig,
    checkpoint: Checkpoint,
    layers: Sequence[LayerToPrune],
    folder: Path | None,
) -> "Permuted | None":
    if not config.permute:
        return None
    from step_cli.commands.prune.permuted import permuted

    return permuted(config, checkpoint, layers, folder)


def _method(
    config: PruneConfig,
    checkpoint: Checkpoint,
    layers: list[LayerToPrune],
    folder: Path | None,
    stack: ExitStack,
) -> Method:
    if not needs_samples(config):
        return one_by_one(config)
    with working_on("loading libraries"):
        from step_cli.commands.prune.calibrated import calibrated

    return calibrated(config, checkpoint, layers, folder, stack)


def _parent(config: PruneConfig) -> Path:
    return Path(os.path.realpath(config.out)).parent


def _change(layer: LayerToPrune, method: Method) -> Change:
    return change_of(layer.tensor, partial(_blocks, layer, method))


def _blocks(layer: LayerToPrune, method: Method) -> Iterator[Array]:
    with working_on(f"pruning {layer.tensor.name}"):
        yield from method.blocks(layer)


def _write(
    config: PruneConfig,
    rewriter: Rewriter,
    layers: Sequence[LayerToPrune],
    changes: Sequence[Change],
    done: Mapping[str, Pruned],
) -> None:
    plan = {layer.tensor.name: layer.spec for layer in layers}
    promised = [(layer, layer.spec) for layer in layers]
    if config.transposable:
        promised += [(layer, _along_outputs(layer)) for layer in layers]
    check = partial(_check, plan=plan, promised=promised, done=done)
    with working_on(f"writing {config.out}"):
        rewriter.write(changes, plan, check)


@working_on("checking what was written")
def _check(
    written: Checkpoint,
    plan: Plan,
    promised: Sequence[tuple[LayerToPrune, NMSpec]],
    done: Mapping[str, Pruned],
) -> None:
    """Judge what was written as `verify-nm` would, before it gets its name.

    Raises:
        OutputError: It does not hold its plan.
    """
    tensors = {tensor.name: tensor for tensor in written.tensors}
    if written.plan not in (None, plan):
        raise OutputError("the plan that was written does not read back")
    to_check = (
        TensorToCheck(tensors[x.tensor.name].data(), spec) for x, spec in promised
    )
    for (layer, _), counts in zip(promised, count_tensors(to_check), strict=True):
        wrong = counts.violations or counts.nonfinite
        if not layer.tensor.tied_to:
            wrong = wrong or counts.nonzeros != done[layer.tensor.name].nonzeros
        if wrong:
            raise OutputError(
                "what was written does not read back as pruned; check the disk",
                tensor=layer.tensor.name,
            )


def _along_outputs(layer: LayerToPrune) -> NMSpec:
    return NMSpec(layer.spec.pattern, layer.outputs)


def _report(
    config: PruneConfig,
    rewriter: Rewriter,
    layers: Sequence[LayerToPrune],
    left: LeftDense,
    method: Method,
    moved: "Permuted | None",
) -> PruneReport:
    total, done, fit = Pruned(), method.done, method.fit
    for layer in layers:
        if layer.tensor.tied_to is None:
            total.add(done[layer.tensor.name])
    rows = [_row(x, method, moved) for x in layers]
    return PruneReport(
        ok=True,
        out=str(config.out),
        method=config.method,
        dry_run=config.dry_run,
        bytes_needed=rewriter.needed_bytes,
        bytes_free=shutil.disk_usage(_parent(config)).free,
        layers=rows,
        skipped=left.skipped,
        totals=PruneTotals(
            layers=sum(layer.tensor.tied_to is None for layer in layers),
            skipped=len(left.skipped),
            elements=total.elements,
            nonzeros=total.nonzeros,
            density=total.density,
            retained=total.retained,
            changed=total.changed,
            coverage=coverage(total.elements, left.uncovered),
        ),
        refit=config.refit,
        blocks=fit.blocks if fit else [],
        batch_norms=fit.batch_norms if fit else None,
    )


def _row(layer: LayerToPrune, method: Method, moved: "Permuted | None") -> PrunedLayer:
    tensor, spec = layer.tensor, layer.spec
    first = tensor.tied_to or tensor.name
    done = method.done[first]
    return PrunedLayer(
        name=tensor.name,
        pattern=str(spec.pattern),
        axis=spec.axis,
        shape=list(tensor.shape),
        dtype=tensor.dtype,
        density=done.density,
        retained=done.retained,
        changed=done.changed,
        tied_to=tensor.tied_to,
        permuted=None if moved is None else first in moved.moved,
        not_permuted=None if moved is None else moved.left.get(first),
        advice=planned_view(operand_of(layer), spec).advice,
        **(method.fit.layers.get(first, {}) if method.fit else {}),
    )
