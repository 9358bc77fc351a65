"""Which parameters of an optimizer are to become N:M, and its groups split by that."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from step_cli.errors import NothingSelectedError, UsageError
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.nm.selection import Selection
from step_cli.nm.weight_rule import Description
from step_cli.optim.guards import refuse_early_scheduler
from step_cli.optim.layers import choose_layers, plan_of, refuse_adapters
from step_cli.optim.recipe import Recipe
from step_cli.optim.shards import Gathered
from step_cli.optim.stays_dense import FROZEN, NOT_GIVEN, coverage_of, tell

GroupOptions = Callable[[str], Mapping[str, Any] | None]
NO_NAME = "a parameter"
MISSPELLED = 0.8  # likeness of two words, as difflib measures it
BARE = (
    "bare parameters have no names to choose by: give the module, its "
    "named_parameters(), model= beside them, or param groups that carry pattern and "
    "axis"
)


# ------------------------------------------------------------------ groups of AdamW


def module_groups(
    model: nn.Module, options: GroupOptions | None
) -> list[dict[str, Any]]:
    """Named param groups of all parameters of a module, frozen ones too.

    Args:
        model: The module.
        options: From a parameter's name to the options of its group.

    Raises:
        UsageError: The options are not a mapping, or misspelled.
        NothingSelectedError: Nothing requires a gradient.
    """
    members = [
        (name, p)
        for name, p in model.named_parameters()
        if p.requires_grad or p.is_floating_point()  # codes never learn
    ]
    if not any(p.requires_grad for _, p in members):
        raise NothingSelectedError("no parameter of the model requires a gradient")
    groups: list[dict[str, Any]] = []
    for name, p in members:
        own = _options_of(name, options)
        group = next((g for g in groups if {**g, "params": 0} == own), None)
        if group is None:
            group = {**own, "params": []}
            groups.append(group)
        group["params"].append((name, p))
    return groups


def _options_of(name: str, options: GroupOptions | None) -> dict[str, Any]:
    given = options(name) if options is not None else None
    if not isinstance(given, Mapping | None):
        raise UsageError(
            f"groups: {name} got {given!r}; return a dict of options such as "
            "{'weight_decay': 0.0}, or None"
        )
    known = [*signature(torch.optim.AdamW).parameters, "pattern", "axis"]
    for key in given or {}:
        meant = get_close_matches(str(key), known, 1, MISSPELLED)
        if meant and (key == "params" or key not in known):
            more = "" if key == "params" else f"; did you mean {meant[0]}"
            raise UsageError(f"groups: {key!r} is no option of a group{more}")
    return {**(given or {}), "params": 0}


def given_groups(params: Iterable[Any], model: nn.Module | None) -> list[Any]:
    """The user's parameters or groups, which can be read more than once.

    Raises:
        UsageError: There are none, or nothing tells which are to become N:M.
    """
    given = [_listed(item) for item in params]
    if not given:
        raise UsageError("there are no parameters to optimize")
    groups = [item for item in given if isinstance(item, dict)]
    bare = any(isinstance(item, Tensor) for item in given)
    unnamed = not any("pattern" in group for group in groups) and not all(
        isinstance(member, tuple) for group in groups for member in group["params"]
    )
    if model is None and (bare or unnamed):
        raise UsageError(BARE)
    return given


def _listed(item: Any) -> Any:
    """A group with its parameters as a list, as an iterator can be read only once."""
    if not isinstance(item, dict) or isinstance(item.get("params"), Tensor):
        return item
    return {**item, "params": list(item["params"])}


# --------------------------------------------------------------- what becomes sparse


def mark(
    optimizer: Optimizer,
    model: nn.Module | None,
    pattern: NMPattern | str,
    recipe: Recipe,
) -> None:
    """Split each group that is not marked by hand by pattern and axis.

    Args:
        optimizer: Has taken no step.
        model: The types of its modules choose; None: names and shapes do.
        pattern: Of every chosen weight whose group wishes no other.
        recipe: May give each weight a pattern of its own.

    Raises:
        UsageError: Nothing tells the parameters' names, or an adapter was chosen.
        NothingSelectedError: No parameter can hold the pattern.
    """
    groups = optimizer.param_groups
    if model is not None:
        _name_all(groups, model)
    elif any("pattern" in group for group in groups):
        return
    elif not all("param_names" in group for group in groups):
        raise UsageError(BARE)
    parsed = NMPattern.of(pattern)
    weights = _weights(group for group in groups if not _by_hand(group))
    plan = _choose(groups, weights, model, parsed)
    if not plan and not any(group.get("pattern") for group in groups):
        what = "named parameter" if model is None else "layer of the model"
        raise NothingSelectedError(
            f"no {what} can hold {parsed}; give param groups that carry pattern and "
            "axis"
        )
    plan = recipe.inner_recipe.plan_layers(Gathered(weights), plan)
    parts = [part for group in groups for part in _parts(group, plan)]
    refuse_early_scheduler(optimizer, len(parts))
    groups[:] = parts


def _name_all(groups: Iterable[dict[str, Any]], model: nn.Module) -> None:
    """Give each parameter the name that it has in the model."""
    names = {p: name for name, p in model.named_parameters()}
    found = False
    for group in groups:
        own = group.get("param_names") or [NO_NAME] * len(group["params"])
        known = [names.get(p) for p in group["params"]]
        found |= any(known)
        group["param_names"] = [a or b for a, b in zip(known, own, strict=True)]
    if not found:
        raise UsageError(
            "none of the optimizer's parameters is one of model: give the model that "
            "they were taken from"
        )


def _by_hand(group: Mapping[str, Any]) -> bool:
    """Whether the user says what a group is to hold, an axis too."""
    return "pattern" in group and (group["pattern"] is None or "axis" in group)


def _weights(groups: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    return {
        name: p
        for group in groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
        if name != NO_NAME
    }


def _choose(
    groups: list[dict[str, Any]],
    weights: Mapping[str, Tensor],
    model: nn.Module | None,
    pattern: NMPattern,
) -> Plan:
    """What of ``weights`` is to become N:M; what stays dense is told."""
    wishes = [
        (name, NMPattern.of(group["pattern"]))
        for group in groups
        if "pattern" in group and not _by_hand(group)
        for name in group["param_names"]
    ]
    selection = Selection(pattern=pattern, patterns=wishes)
    everything = weights
    if model is None:
        chosen = selection.choose([_described(*item) for item in weights.items()])
    else:
        chosen = choose_layers(model, selection)
        everything = dict(model.named_parameters())
    found = plan_of(chosen)
    plan = {name: spec for name, spec in found.items() if name in weights}
    refuse_adapters(everything, plan)
    by_hand = [group for group in groups if _by_hand(group)]
    sparse = _weights(group for group in by_hand if group["pattern"] is not None)
    excluded = _weights(group for group in by_hand if group["pattern"] is None)
    also = {
        name: "excluded" if name in excluded else NOT_GIVEN
        for name in found
        if name not in weights and name not in sparse
    }
    also |= {name: FROZEN for name in plan if not weights[name].requires_grad}
    tell(coverage_of(chosen, {*plan, *sparse}, also), by_name=model is None)
    return plan


def _described(name: str, p: Tensor) -> Description:
    return Description(name, str(p.dtype).removeprefix("torch."), tuple(p.shape))


def _parts(group: dict[str, Any], plan: Plan) -> Iterable[dict[str, Any]]:
    """A group as it is, where it was marked by hand, else by pattern and axis."""
    if _by_hand(group):
        return [group]
    parts: dict[NMSpec | None, dict[str, Any]] = {}
    plain = {key: value for key, value in group.items() if key != "pattern"}
    for name, p in zip(group["param_names"], group["params"], strict=True):
        layer = plan.get(name)
        part = parts.setdefault(layer, {**plain, "params": [], "param_names": []})
        part["params"].append(p)
        part["param_names"].append(name)
        if layer is not None:
            part.update(pattern=str(layer.pattern), axis=layer.axis)
    return parts.values()
