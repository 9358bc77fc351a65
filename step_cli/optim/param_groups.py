"""Param groups: what those with a pattern promise, and whether a saved one fits."""

from collections.abc import Sequence
from typing import Any

import torch

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.optim.recipe import Recipe

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Groups = Sequence[dict[str, Any]]


def plan_of(group: dict[str, Any]) -> NMSpec | None:
    """What a group of parameters promises; None for a dense one."""
    if group.get("pattern") is None:
        return None
    return NMSpec(NMPattern.parse(str(group["pattern"])), int(group["axis"]))


def check_group(group: dict[str, Any]) -> None:
    """Make the group axis of a sparse group non-negative; refuse what is none.

    Raises:
        UsageError: Pattern and axis are not both there, or not what they should be; a
            parameter is complex.
    """
    if any(p.is_complex() for p in group["params"]):
        raise UsageError("complex parameters: give them to an optimizer of their own")
    pattern, axis = group.get("pattern"), group.get("axis")
    if pattern is None:
        return
    if not all(p.dtype in DTYPES for p in group["params"]):
        raise UsageError("a param group with a pattern takes fp64, fp32, bf16 or fp16")
    if not isinstance(pattern, str | NMPattern) or type(axis) is not int:
        raise UsageError(
            "a param group with a pattern needs it as text such as '2:4', and an axis "
            f"as a number; got pattern={pattern!r}, axis={axis!r}"
        )
    ranks = {p.dim() for p in group["params"]}
    if axis < 0 and len(ranks) == 1:
        group["axis"] = axis % max(1, ranks.pop())


def named(recipe: Recipe) -> str:
    """The classes of a recipe, and of the one it wraps."""
    outer, inner = type(recipe).__name__, type(recipe.learner).__name__
    return outer if recipe.learner is recipe else f"{outer} of {inner}"


def refuse_foreign(mine: Groups, saved: Groups, recipe: Recipe) -> None:
    """Refuse the groups of a state that was saved by something else.

    Args:
        mine: Those of the optimizer that is to go on.
        saved: Those of the state.
        recipe: The rules of that optimizer.

    Raises:
        UsageError: The state is of another optimizer, recipe, model or pattern.
    """
    if not saved or "switch_reason" not in saved[0]:
        raise UsageError(
            "the state is not of this optimizer: it knows no phase; load the model's "
            "weights and begin anew, or dense with the recipe 'dense'"
        )
    there, here = ([len(group["params"]) for group in each] for each in (saved, mine))
    if there != here:
        raise UsageError(
            f"the state is of groups of {there} parameters, these are of {here}"
        )
    theirs, ours = saved[0].get("recipe"), named(recipe)
    if theirs not in (None, ours):
        raise UsageError(
            f"the state was saved by {theirs}, this optimizer is for {ours}: load the "
            "model's weights and begin anew"
        )
    for group, other in zip(mine, saved, strict=True):
        if plan_of(group) != plan_of(other):
            raise UsageError(
                f"the state was saved for {_said(other)}, this optimizer is for "
                f"{_said(group)}"
            )


def _said(group: dict[str, Any]) -> str:
    plan = plan_of(group)
    return f"{plan.pattern} along axis {plan.axis}" if plan else "dense weights"
