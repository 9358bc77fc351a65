"""What cannot work is refused in one line: at the start, on loading, in a step.

Each function raises a `UsageError` for what it refuses.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from step_cli.autoswitch.autoswitch import SwitchRule
from step_cli.errors import NonFiniteError, UsageError, nearest
from step_cli.nm.pattern import NMPattern
from step_cli.optim.adam import EpsMode
from step_cli.optim.recipe import Recipe, plain_number
from step_cli.optim.weights import Weight

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MODES = {"eps_mode": ("outside", "inside"), "v_correction": ("at_switch", "none")}
ON_META = "the optimizer was built on the meta device: build it after to_empty()"

Groups = Sequence[dict[str, Any]]


# ------------------------------------------------------------------ before state exists


def refuse_unknown(**chosen: str) -> None:
    """Refuse what is no mode of an option, which would pass for another."""
    for option, mode in chosen.items():
        if mode not in MODES[option]:
            raise UsageError(f"no {option} {mode!r}{nearest(mode, MODES[option])}")


def number_of_steps(value: Any, option: str = "total_steps") -> int:
    """A number of steps as a plain int, whatever kind of whole number it is.

    Raises:
        UsageError: It is none, or below 1.
    """
    steps = plain_number(value)
    if type(steps) is not int or steps < 1:
        raise UsageError(f"{option} {value!r} is not a number of steps")
    return steps


def refuse_early_scheduler(base: Optimizer, groups: int) -> None:
    """Refuse to split the groups of an optimizer that a scheduler counts already.

    Args:
        base: The optimizer.
        groups: How many groups it is to have.
    """
    # What torch's schedulers leave behind in an optimizer they are made for.
    counted = hasattr(base.step, "_wrapped_by_lr_sched")
    if counted and groups != len(base.param_groups):
        raise UsageError(
            "make the scheduler after sparse(), for the optimizer that it returns: "
            f"sparse weights get param groups of their own, {groups} in all, and the "
            f"scheduler has one rate for each of {len(base.param_groups)}"
        )


def check_group(group: dict[str, Any]) -> None:
    """Make the group axis of a sparse group non-negative; refuse what is none."""
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


def refuse_impossible(
    base: Optimizer,
    recipe: Recipe,
    switch: SwitchRule | None,
    eps_mode: EpsMode,
    total_steps: int | None,
) -> None:
    """Refuse a base optimizer, recipe and switch that cannot work together."""
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
    if recipe.inner_recipe.needs_total_steps and total_steps is None:
        raise UsageError(f"{name} follows a schedule: give total_steps")
    if frozen and switch is not None and switch.first_step < 1:
        raise UsageError("switch at step 0: the variance has seen no gradient yet")
    sparse = recipe.before.sparse or recipe.after.sparse
    if sparse and not any(group.get("pattern") for group in groups):
        raise UsageError("no parameter carries a pattern: no eligible layer found")


# ---------------------------------------------------------------------------- in a step


def is_exchanged(groups: Groups, state: Mapping[Tensor, Any]) -> bool:
    """Whether other parameters than those it was built with stand in the groups."""
    return any(
        "dense" not in state.get(p, {})
        for group in groups
        if group.get("pattern") is not None
        for p in group["params"]
    )


def check_parameters(groups: Groups, state: Mapping[Tensor, Any]) -> None:
    """Refuse parameters that the optimizer has no state for, or that have no values."""
    if any(p.is_meta for group in groups for p in group["params"]):
        raise UsageError(ON_META)
    if is_exchanged(groups, state):
        raise UsageError(
            "the optimizer's parameters were exchanged, as wrappers do that shard: "
            "build it after wrapping, or call adopt() before the first step if "
            "nothing is pruned yet"
        )


def refuse_lost(weights: Iterable[Weight]) -> None:
    """Refuse that the state of weights was cleared, if they are kept nowhere else."""
    lost = next((w for w in weights if w.apart), None)
    if lost is not None:
        raise UsageError(
            f"{lost.name}: its state was cleared, and the dense weights were in it: "
            "set moments to zero in place, or build a new optimizer, which begins with "
            "the pruned weights"
        )


def check_moved(w: Weight) -> None:
    """Refuse another shape or dtype of a parameter, and a state without values."""
    if w.param.shape != w.shape:
        raise UsageError(
            f"{w.name} of {list(w.shape)} became {list(w.param.shape)}: build the "
            "optimizer after resizing the model"
        )
    if w.param.dtype != w.dtype:
        raise UsageError(
            f"parameters of {w.dtype} became {w.param.dtype}: build the optimizer "
            "after changing the model's dtype"
        )
    if any(isinstance(v, Tensor) and v.is_meta for v in w.state.values()):
        raise UsageError(ON_META)


def check_weights(
    weights: Sequence[Weight],
    groups: Groups,
    view: Callable[[Weight], Tensor],
    *,
    wholly: bool,
) -> None:
    """Refuse weights that were changed, and gradients that leave most rows out.

    Args:
        weights: All of them; where the model was written with what it held, as by a
            wrapper that broadcasts, the version is taken over.
        groups: The optimizer's.
        view: What the model is to hold of a weight.
        wholly: Compare all values, also where torch has counted no write.
    """
    for w in weights:
        if w.apart and (wholly or w.version != w.present_version):
            if not holds_view(w, view):
                raise behind_our_back(w.name)
            w.version = w.present_version
        grad = w.param.grad
        needs_all_rows = w.spec is not None or "betas" in groups[w.group]
        if grad is not None and grad.layout is not torch.strided and needs_all_rows:
            raise UsageError(
                "a gradient is sparse, as Embedding(sparse=True) gives it: leave that "
                "off"
            )


def behind_our_back(name: str) -> UsageError:
    """What to do about a weight that something else has written to."""
    return UsageError(
        f"{name} was changed behind the optimizer's back: build the optimizer after "
        "loading and wrapping, and change weights inside "
        "dense_weights(write=True), which keeps the pruned ones; adopt() takes the "
        "model as it is, and what pruned weights had learned is lost"
    )


@torch.no_grad()
def holds_view(w: Weight, view: Callable[[Weight], Tensor]) -> bool:
    """Whether the model holds of a weight what the optimizer has put there."""
    return torch.equal(w.shown, view(w).to(w.shown.dtype))


def refuse_unwired(inner: Recipe, weights: Iterable[Weight]) -> None:
    """Refuse a recipe that changes the backward pass of layers it was not given."""
    if any(w.spec is not None and inner.backward(w.spec) for w in weights):
        raise UsageError(
            f"{type(inner).__name__} changes the backward pass of layers: "
            "give the module, or call optimizer.rewire(module)"
        )


@contextmanager
def overflow_as_error(step: int) -> Iterator[None]:
    """Name the step whose update has a factor that the weights' dtype cannot hold.

    Raises:
        NonFiniteError: In place of the RuntimeError by which torch reports it.
    """
    try:
        yield
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        raise NonFiniteError(
            f"step {step}: the update is beyond all bounds; lower the learning rate"
        ) from None
