"""ASP: one mask for good, and which shapes have one."""

from typing import Any

import pytest
import torch
from small_training import same
from torch import nn

from step_cli.core.layers import plan_for
from step_cli.core.pattern import NMPattern
from step_cli.core.selection import Selection
from step_cli.errors import NothingSelectedError, StepError
from step_cli.optimizers import sparse

BASES: dict[str, Any] = {
    "momentum": lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9),
    "decay": lambda named: torch.optim.SGD(named, lr=0.1, weight_decay=0.1),
    "adamw": lambda named: torch.optim.AdamW(named, lr=0.03, weight_decay=0.1),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("prune_step", [0, 3])
def test_pruned_weights_stay_exactly_zero(base: str, prune_step: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 8)
    named = list(model.named_parameters())
    optimizer = sparse(BASES[base](named), "asp", switch=prune_step)
    masks, dense = [], []
    for _ in range(8):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.rules.sparse:
            masks.append(model.weight != 0)
            dense.append(optimizer.state[model.weight]["dense"].clone())
    assert len(masks) == (8 if prune_step == 0 else 6)
    assert masks[0].view(-1, 4).sum(1).eq(2).all()
    assert all(same([mask], [masks[0]]) for mask in masks)


# ASP asks for sizes that are multiples of 8 and 16, for its kernels; we ask for whole
# groups and leave the rest to the exporter, which says what a kernel takes.
@pytest.mark.parametrize(
    ("shape", "groups", "ours", "asp"),
    [
        ((64, 3, 7, 7), 1, False, False),
        ((64, 64, 1, 1), 1, True, True),
        ((96, 1, 3, 3), 96, False, False),
        ((1000, 2048), 1, True, True),
        ((10, 512), 1, True, False),
        ((2, 768), 1, True, False),
    ],
)
def test_which_shapes_have_groups(
    shape: tuple[int, ...], groups: int, ours: bool, asp: bool
) -> None:
    if len(shape) == 2:
        layer: nn.Module = nn.Linear(shape[1], shape[0], bias=False)
    else:
        layer = nn.Conv2d(shape[1] * groups, shape[0], shape[2:], groups=groups)
    try:
        chosen = bool(
            plan_for(nn.Sequential(layer), Selection(pattern=NMPattern(2, 4)))
        )
    except (NothingSelectedError, StepError):
        chosen = False
    assert chosen == ours
    assert (shape[0] % 8 == 0 and shape[1] % 16 == 0) == asp
