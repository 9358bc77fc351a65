"""`verify-nm`: does a checkpoint hold its N:M pattern? The check that CI relies on."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step_cli.commands.select import (
    choose,
    coverage,
    skipped_tensors,
    uncovered_elements,
    why_nothing,
)
from step_cli.commands.verify.counted import count_layers
from step_cli.commands.verify.rebuilt import with_rebuilt
from step_cli.commands.verify.verdict import Judge, verdicts_on
from step_cli.config.commands import VerifyConfig
from step_cli.errors import (
    NonFiniteError,
    NothingSelectedError,
    StepError,
    UsageError,
    naming,
)
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.files.content import format_named
from step_cli.formats.files.target import checked_target
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import read_plan
from step_cli.nm.pattern import NMPattern, Plan
from step_cli.nm.selection import Layer
from step_cli.render.status_line import working_on
from step_cli.reports import (
    CheckpointVerdict,
    ErrorDetail,
    LayerVerdict,
    VerifyReport,
    VerifyTotals,
    gravest,
)

log = logging.getLogger(__name__)


def run(config: VerifyConfig) -> VerifyReport:
    """Check every checkpoint, also after one of them was refused.

    A plan file or baseline that is refused is reported too, as nothing can be checked.

    Raises:
        UsageError: An option does not fit, such as an axis beyond the rank.
        OutputError: The output could not be written.
    """
    if config.output is not None:
        named = (config.plan, config.baseline)
        inputs = [*config.checkpoint, *(path for path in named if path is not None)]
        checked_target(config.output, force=True, inputs=inputs)
    try:
        given = config.plan
        plan = None if given is None else read_plan(given)
        given = config.baseline
        baseline = None if given is None else _baseline(given, config.key)
    except StepError as error:
        assert given is not None
        return VerifyReport.of_refused(str(given), ErrorDetail.of(error, given))
    verdicts = [_verdict(path, config, plan, baseline) for path in config.checkpoint]
    errors = [verdict.error for verdict in verdicts if verdict.error is not None]
    worst = gravest(error.exit for error in errors) if errors else 0
    return VerifyReport(
        ok=all(verdict.ok for verdict in verdicts),
        checkpoints=verdicts,
        error=next((error for error in errors if error.exit == worst), None),
    )


def verify(
    path: str | Path, nm: str | NMPattern | None = None, **options: Any
) -> VerifyReport:
    """Check one checkpoint: the report behind `verify-nm --json`.

    Args:
        path: A CHECKPOINT.
        nm: The pattern, such as "2:4"; None: that of its plan, else 2:4.
        options: Those of the command: ``include=["*.mlp.*"]``, ``strict=True``, ...

    Raises:
        pydantic.ValidationError: An option is unknown, or its value refused.
        StepError: As `run`; what is wrong with the checkpoint itself is reported.
    """
    given = {"checkpoint": [Path(path)], "nm": nm, **options}
    return run(VerifyConfig.model_validate(given))


def _baseline(path: Path, key: str | None) -> Checkpoint:
    """The checkpoint to compare with; the key is for it too, if it is a torch file."""
    with working_on(f"reading {path}"):
        return open_checkpoint(path, key if format_named(path) == "torch" else None)


def _verdict(
    path: Path, config: VerifyConfig, plan: Plan | None, baseline: Checkpoint | None
) -> CheckpointVerdict:
    checkpoint = None
    try:
        with naming(file=path), working_on(f"reading {path}") as now:
            checkpoint = open_checkpoint(path, config.key)
            now(f"counting the non-zeros of {path}")
            return _checked(checkpoint, config, plan, baseline)
    except UsageError:
        raise
    except StepError as error:
        return CheckpointVerdict(
            path=str(path),
            format=None if checkpoint is None else checkpoint.format,
            ok=False,
            error=ErrorDetail.of(error, path),
        )


def _targets(
    config: VerifyConfig, checkpoint: Checkpoint
) -> tuple[Judge | None, list[str]]:
    """What judges layers for each --target, and notes on them."""
    if not config.targets:
        return None, []
    from step_cli.commands.verify.targets import judge_for, notes_for

    targets = config.targets
    return judge_for(targets, checkpoint), notes_for(targets, checkpoint)


def _checked(
    checkpoint: Checkpoint,
    config: VerifyConfig,
    plan: Plan | None,
    baseline: Checkpoint | None,
) -> CheckpointVerdict:
    plan = checkpoint.plan if plan is None else plan
    chosen = choose(config, checkpoint, plan)
    _note_assumed([layer for layer in chosen.layers if layer.assumed], checkpoint)
    counted = count_layers(chosen.layers, exact=config.exact, baseline=baseline)
    planned = plan is not None and config.nm is None
    judge, notes = _targets(config, checkpoint)
    layers, hints = verdicts_on(counted, planned=planned, judge=judge)
    skipped = with_rebuilt(
        skipped_tensors(chosen, strict=config.strict), checkpoint, config.nm
    )
    totals = _totals(layers, len(skipped), uncovered_elements(chosen))
    shortfall = _shortfall(totals, config.min_coverage)
    ok = all(layer.ok for layer in layers) and all(tensor.ok for tensor in skipped)
    ok = ok and shortfall is None
    error = _nonfinite(layers)
    if not layers and ok:
        error = NothingSelectedError(why_nothing(chosen, "check", plan))
    return CheckpointVerdict(
        path=str(checkpoint.path),
        format=checkpoint.format,
        ok=ok and error is None,
        layers=layers,
        skipped=skipped,
        totals=totals,
        hints=hints,
        notes=notes,
        shortfall=shortfall,
        integrity=checkpoint.integrity,
        error=None if error is None else ErrorDetail.of(error, checkpoint.path),
    )


def _note_assumed(layers: Sequence[Layer[NamedTensor]], checkpoint: Checkpoint) -> None:
    if layers:
        first, more = layers[0], len(layers) - 1
        log.info(
            "%s: nothing settles the group axis of %s%s; axis %d of %s is assumed, "
            "--axis %r says otherwise",
            checkpoint.path,
            first.tensor.name,
            f" and {more} more" if more else "",
            first.spec.axis,
            list(first.tensor.shape),
            f"{first.tensor.name}=AXIS",
        )


def _shortfall(totals: VerifyTotals, least: float | None) -> str | None:
    if least is None or totals.coverage >= least:
        return None
    return (
        f"coverage {totals.coverage:.4g} is below --min-coverage {least:g}: "
        f"{totals.uncovered} elements could not be judged"
    )


def _totals(layers: list[LayerVerdict], skipped: int, uncovered: int) -> VerifyTotals:
    listed = {layer.name for layer in layers}
    once = [layer for layer in layers if layer.tied_to not in listed]
    elements = sum(layer.elements for layer in once)
    nonzeros = sum(layer.nonzeros for layer in once)
    return VerifyTotals(
        layers=len(once),
        failed=sum(not layer.ok for layer in once),
        skipped=skipped,
        groups=sum(layer.groups for layer in once),
        violations=sum(layer.violations for layer in once),
        elements=elements,
        nonzeros=nonzeros,
        density=nonzeros / elements if elements else 0.0,
        coverage=coverage(elements, uncovered),
        uncovered=uncovered,
    )


def _nonfinite(layers: list[LayerVerdict]) -> StepError | None:
    found = [layer for layer in layers if layer.nonfinite]
    if not found:
        return None
    first, more = found[0], len(found) - 1
    others = f", and {more} more tensors with such numbers" if more else ""
    return NonFiniteError(
        f"{first.nonfinite} NaN or infinity, the first at {first.first_nonfinite}"
        f"{others}; find out where training diverged",
        tensor=first.name,
    )
