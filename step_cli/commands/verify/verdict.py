"""The verdict on each layer: what was counted, what it looks like, what to do.

What only some runs need is imported where it is used, as most of a run is its start.
"""

from collections.abc import Callable, Sequence

from step_cli.commands.verify.counted import Counted
from step_cli.nm.count import TensorToCheck
from step_cli.nm.groups import index_of
from step_cli.nm.weight_rule import is_head
from step_cli.reports import GroupAt, LayerVerdict, TargetView, TensorrtView

Judge = Callable[[Counted], dict[str, TargetView]]

EXPLAINED = 32  # failing layers that are read again to see what they look like
MISTAKEN = 0.01  # of groups; below it, a layer with another pattern would break more


def verdicts_on(
    counted: Sequence[Counted], *, planned: bool, judge: Judge | None = None
) -> tuple[list[LayerVerdict], list[str]]:
    """Judge the layers.

    Args:
        counted: What was found in each.
        planned: Whether their patterns come from a plan.
        judge: Says of each layer which libraries could run it sparse.

    Returns:
        A verdict for each layer, and advice that holds for all failing ones.
    """
    failing = [layer for layer in counted if not layer.ok]
    hints = _dense_heads([layer.tensor.name for layer in failing])
    worst = sorted(failing, key=lambda layer: -layer.counts.violations)[:EXPLAINED]
    explained = {layer.tensor.name for layer in worst}
    verdicts = []
    for layer in counted:
        message = None
        if not layer.ok:
            explain = layer.tensor.name in explained
            found = _message(layer, planned, explain=explain, advise=not hints)
            message = "; ".join([*found, *hints])
        verdicts.append(_verdict(layer, message, judge(layer) if judge else None))
    return verdicts, hints


def _verdict(
    layer: Counted, message: str | None, targets: dict[str, TargetView] | None
) -> LayerVerdict:
    tensor, spec, counts = layer.tensor, layer.spec, layer.counts
    notes = ["all zero"] if counts.nonzeros == 0 else []
    notes += ["dense by plan"] if spec.pattern.dense else []
    notes += [_assumed(layer)] if layer.layer.assumed else []
    return LayerVerdict(
        name=tensor.name,
        shape=list(tensor.shape),
        dtype=tensor.dtype,
        pattern=str(spec.pattern),
        axis=spec.axis,
        axis_from=layer.layer.axis_from,
        ok=layer.ok,
        groups=counts.groups,
        violations=counts.violations,
        elements=counts.elements,
        nonzeros=counts.nonzeros,
        density=counts.nonzeros / counts.elements,
        first_violation=_first_violation(layer),
        nonfinite=counts.nonfinite,
        first_nonfinite=layer.first_nonfinite,
        tied_to=layer.tied_to,
        baseline=layer.difference,
        tensorrt=_tensorrt(targets),
        targets=targets,
        message=message,
        notes=notes,
    )


def _assumed(layer: Counted) -> str:
    """That nothing settles the axis, and what the others would give."""
    from step_cli.nm.diagnosis import holds_pattern

    pattern, shape = layer.spec.pattern, layer.tensor.shape
    to_check = TensorToCheck(layer.tensor.data(), layer.spec)
    found = []
    for axis in range(max(0, len(shape) - 2), len(shape)):
        if axis == layer.spec.axis:
            continue
        if shape[axis] % pattern.m:
            found.append(f"axis {axis} has no whole groups")
        else:
            holds = holds_pattern(to_check, pattern, axis)
            found.append(f"axis {axis} would {'pass' if holds else 'fail'}")
    return f"axis {layer.spec.axis} is assumed, {', '.join(found)}"


def _first_violation(layer: Counted) -> GroupAt | None:
    if layer.counts.violation is None:
        return None
    position, nonzeros = layer.counts.violation
    index = index_of(position, layer.tensor.shape)
    return GroupAt(index=list(index), nonzeros=nonzeros)


def _tensorrt(targets: dict[str, TargetView] | None) -> TensorrtView | None:
    view = (targets or {}).get("tensorrt")
    return None if view is None else TensorrtView(**view.model_dump())


def _message(
    layer: Counted, planned: bool, *, explain: bool, advise: bool
) -> list[str]:
    """What is wrong with a layer, and what to do.

    Args:
        layer: A layer that fails.
        planned: Whether its pattern comes from a plan.
        explain: Whether to read it again, to see which mistake it looks like.
        advise: Whether to add what to do where it looks like none.
    """
    parts = []
    first = _first_violation(layer)
    if first is not None:
        parts.append(_broken(layer, first, planned=planned))
    if layer.counts.nonfinite:
        at = f"the first at {layer.first_nonfinite}"
        parts.append(f"{layer.counts.nonfinite} NaN or infinity, {at}")
    if layer.difference is not None:
        parts.append(layer.difference.message)
    if first is not None and explain:
        looks = _looks_like(layer, planned=planned)
        parts += [looks] if looks else [_to_do(layer)] if advise else []
    return parts


def _broken(layer: Counted, first: GroupAt, *, planned: bool) -> str:
    spec = layer.spec
    count = f"{layer.counts.violations} of {layer.counts.groups} groups break it"
    if planned:
        claim = f"plan promises {spec.pattern}, {count}"
    else:
        claim = f"expected {spec.pattern} along axis {spec.axis}, {count}"
    exactly = ", --exact requires exactly N" if layer.exact else ""
    return (
        f"{claim}; the first, at {first.index}, has {first.nonzeros} non-zeros{exactly}"
    )


def _looks_like(layer: Counted, *, planned: bool) -> str | None:
    """The mistake that it looks like, and what to do then."""
    from step_cli.nm.diagnosis import (
        axis_that_holds,
        holds_as_fp16,
        holds_pattern,
        pattern_that_holds,
    )

    if layer.tensor.parts:
        return None  # the rest of the tensor may be anything
    to_check = TensorToCheck(layer.tensor.data(), layer.spec)
    spec = layer.spec
    if layer.exact and holds_pattern(to_check, spec.pattern, spec.axis):
        return f"complies with at most {spec.pattern}, without --exact"
    if holds_as_fp16(to_check):
        return "the values too many are zero after a cast to fp16; cast it, then check"
    axis = axis_that_holds(to_check)
    if axis is not None and layer.layer.axis_from == "node":
        summed = layer.spec.axis  # --axis would pass what no kernel can use
        return (
            f"holds along axis {axis}, but its product sums over axis {summed}: prune "
            f"along axis {summed}"
        )
    if axis is not None:
        option = quoted(f"{layer.tensor.name}={axis}")
        return f"holds along axis {axis}; use --axis {option}"
    pattern = pattern_that_holds(to_check)
    violations, groups = layer.counts.violations, layer.counts.groups
    if pattern is not None and violations >= MISTAKEN * groups:
        where = "change the plan" if planned else f"use --nm {pattern}"
        return f"complies with {pattern}, if that is what it should be: {where}"
    return None


def _to_do(layer: Counted) -> str:
    dense = layer.counts.nonzeros == layer.counts.elements
    option = quoted(layer.tensor.name)
    remedy = f"prune it, or leave it out with --exclude {option}"
    return f"it is dense; {remedy}" if dense else remedy


def _dense_heads(names: Sequence[str]) -> list[str]:
    """What to try when every failing layer is an output head."""
    if not names or not all(is_head(name) for name in names):
        return []
    modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
    options = " ".join(f"--exclude {quoted(module + '.*')}" for module in modules)
    return [f"a dense head? {options}"]


def quoted(text: str) -> str:
    """An argument of a shell command, in quotes."""
    return "'" + text.replace("'", "'\"'\"'") + "'"
