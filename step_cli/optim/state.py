"""The optimizer's state for each parameter: created whole, saved and loaded exactly.

Distributed checkpoints load by key and in place, so all keys exist from the start, and
no saved tensor may be one that the model saves too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from step_cli.errors import UsageError, few
from step_cli.nm.pattern import NMSpec
from step_cli.optim.recipe import Recipe
from step_cli.optim.shards import local, split_like
from step_cli.optim.weights import dense_copy, is_precise


def create_state(
    base: Optimizer, p: Tensor, group: dict[str, Any], own: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What is kept for one parameter.

    Args:
        base: Updates the dense weights; what it has created itself is kept.
        p: The parameter.
        group: Its group.
        own: What the recipe keeps of it.
    """
    state: dict[str, Any] = {**_in_full(base.state.get(p, {})), **own}
    if isinstance(base, torch.optim.Adam):
        state.update(_adam_state(p, group))
    # Adding to zeros is what SGD does at its first step, save when damped.
    sgd = isinstance(base, torch.optim.SGD)
    if sgd and group["momentum"] and not group["dampening"]:
        state["momentum_buffer"] = torch.zeros_like(dense_copy(p))
    if group.get("pattern") is not None or not is_precise(p):
        # In a dense phase fp32 weights are their own dense weights: no copy yet.
        state["dense"] = p.detach() if is_precise(p) else dense_copy(p)
    if group.get("pattern") is not None and not p.requires_grad:
        state["asleep"] = torch.ones(())  # until its first gradient
    return state


def recipe_state(recipe: Recipe, p: Tensor, spec: NMSpec | None) -> dict[str, Tensor]:
    """What a recipe keeps of one parameter, split over processes as that is."""
    if spec is None:
        return {}
    part = local(dense_copy(p))
    return {
        key: split_like(value, p) if value.shape == part.shape else value
        for key, value in recipe.inner_recipe.create_state(part, spec).items()
    }


def refuse_layers(refused: Mapping[str, UsageError]) -> None:
    """Name the parameters that cannot hold what they are to hold.

    Args:
        refused: What is wrong with each, by its name.

    Raises:
        UsageError: There is one.
    """
    if refused:
        first, *others = refused
        more = f"; refused too: {few(others)}" if others else ""
        raise UsageError(f"{first}: {refused[first]}{more}")


def _adam_state(p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """What ``torch.optim.AdamW`` would create at its first step, in fp32."""
    on_device = group["capturable"] or group["fused"]
    device = p.device if on_device else torch.device("cpu")
    dtype = p.dtype if p.dtype == torch.float64 else torch.float32
    zeros = {
        key: torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        for key in ("exp_avg", "exp_avg_sq")
    }
    counts = {
        key: torch.zeros((), dtype=torch.float32, device=device)
        for key in ("step", "variance_step")
    }
    return {**counts, **zeros}


def _in_full(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a base optimizer has created itself, in at least fp32 as the dense weights.

    What holds whole numbers, such as a count, stays as it is.
    """

    def floats(value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point()

    return {k: dense_copy(v) if floats(v) else v for k, v in state.items()}


def has_stepped(state: Any) -> bool:
    """Whether a base optimizer has learned something; some create state early."""
    if not isinstance(state, Mapping):
        return False  # of no single parameter
    return bool(state) and bool(state.get("step", 1))


def with_index(
    optimizer: Optimizer, saved_groups: list[dict[str, Any]]
) -> Iterator[tuple[Tensor, Any]]:
    """Each parameter, and the key under which a ``state_dict`` holds its state."""
    for group, saved in zip(optimizer.param_groups, saved_groups, strict=True):
        yield from zip(group["params"], saved["params"], strict=True)


def move_state(state: dict[str, Any], p: Tensor, group: Mapping[str, Any]) -> None:
    """Let the state of a parameter follow it to another device."""
    counts_too = group.get("capturable") or group.get("fused")
    for key, value in state.items():
        if isinstance(value, Tensor) and (value.dim() or counts_too):
            state[key] = value.to(p.device)
