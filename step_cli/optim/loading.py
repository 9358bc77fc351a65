"""A saved state: whose it is, which of its parameters is which, what is taken of it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from step_cli.errors import UsageError
from step_cli.optim.by_name import in_order_of, spec_text
from step_cli.optim.recipe import Recipe
from step_cli.optim.shards import ShardSum, local
from step_cli.optim.weights import Weight, names_of, spec_of

Groups = Sequence[dict[str, Any]]


def judged(
    state_dict: Mapping[str, Any],
    mine: Groups,
    state: Mapping[Tensor, Mapping[str, Any]],
    recipe: Recipe,
) -> list[dict[str, Any]]:
    """The groups of a saved state, in the order of those of an optimizer.

    Args:
        state_dict: The saved state.
        mine: The groups of the optimizer that is to go on.
        state: What it keeps of each parameter.
        recipe: Its recipe.

    Raises:
        UsageError: It is of something else, or damaged.
    """
    _refuse_foreign(state_dict.get("param_groups", []), recipe)
    groups = in_order_of(mine, state_dict["param_groups"])
    _refuse_other_groups(mine, groups)
    members = [p for group in mine for p in group["params"]]
    indices = [index for group in groups for index in group["params"]]
    for p, index, name in zip(members, indices, names_of(mine), strict=True):
        saved = saved_of(p, index, state_dict["state"], state[p])
        _check_saved(state[p], saved, index, name)
    return groups


def _refuse_foreign(saved: Groups, recipe: Recipe) -> None:
    """Refuse the groups of a state that was saved by something else.

    Args:
        saved: Those of the state.
        recipe: The recipe of the optimizer that is to go on.
    """
    if not saved or "switch_reason" not in saved[0]:
        raise UsageError(
            "the state is not of this optimizer: it knows no phase; load the model's "
            "weights and begin anew, or dense with the recipe 'dense'"
        )
    theirs, ours = saved[0].get("recipe"), recipe.name
    if theirs not in (None, ours):
        raise UsageError(
            f"the state was saved by {theirs}, this optimizer is for {ours}: load the "
            "model's weights and begin anew"
        )


def _refuse_other_groups(mine: Groups, saved: Groups) -> None:
    """Refuse groups of another size, pattern or axis, place by place."""
    there, here = ([len(group["params"]) for group in each] for each in (saved, mine))
    if there != here:
        raise UsageError(
            f"the state is of groups of {there} parameters, these are of {here}"
        )
    for group, other in zip(mine, saved, strict=True):
        if spec_of(group) != spec_of(other):
            raise UsageError(
                f"the state was saved for {spec_text(other)}, this optimizer is for "
                f"{spec_text(group)}"
            )


def _check_saved(
    own: Mapping[str, Any], saved: Mapping[str, Any], index: object, name: str
) -> None:
    """Refuse a saved state that lacks something, or is of another shape."""
    for key, value in own.items():
        if key == "asleep":
            continue  # it may have been trainable where it was saved
        if key not in saved:
            raise UsageError(f"{name}: the state lacks {key!r} of parameter {index}")
        if isinstance(value, Tensor) and value.shape != saved[key].shape:
            shapes = f"{list(saved[key].shape)}, not {list(value.shape)}"
            raise UsageError(
                f"{name}: {key!r} of parameter {index} in the state is {shapes}"
            )


def belongs(
    weights: Sequence[Weight],
    joined: Mapping[Tensor, Tensor],
    view: Callable[[Weight], Tensor],
    present: Mapping[Tensor, Mapping[str, Any]],
    built: Callable[[Weight], Tensor | None],
) -> bool:
    """Whether the model holds what a state that was loaded gives.

    It need not where no step was taken and the optimizer had these very dense weights,
    as a wrapper of optimizers loads into one what it holds, after it has wrapped the
    model: then the model was changed, and the next step says so.

    Args:
        weights: All of them, with the state that was loaded.
        joined: The state's dense weights of parameters that hold their own.
        view: What the model is to hold of a weight.
        present: The state that there was before; none once steps were taken.
        built: What the model held of a weight until building the optimizer pruned it.
            If it is what the state gives, it is written into the model again.

    Raises:
        UsageError: It holds something else.
    """
    differ, first, sure = ShardSum(1), None, True
    again: list[tuple[Tensor, Tensor]] = []
    for w in weights:
        if w.param.is_meta or not (w.apart or w.param in joined):
            continue
        given = view(w) if w.apart else local(joined[w.param])
        same = torch.equal(w.shown, given.to(w.shown.dtype))
        held = None if same else built(w)
        if held is not None and torch.equal(held.to(w.shown), given.to(w.shown)):
            again.append((w.shown, given))
            continue
        if not same and w.apart and w.param in present:
            own = local(present[w.param]["dense"]).to(w.dense.device)
            sure, same = False, torch.equal(w.dense, own)
        differ.beside(w.param).add_(0 if same else 1)
        first = first or (None if same else w.name)
    if float(differ.total()):  # by all processes, each of which may hold a part
        raise UsageError(
            f"{first or 'a weight on another process'}: the model does not hold what "
            "the state's dense weights give, so the model file and the optimizer file "
            "do not belong together, or the model's was not loaded: load it first"
        )
    for shown, given in again:
        shown.copy_(given)
    return sure


def loaded_groups(
    mine: list[dict[str, Any]], saved: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The groups of a saved state, with the parameters and names of ``mine``."""
    groups = []
    for group, other in zip(mine, saved, strict=True):
        options = {key: value for key, value in other.items() if key != "params"}
        made: dict[str, Any] = {**copy.deepcopy(options), "params": group["params"]}
        if "param_names" in group:
            made["param_names"] = group["param_names"]
        groups.append(made)
    return groups


def saved_of(
    p: Tensor, index: Any, states: Mapping[Any, Any], own: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What is saved of a parameter.

    Distributed checkpoints leave frozen ones out, and have loaded their state in place.
    """
    found: Mapping[str, Any] = states.get(index, {})
    return found if found or p.requires_grad else own


def restored(
    p: Tensor, saved: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """The saved state of ``p``, bit for bit, in memory of its own.

    The base class would cast every tensor to the parameter's dtype: counts and masks
    too.

    Args:
        p: The parameter.
        saved: What is saved of it.
        own: What there is of it now, which tells where counts are kept.
    """
    return {key: _placed(value, p, own.get(key)) for key, value in saved.items()}


def _placed(value: Any, p: Tensor, own: Any) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if value.dim():
        return value.detach().to(p.device, copy=True)
    # Counts of steps stay where they were, often on the host.
    kept = isinstance(own, Tensor)
    return value.detach().to(own.device if kept else value.device, copy=True)
