"""The verdict on one layer: what was counted, what it looks like, what to do.

What only some runs need is imported where it is used, as most of a run is its start.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.nm.count import TensorCounts, TensorToCheck
from step_cli.nm.groups import index_of
from step_cli.nm.pattern import NMSpec
from step_cli.nm.weight_rule import is_head
from step_cli.reports import GroupAt, LayerVerdict, MaskDifference, TensorrtView

EXPLAINED = 32  # failing layers that are read again to see what they look like
MISTAKEN = 0.01  # of groups; below it, a layer with another pattern would break more


@dataclass(frozen=True)
class Judged:
    """A tensor, what it promised, and the verdict so far."""

    tensor: NamedTensor
    plan: NMSpec
    exact: bool
    verdict: LayerVerdict


def verdict_of(tensor: NamedTensor, plan: NMSpec, tally: TensorCounts) -> LayerVerdict:
    """The verdict as far as counting goes."""
    first = tally.violation
    wild = tally.nonfinite_at
    shape = tensor.shape
    notes = ["all zero"] if tally.nonzeros == 0 else []
    notes += ["dense by plan"] if plan.pattern.dense else []
    return LayerVerdict(
        name=tensor.name,
        shape=list(shape),
        dtype=tensor.dtype,
        pattern=str(plan.pattern),
        axis=plan.axis,
        ok=not tally.violations and not tally.nonfinite,
        groups=tally.groups,
        violations=tally.violations,
        elements=tally.elements,
        nonzeros=tally.nonzeros,
        density=tally.nonzeros / tally.elements,
        first_violation=first
        and GroupAt(index=list(index_of(first[0], shape)), nonzeros=first[1]),
        nonfinite=tally.nonfinite,
        first_nonfinite=None if wild is None else list(index_of(wild, shape)),
        tied_to=tensor.tied_to,
        notes=notes,
    )


def compare_masks(judged: Sequence[Judged], baseline: Checkpoint) -> None:
    """Add to each verdict how its mask differs from that of the same name."""
    others = {tensor.name: tensor for tensor in baseline.tensors}
    for item in judged:
        found = _difference(item, others.get(item.tensor.name))
        item.verdict.baseline = found
        if found is not None:
            item.verdict.ok = False


def _difference(item: Judged, other: NamedTensor | None) -> MaskDifference | None:
    if other is None:
        return MaskDifference(
            count=None, first_index=None, message="the baseline lacks this tensor"
        )
    if other.shape != item.tensor.shape or other.skip == "kind":
        found = f"shape {list(other.shape)}, dtype {other.dtype}"
        return MaskDifference(
            count=None,
            first_index=None,
            message=f"the baseline has {found}, which cannot be compared",
        )
    from step_cli.nm.diagnosis import mismatch

    found_at = mismatch(item.tensor.data(), other.data())
    if found_at is None:
        return None
    index = list(found_at.index)
    return MaskDifference(
        count=found_at.count,
        first_index=index,
        message=f"{found_at.count} weights are kept in one of this and the baseline "
        f"only, the first at {index}",
    )


def add_advice(judged: Sequence[Judged], *, planned: bool, tensorrt: bool) -> list[str]:
    """Write the message of each failing layer; return what holds for all of them."""
    failing = [item for item in judged if not item.verdict.ok]
    worst = sorted(failing, key=lambda item: -item.verdict.violations)[:EXPLAINED]
    explained = {item.tensor.name for item in worst}
    hints = _dense_heads([item.tensor.name for item in failing])
    for item in failing:
        parts = _found(item, planned=planned)
        if item.verdict.violations and item.tensor.name in explained:
            looks = _looks_like(item, planned=planned)
            parts += [looks] if looks else [] if hints else [_to_do(item)]
        item.verdict.message = "; ".join([*parts, *hints])
    if tensorrt:
        for item in judged:
            item.verdict.tensorrt = _tensorrt(item)
    return hints


def _tensorrt(item: Judged) -> TensorrtView:
    from step_cli.nm.targets import tensorrt_view

    tensor = item.tensor
    job = TensorToCheck(tensor.data(), item.plan)
    view = tensorrt_view(tensor, job, holds=item.verdict.violations == 0)
    return TensorrtView(possible=view.possible, likely=view.likely, advice=view.advice)


def _found(item: Judged, *, planned: bool) -> list[str]:
    found = item.verdict
    parts = []
    if found.first_violation is not None:
        parts.append(_broken(found, planned=planned, exact=item.exact))
    if found.nonfinite:
        at = f"the first at {found.first_nonfinite}"
        parts.append(f"{found.nonfinite} NaN or infinity, {at}")
    if found.baseline is not None:
        parts.append(found.baseline.message)
    return parts


def _broken(found: LayerVerdict, *, planned: bool, exact: bool) -> str:
    assert found.first_violation is not None
    count = f"{found.violations} of {found.groups} groups break it"
    if planned:
        claim = f"plan promises {found.pattern}, {count}"
    else:
        claim = f"expected {found.pattern} along axis {found.axis}, {count}"
    first = found.first_violation
    wanted = ", --exact wants exactly N" if exact else ""
    return (
        f"{claim}; the first, at {first.index}, has {first.nonzeros} non-zeros{wanted}"
    )


def _looks_like(item: Judged, *, planned: bool) -> str | None:
    """The mistake that it looks like, and what to do then."""
    from step_cli.nm.diagnosis import (
        axis_that_holds,
        holds_as_fp16,
        pattern_that_holds,
    )

    found, job = item.verdict, TensorToCheck(item.tensor.data(), item.plan)
    if holds_as_fp16(job):
        return "the values too many are zero after a cast to fp16; cast it, then check"
    axis = axis_that_holds(job)
    if axis is not None:
        option = quoted(f"{item.tensor.name}={axis}")
        return f"holds along axis {axis}; use --axis {option}"
    pattern = pattern_that_holds(job)
    if pattern == item.plan.pattern:
        return f"complies with at most {pattern}, without --exact"
    if pattern is not None and found.violations >= MISTAKEN * found.groups:
        where = "change the plan" if planned else f"use --nm {pattern}"
        return f"complies with {pattern}, if that is what it should be: {where}"
    return None


def _to_do(item: Judged) -> str:
    dense = "it is dense; " if item.verdict.density == 1 else ""
    option = quoted(item.tensor.name)
    return f"{dense}prune it, or leave it out with --exclude {option}"


def _dense_heads(names: Sequence[str]) -> list[str]:
    """What to try when every failing layer is an output head."""
    if not names or not all(is_head(name) for name in names):
        return []
    modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
    options = " ".join(f"--exclude {quoted(module + '.*')}" for module in modules)
    return [f"a dense head? {options}"]


def quoted(text: str) -> str:
    """An argument as the shell wants it, in quotes."""
    return "'" + text.replace("'", "'\"'\"'") + "'"
