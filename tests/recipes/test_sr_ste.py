"""STE and SR-STE: the decay term and where it is added."""

import pytest
import torch
from small_training import build, masters, same, train, weights
from torch import nn

from step_cli.recipes.sparse_adamw import sparse
from step_cli.recipes.sr_ste import SRSTE


def test_a_decay_of_0_is_ste_bit_for_bit() -> None:
    found = []
    for recipe in ("ste", SRSTE(decay=0.0)):
        model, optimizer = build(recipe)
        train(model, optimizer, 8)
        found.append(weights(model) + masters(model, optimizer))
    assert same(*found)


def test_kept_weights_get_no_decay() -> None:
    dense = torch.tensor([[1.0, -0.2, 0.05, -3.0]])
    p = nn.Parameter(dense.clone())
    base = torch.optim.SGD([{"params": [p], "pattern": "2:4", "axis": 1}], lr=1.0)
    optimizer = sparse(base, SRSTE(decay=0.5))
    p.grad = torch.zeros(1, 4)
    optimizer.step()
    moved = optimizer.state[p]["dense"] - dense
    torch.testing.assert_close(moved, torch.tensor([[0.0, 0.1, -0.025, 0.0]]))


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_the_decay_does_not_depend_on_loss_scaling(scale: float) -> None:
    p = nn.Parameter(torch.tensor([[1.0, -0.2, 0.05, -3.0]]))
    base = torch.optim.SGD([{"params": [p], "pattern": "2:4", "axis": 1}], lr=1.0)
    optimizer = sparse(base, SRSTE(decay=2e-4))
    ((p * torch.tensor([[0.1, 0.2, 0.3, 0.4]])).sum() * scale).backward()
    assert p.grad is not None
    p.grad /= scale  # what a gradient scaler's unscale_ does, before step
    before = optimizer.state[p]["dense"].clone()
    optimizer.step()
    expected = torch.tensor([[0.1, 0.19996, 0.30001, 0.4]])
    moved = before - optimizer.state[p]["dense"]
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)
