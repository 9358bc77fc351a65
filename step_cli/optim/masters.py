"""The dense weights an optimizer owns, beside or instead of the model's parameters.

A parameter of at least fp32 can be its own dense weight while nothing is pruned; one of
fewer bits never can, as its updates would be rounded away.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from step_cli.optim.shards import local, split_like


def is_master(p: Tensor) -> bool:
    """Whether a parameter is precise enough to be its own dense weight."""
    return p.dtype in (torch.float32, torch.float64)


def master_copy(p: Tensor) -> Tensor:
    """The parameter's values in at least fp32, in memory of their own."""
    return p.detach().clone() if is_master(p) else p.detach().float()


@contextmanager
def working_on(
    stand_ins: Mapping[Tensor, Tensor], base: Optimizer, hidden: Collection[str]
) -> Iterator[None]:
    """Let ``base`` update ``stand_ins``, plain tensors, in its parameters' place.

    The parameters themselves are not touched, so compiled graphs and distributed
    wrappers that hold them never see anything move.

    Args:
        stand_ins: For each parameter what is to be updated, with its gradient.
        base: Knows the parameters; its groups and state are as before on leaving.
        hidden: Keys of the state that the base must not see.
    """
    groups, state = base.param_groups, base.state
    everything = [p for group in groups for p in group["params"]]
    if not hidden and all(stand_ins.get(p) is p for p in everything):
        yield
        return
    seen: defaultdict[Tensor, Any] = defaultdict(dict)
    for p, stand_in in stand_ins.items():
        own = {key: value for key, value in state[p].items() if key not in hidden}
        seen[stand_in] = {key: _local(value) for key, value in own.items()}
    views = [
        {**group, "params": [stand_ins[p] for p in group["params"] if p in stand_ins]}
        for group in groups
    ]
    base.state, base.param_groups = seen, [view for view in views if view["params"]]
    try:
        yield
    finally:
        for group, view in zip(groups, views, strict=True):
            group.update({**view, "params": group["params"]})
        base.param_groups, base.state = groups, state
        for p, stand_in in stand_ins.items():
            _take_back(state[p], seen[stand_in], p)
            if stand_in is not p:
                stand_in.grad = None


def _local(value: Any) -> Any:
    return local(value) if isinstance(value, Tensor) else value


def _take_back(own: dict[str, Any], seen: dict[str, Any], p: Tensor) -> None:
    """Keep what the base optimizer created or replaced in its view of the state."""
    shape = local(p).shape
    for key, value in seen.items():
        if isinstance(value, Tensor) and key in own and _same(own[key], value):
            continue
        whole = isinstance(value, Tensor) and value.dim() and value.shape == shape
        own[key] = split_like(value, p) if whole else value


def _same(own: Any, seen: Tensor) -> bool:
    return isinstance(own, Tensor) and local(own).data_ptr() == seen.data_ptr()
