"""The optimizer's state for each parameter: created whole, saved and loaded exactly.

Distributed checkpoints load by key and in place, so all keys exist from the start, and
no saved tensor may be one that the model saves too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from step_cli.errors import UsageError
from step_cli.optim.adam import create_adam_state
from step_cli.optim.masters import is_master, master_copy


def create_state(
    base: Optimizer,
    p: Tensor,
    group: dict[str, Any],
    memory: Mapping[str, Tensor],
    *,
    sparse: bool,
) -> dict[str, Any]:
    """What is kept for one parameter.

    Args:
        base: Updates the dense weights.
        p: The parameter.
        group: Its group.
        memory: What the recipe keeps of it.
        sparse: It is to become N:M.
    """
    state: dict[str, Any] = dict(memory)
    if isinstance(base, torch.optim.Adam):
        create_adam_state(state, p, group)
    # Adding to zeros is what SGD does at its first step, save when damped.
    sgd = isinstance(base, torch.optim.SGD)
    if sgd and group["momentum"] and not group["dampening"]:
        state["momentum_buffer"] = torch.zeros_like(master_copy(p))
    if sparse or not is_master(p):
        # In a dense phase fp32 weights are their own master: no copy yet.
        state["dense"] = p.detach() if is_master(p) else master_copy(p)
    return state


def has_stepped(state: Mapping[str, Any]) -> bool:
    """Whether a base optimizer has learned something; some create state early."""
    return bool(state) and bool(state.get("step", 1))


def in_full(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a base optimizer has created itself, in at least fp32 as the dense weights.

    Counts of steps stay as they are.
    """
    return {
        key: master_copy(value) if isinstance(value, Tensor) and value.dim() else value
        for key, value in state.items()
    }


def with_index(
    optimizer: Optimizer, saved_groups: list[dict[str, Any]]
) -> Iterator[tuple[Tensor, Any]]:
    """Each parameter, and the key under which a ``state_dict`` holds its state."""
    for group, saved in zip(optimizer.param_groups, saved_groups, strict=True):
        yield from zip(group["params"], saved["params"], strict=True)


def check_saved(
    own: Mapping[str, Any], saved: Mapping[str, Any], index: object
) -> None:
    """Refuse a saved state that lacks something, or is of another shape.

    Raises:
        UsageError: It does.
    """
    for key, value in own.items():
        if key not in saved:
            raise UsageError(f"the state lacks {key!r} of parameter {index}")
        if isinstance(value, Tensor) and value.shape != saved[key].shape:
            shapes = f"{list(saved[key].shape)}, not {list(value.shape)}"
            raise UsageError(f"{key!r} of parameter {index} in the state is {shapes}")


def restored(p: Tensor, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The saved state of ``p``, bit for bit, in memory of its own.

    The base class would cast every tensor to the parameter's dtype: counts and masks
    too.
    """
    return {
        key: _on_device(value, p) if isinstance(value, Tensor) else value
        for key, value in saved.items()
    }


def _on_device(value: Tensor, p: Tensor) -> Tensor:
    # Counts of steps stay where the base class has put them: often on the host.
    if not value.dim():
        return value.detach().clone()
    return value.detach().to(p.device, copy=True)
