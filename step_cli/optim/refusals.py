"""Combinations of base optimizer, recipe and switch that cannot work."""

import torch
from torch.optim import Optimizer

from step_cli.autoswitch.autoswitch import SwitchRule
from step_cli.errors import UsageError, nearest
from step_cli.optim.adam import EpsMode
from step_cli.optim.recipe import Recipe

MODES = {"eps_mode": ("outside", "inside"), "v_correction": ("at_switch", "none")}


def refuse_unknown(**chosen: str) -> None:
    """Refuse what is no mode of an option, which would pass for another.

    Raises:
        UsageError: One is none.
    """
    for option, mode in chosen.items():
        if mode not in MODES[option]:
            raise UsageError(f"no {option} {mode!r}{nearest(mode, MODES[option])}")


def refuse_impossible(
    base: Optimizer,
    recipe: Recipe,
    switch: SwitchRule | None,
    eps_mode: EpsMode,
    total_steps: int | None,
) -> None:
    """Say in one line what cannot work, before any state exists.

    Raises:
        UsageError: Something cannot.
    """
    name, groups = type(recipe).__name__, base.param_groups
    adam = isinstance(base, torch.optim.Adam)
    if isinstance(base, torch.optim.LBFGS):
        raise UsageError("LBFGS evaluates the loss within its step: use another")
    if any(group.get("maximize") for group in groups):
        raise UsageError("maximize: negate the loss instead, as masks minimise")
    if any(group.get("differentiable") for group in groups):
        raise UsageError("differentiable: leave it off, as masks have no derivative")
    frozen = not recipe.after.learn_variance
    if not adam and (frozen or eps_mode == "inside"):
        raise UsageError(f"{name} freezes Adam's variance: use Adam or AdamW")
    if adam and any(group["amsgrad"] for group in groups):
        raise UsageError("amsgrad keeps a second variance: leave it off")
    if frozen and any(
        group["weight_decay"] and not group["decoupled_weight_decay"]
        for group in groups
    ):
        raise UsageError(
            "Adam's weight decay enters the variance that STEP freezes: use AdamW"
        )
    if recipe.switches and switch is None:
        raise UsageError(f"{name} needs a switch point: give a step or total_steps")
    if recipe.learner.needs_total_steps and total_steps is None:
        raise UsageError(f"{name} follows a schedule: give total_steps")
    if frozen and switch is not None and switch.first_step < 1:
        raise UsageError("switch at step 0: the variance has seen no gradient yet")
    sparse = recipe.before.sparse or recipe.after.sparse
    if sparse and not any(group.get("pattern") for group in groups):
        raise UsageError("no parameter carries a pattern: no eligible layer found")
