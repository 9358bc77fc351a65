"""``sparse_adamw`` and ``sparse``: N:M training in an unmodified loop."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from step_cli.autoswitch.autoswitch import AutoSwitch, Criterion, Fixed, SwitchRule
from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.optim.adam import EpsMode
from step_cli.optim.guards import number_of_steps
from step_cli.optim.optimizer import SparseOptimizer, VarianceCorrection
from step_cli.optim.recipe import Recipe, plain_number
from step_cli.recipes import make_recipe
from step_cli.recipes.choosing import (
    GroupOptions,
    given_groups,
    mark,
    module_groups,
)

T_MIN, T_MAX = 0.1, 0.5  # Geweke's clipping, as the STEP paper suggests

NO_LENGTH = "give total_steps, which the switch is clipped to, or a switch"


def sparse_adamw(
    params: nn.Module | Iterable[Any],
    pattern: NMPattern | str = "2:4",
    recipe: Recipe | str = "step",
    total_steps: int | None = None,
    switch: int | Criterion | SwitchRule | None = None,
    *,
    eps_mode: EpsMode = "outside",
    v_correction: VarianceCorrection = "at_switch",
    record: bool = False,
    compile: bool | None = None,
    model: nn.Module | None = None,
    groups: GroupOptions | None = None,
    **adamw: Any,
) -> SparseOptimizer:
    """AdamW that learns N:M weights: use it in place of ``torch.optim.AdamW``.

    Args:
        params: A module, named parameters, or param groups that carry ``pattern`` and
            ``axis`` (groups without them stay dense), or any beside ``model``.
        pattern: The N:M pattern of every selected weight.
        recipe: A recipe or its name.
        total_steps: Length of the training, which the switch is clipped to and the
            schedules of recipes follow.
        switch: A step, a criterion (clipped to 10-50 % of ``total_steps``) or a whole
            rule; default AutoSwitch.
        eps_mode: See :class:`SparseOptimizer`.
        v_correction: See :class:`SparseOptimizer`.
        record: Measure the variance at every step.
        compile: See :class:`SparseOptimizer`.
        model: The module whose types choose, where ``params`` are parameters or groups;
            groups that carry ``pattern`` and ``axis`` (or ``pattern=None``) are left.
        groups: Beside a module, from a parameter's name to the options of its group,
            such as ``{"weight_decay": 0.0}`` for norms and biases, or None.
        **adamw: Options of ``torch.optim.AdamW``: lr, betas, eps, weight_decay, ...

    Raises:
        UsageError: Bare parameters, an impossible switch, an unknown recipe, or
            adapters of a model that stays dense.
        NothingSelectedError: No parameter can hold the pattern.
    """
    made = _made(recipe)
    if isinstance(params, nn.Module):
        if model not in (None, params):
            raise UsageError("model: it goes beside parameters, not beside a module")
        model, given = params, module_groups(params, groups)
    elif groups is not None:
        raise UsageError("groups: it goes beside a module, whose names it is given")
    else:
        given = given_groups(params, model)
    return sparse(
        torch.optim.AdamW(given, **adamw),
        made,
        pattern,
        total_steps=total_steps,
        switch=switch,
        eps_mode=eps_mode,
        v_correction=v_correction,
        record=record,
        compile=compile,
        model=model,
    )


def sparse(
    optimizer: Optimizer,
    recipe: Recipe | str = "step",
    pattern: NMPattern | str = "2:4",
    *,
    total_steps: int | None = None,
    switch: int | Criterion | SwitchRule | None = None,
    eps_mode: EpsMode = "outside",
    v_correction: VarianceCorrection = "at_switch",
    record: bool = False,
    compile: bool | None = None,
    model: nn.Module | None = None,
) -> SparseOptimizer:
    """Make any optimizer learn N:M weights, such as momentum SGD for SR-STE.

    The types of ``model``'s modules choose the weights. Without it, the optimizer's
    groups carry ``pattern`` and ``axis``; where none does, it must have been given
    named parameters, and the weights are chosen by name and shape. A recipe that
    changes the backward pass needs the model too.

    Raises:
        UsageError: As :func:`sparse_adamw`.
    """
    made = _made(recipe)
    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise UsageError(
            f"{kind} is no torch.optim.Optimizer: if it wraps one, give sparse() that "
            f"one, and let {kind} wrap what it returns"
        )
    if total_steps is not None:
        total_steps = number_of_steps(total_steps)
    switch = plain_number(switch)
    mark(optimizer, model, pattern, made)
    rule = _rule(optimizer, made, switch, total_steps)
    made_sparse = SparseOptimizer(
        optimizer,
        made,
        rule,
        eps_mode=eps_mode,
        v_correction=v_correction,
        record=record,
        compile=compile,
        total_steps=total_steps,
    )
    if model is not None:
        made_sparse.rewire(model)
    return made_sparse


def _made(recipe: Recipe | str) -> Recipe:
    made = make_recipe(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(made, Recipe):
        raise UsageError(
            f"recipe {made!r} is neither a name nor a recipe such as STE()"
        )
    return made


def clip_steps(total_steps: int) -> tuple[int, int]:
    """T_min and T_max in steps for a training of ``total_steps``."""
    return round(T_MIN * total_steps), round(T_MAX * total_steps)


def _rule(
    optimizer: Optimizer,
    recipe: Recipe,
    switch: int | Criterion | SwitchRule | None,
    total_steps: int | None,
) -> SwitchRule | None:
    _check_switch(recipe, switch)
    if not recipe.switches:
        return None
    if isinstance(switch, SwitchRule):
        return switch
    fixed = switch if isinstance(switch, int) else None
    if switch is None:
        fixed = _fixed(recipe, total_steps)
    if fixed is not None:
        return SwitchRule(Fixed(fixed))
    if total_steps is None:
        raise UsageError(NO_LENGTH)
    if switch is None:
        group = optimizer.param_groups[0]
        if "betas" not in group:
            raise UsageError(
                f"{type(recipe).__name__} freezes Adam's variance: use Adam or AdamW"
            )
        switch = AutoSwitch(group["betas"][1], group["eps"])
    assert isinstance(switch, Criterion)
    return SwitchRule(switch, *clip_steps(total_steps))


def _check_switch(recipe: Recipe, switch: Any) -> None:
    if switch is None or type(switch) is int:
        return
    if not isinstance(switch, Criterion | SwitchRule):
        raise UsageError(
            f"switch {switch!r} is neither a step nor a criterion; give a number of "
            "steps, or one such as AutoSwitch(beta2, eps)"
        )
    rule = switch.criterion if isinstance(switch, SwitchRule) else switch
    if recipe.switch_step is not None and not isinstance(rule, Fixed):
        name = type(recipe).__name__
        raise UsageError(f"{name} switches at a step: give a number of steps")


def _fixed(recipe: Recipe, total_steps: int | None) -> int | None:
    """The step at which the recipe itself switches."""
    if not isinstance(recipe.switch_step, float):
        return recipe.switch_step
    if total_steps is None:
        raise UsageError(NO_LENGTH)
    return round(recipe.switch_step * total_steps)
