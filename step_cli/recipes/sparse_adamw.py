"""``sparse_adamw`` and ``sparse``: N:M training in an unmodified loop."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from step_cli.autoswitch.autoswitch import AutoSwitch, Criterion, Fixed, SwitchRule
from step_cli.errors import NothingSelectedError, UsageError
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.nm.selection import Selection
from step_cli.nm.weight_rule import Description
from step_cli.optim.adam import EpsMode
from step_cli.optim.guards import number_of_steps, refuse_early_scheduler
from step_cli.optim.layers import param_groups, plan_for, warn_of
from step_cli.optim.optimizer import SparseOptimizer, VarianceCorrection
from step_cli.optim.recipe import Recipe, plain_number
from step_cli.optim.shards import Gathered
from step_cli.recipes import make_recipe

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
    **adamw: Any,
) -> SparseOptimizer:
    """AdamW that learns N:M weights: use it in place of ``torch.optim.AdamW``.

    Args:
        params: A module, named parameters, or param groups that carry ``pattern`` and
            ``axis`` (groups without them stay dense).
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
        **adamw: Options of ``torch.optim.AdamW``: lr, betas, eps, weight_decay, ...

    Raises:
        UsageError: Bare parameters, an impossible switch, or an unknown recipe.
        NothingSelectedError: No parameter can hold the pattern.
    """
    made = _made(recipe)
    base = torch.optim.AdamW(_groups(params, pattern, made), **adamw)
    optimizer = sparse(
        base,
        made,
        pattern,
        total_steps=total_steps,
        switch=switch,
        eps_mode=eps_mode,
        v_correction=v_correction,
        record=record,
        compile=compile,
    )
    if isinstance(params, nn.Module):
        optimizer.rewire(params)
    return optimizer


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
) -> SparseOptimizer:
    """Make any optimizer learn N:M weights, such as momentum SGD for SR-STE.

    The optimizer's groups carry ``pattern`` and ``axis``; where none does, it must have
    been given named parameters, and the weights are chosen by name and shape. A recipe
    that changes the backward pass also needs ``rewire(model)`` of what is returned.

    Raises:
        UsageError: As :func:`sparse_adamw`.
    """
    made = _made(recipe)
    if total_steps is not None:
        total_steps = number_of_steps(total_steps)
    switch = plain_number(switch)
    if not any("pattern" in group for group in optimizer.param_groups):
        _choose_within(optimizer, pattern, made)
    rule = _rule(optimizer, made, switch, total_steps)
    return SparseOptimizer(
        optimizer,
        made,
        rule,
        eps_mode=eps_mode,
        v_correction=v_correction,
        record=record,
        compile=compile,
        total_steps=total_steps,
    )


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


def _groups(
    params: nn.Module | Iterable[Any], pattern: NMPattern | str, recipe: Recipe
) -> list[Any]:
    """Param groups, with the sparse ones marked where the caller has not done so."""
    if isinstance(params, nn.Module):
        parsed = NMPattern.of(pattern)
        plan = plan_for(params, Selection(pattern=parsed))
        if not plan:
            raise NothingSelectedError(
                f"no layer of the model can hold {parsed}; give param groups that "
                "carry pattern and axis"
            )
        weights = Gathered(dict(params.named_parameters()))
        groups = param_groups(params, recipe.inner_recipe.plan_layers(weights, plan))
        if not groups:
            raise NothingSelectedError("no parameter of the model requires a gradient")
        return list(groups)
    given = [_listed(item) for item in params]
    if not given:
        raise UsageError("there are no parameters to optimize")
    bare = any(isinstance(item, Tensor) for item in given)
    if bare or (
        given
        and isinstance(given[0], dict)
        and not any("pattern" in group for group in given)
        and not all(_named(group["params"]) for group in given)
    ):
        raise UsageError(
            "bare parameters have no names to choose by: give the module, its "
            "named_parameters(), or param groups that carry pattern and axis"
        )
    return given


def _listed(item: Any) -> Any:
    """A group with its parameters as a list, as an iterator can be read only once."""
    if not isinstance(item, dict) or isinstance(item.get("params"), Tensor):
        return item
    return {**item, "params": list(item["params"])}


def _named(members: Any) -> bool:
    return all(isinstance(member, tuple) for member in members)


def _choose_within(
    optimizer: Optimizer, pattern: NMPattern | str, recipe: Recipe
) -> None:
    """Split each group of named parameters by pattern and axis, and mark the parts."""
    parsed = NMPattern.of(pattern)
    if not all("param_names" in group for group in optimizer.param_groups):
        raise UsageError(
            "bare parameters have no names to choose by: give the optimizer "
            "named_parameters(), or param groups that carry pattern and axis"
        )
    weights = {
        name: p
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }
    described = [
        Description(name, str(p.dtype).removeprefix("torch."), tuple(p.shape))
        for name, p in weights.items()
        if p.requires_grad
    ]
    chosen = Selection(pattern=parsed).choose(described)
    warn_of(chosen)
    if not chosen.layers:
        raise NothingSelectedError(f"no named parameter can hold {parsed}")
    plan = {layer.tensor.name: layer.spec for layer in chosen.layers}
    plan = recipe.inner_recipe.plan_layers(Gathered(weights), plan)
    parts = [part for group in optimizer.param_groups for part in _parts(group, plan)]
    refuse_early_scheduler(optimizer, len(parts))
    optimizer.param_groups[:] = parts


def _parts(group: dict[str, Any], plan: Plan) -> Sequence[dict[str, Any]]:
    parts: dict[NMSpec | None, dict[str, Any]] = {}
    for name, p in zip(group["param_names"], group["params"], strict=True):
        layer = plan.get(name)
        part = parts.setdefault(layer, {**group, "params": [], "param_names": []})
        part["params"].append(p)
        part["param_names"].append(name)
        if layer is not None:
            part.update(pattern=str(layer.pattern), axis=layer.axis)
    return list(parts.values())
