"""Which tensors of a checkpoint a command works on, and why not on the others."""

import logging
import math
from collections import Counter
from dataclasses import replace
from glob import escape

from step_cli.config.commands import SelectionConfig
from step_cli.errors import few, naming
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.plan import read_plan
from step_cli.nm.pattern import Plan
from step_cli.nm.selection import Chosen
from step_cli.reports import SkippedTensor

log = logging.getLogger(__name__)


def plan_that_holds(config: SelectionConfig, checkpoint: Checkpoint) -> Plan | None:
    """The plan file that the user gave, else the plan stored with the weights.

    Raises:
        InputError: The file is no plan.
    """
    return checkpoint.plan if config.plan is None else read_plan(config.plan)


def choose(
    config: SelectionConfig, checkpoint: Checkpoint, plan: Plan | None
) -> Chosen[NamedTensor]:
    """Select the tensors, and log notes and warnings about the choice.

    Args:
        config: The user's options.
        checkpoint: Whose tensors to choose from.
        plan: The plan that holds.

    Raises:
        StepError: As `Selection.choose`.
    """
    for note in checkpoint.notes:
        log.info("%s: %s", checkpoint.path, note)
    selection = config.selection(plan)
    left = [name for name in checkpoint.left_dense if name not in config.include]
    if left and plan is None:
        log.info(
            "%s: left out, as sparsity_config in config.json leaves them dense: %s; "
            "name one with --include to choose it",
            checkpoint.path,
            few(left),
        )
        names = [escape(name) for name in left]
        selection = replace(selection, exclude=[*selection.exclude, *names])
    with naming(file=checkpoint.path):
        chosen = selection.choose(checkpoint.tensors, checkpoint.model_config)
    for warning in chosen.warnings:
        log.warning("%s: %s", checkpoint.path, warning)
    return chosen


def uncovered_elements(chosen: Chosen[NamedTensor]) -> int:
    """How many elements are in matrices that a product may use, but are not judged.

    Codes count as they are stored, tied tensors once, those tied to a judged one not.
    """
    whole = {id(t) for t, reason in chosen.skipped if reason in ("flat", "untraced")}
    counted = {layer.tensor.tied_to or layer.tensor.name for layer in chosen.layers}
    elements = 0
    for tensor in chosen.unchecked:
        storage = tensor.tied_to or tensor.name
        is_matrix = len(tensor.shape) > 1 or id(tensor) in whole
        if is_matrix and (tensor.tied_to is None or storage not in counted):
            elements += math.prod(tensor.shape)
            counted.add(storage)
    return elements


def coverage(judged: int, uncovered: int) -> float:
    """The share of elements judged; 1 where there is nothing to judge."""
    return judged / (judged + uncovered) if judged + uncovered else 1.0


def skipped_tensors(
    chosen: Chosen[NamedTensor], *, strict: bool = False
) -> list[SkippedTensor]:
    """The tensors left out, by name; with ``strict``, those not covered are not ok."""
    selected = {tensor.name for tensor in chosen.unchecked}
    listed = [
        SkippedTensor(
            name=tensor.name,
            shape=list(tensor.shape),
            dtype=tensor.dtype,
            reason=reason,
            selected=tensor.name in selected,
            ok=not (strict and tensor.name in selected),
        )
        for tensor, reason in chosen.skipped
    ]
    return sorted(listed, key=lambda tensor: tensor.name)


def why_nothing(chosen: Chosen[NamedTensor], to: str, plan: Plan | None) -> str:
    """Why there is no tensor ``to`` do something with, and what to do."""
    if plan is not None and not plan:
        return f"no tensor to {to}: the plan names no layer; give another with --plan"
    if all(0 in tensor.shape for tensor, _ in chosen.skipped):
        return "no tensor with elements in it"
    counts = Counter(reason for _, reason in chosen.skipped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    return f"no tensor to {to}, skipped: {reasons}; name one with --include"
