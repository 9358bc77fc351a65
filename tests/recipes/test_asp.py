"""ASP: one mask for good, and which shapes have one."""

import itertools
from typing import Any

import pytest
import torch
from plans import plan_for
from small_training import same
from torch import nn

from step_cli.nm.pattern import NMPattern
from step_cli.nm.selection import Selection
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw

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
    masks, shown, dense = [], [], []
    for _ in range(8):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.current_phase.sparse:
            shown.append(model.weight.detach().clone())
            masks.append(model.weight != 0)
            dense.append(optimizer.state[model.weight]["dense"].clone())
    assert len(masks) == (8 if prune_step == 0 else 6)
    assert masks[0].view(-1, 4).sum(1).eq(2).all()
    assert all(same([mask], [masks[0]]) for mask in masks)
    assert all(torch.equal(s, d * masks[0]) for s, d in zip(shown, dense, strict=True))
    kept = [weights[masks[0]] for weights in dense]
    assert all((a != b).any() for a, b in itertools.pairwise(kept))  # it fine-tunes
    if prune_step == 0 and base == "momentum":  # nothing else moves what is pruned
        pruned = [weights[~masks[0]] for weights in dense]
        assert all(torch.equal(weights, pruned[0]) for weights in pruned)


# What ASP takes, by the table of its paper's code, and what we take. ASP asks for sizes
# that are multiples of 8 and 16, for its kernels; we ask for whole groups and leave the
# rest to the exporter, which says what a kernel takes.
ASP_TABLE: list[tuple[str, nn.Module, bool, bool]] = [
    ("stem 7x7 of 3 channels", nn.Conv2d(3, 64, 7), False, False),
    ("1x1 of 64 channels", nn.Conv2d(64, 64, 1), True, True),
    ("1000 classes of 2048", nn.Linear(2048, 1000), True, True),
    ("depthwise", nn.Conv2d(96, 96, 3, groups=96), False, False),
    ("10 classes of 512", nn.Linear(512, 10), False, True),
    ("2 classes of 768", nn.Linear(768, 2), False, True),
    ("norm", nn.LayerNorm(64), False, False),
    ("norm of channels", nn.BatchNorm2d(64), False, False),
    ("embedding", nn.Embedding(64, 32), False, False),
    ("attention", nn.MultiheadAttention(32, 4), True, True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "layer", "asp", "ours"), ASP_TABLE)
def test_which_layers_have_a_mask(
    name: str, layer: nn.Module, asp: bool, ours: bool, dtype: torch.dtype
) -> None:
    dense = nn.Linear(16, 16)  # without it, no layer at all would be an error
    model = nn.ModuleDict({"layer": layer, "other": dense}).to(dtype)
    plan = plan_for(model, Selection(pattern=NMPattern(2, 4)))
    taken = {key for key in plan if key.startswith("layer")}
    assert bool(taken) == ours, name
    assert ours or not asp  # whatever ASP takes, we take
    assert not any(key.endswith("bias") for key in plan)
    if isinstance(layer, nn.MultiheadAttention):
        assert taken == {"layer.in_proj_weight", "layer.out_proj.weight"}


def test_frozen_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = sparse_adamw(model, recipe="asp", lr=1e-2)
    for _ in range(2):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model[0].weight, before)
    assert model[1].weight.view(-1, 4).count_nonzero(1).eq(2).all()
