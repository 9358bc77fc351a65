"""Bi-Mask in training: the gradient of the input, and when the order changes."""

import pytest
import torch
from small_training import build, train, weights
from torch import nn

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.recipes.bi_mask import BiMask
from step_cli.recipes.bi_mask_permutation import backward_mask
from step_cli.recipes.sparse_adamw import sparse_adamw

PLAN = NMSpec(NMPattern(2, 4), 1)


def test_the_input_gradient_uses_the_second_mask() -> None:
    model, optimizer = build(BiMask(candidates=3))
    weight = model[0].weight
    mask = backward_mask(weight.detach(), optimizer.state[weight], PLAN)
    x = torch.randn(5, 16, requires_grad=True)
    model[0](x).sum().backward()
    expected = torch.ones(5, 16) @ (weight.detach() * mask)
    torch.testing.assert_close(x.grad, expected)
    assert int(mask.sum()) < int((weight != 0).sum())


def test_convolutions_have_one_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1))
    optimizer = sparse_adamw(model, recipe=BiMask(candidates=3))
    weight = model[0].weight
    mask = backward_mask(weight.detach(), optimizer.state[weight], PLAN)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    model(x).sum().backward()
    twin = torch.randn(2, 4, 5, 5, requires_grad=True)
    nn.functional.conv2d(twin, weight.detach() * mask, padding=1).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


def test_the_order_of_outputs_is_searched_every_so_many_steps() -> None:
    model, optimizer = build(BiMask(candidates=5, refresh_steps=3))
    orders = []
    for _ in range(7):
        orders.append(optimizer.state[model[0].weight]["permutation"].tolist())
        train(model, optimizer, 1)
    assert orders[0] == orders[1] == orders[2] != orders[3] == orders[4] == orders[5]
    assert sorted(orders[0]) == list(range(16))


def test_the_seed_decides_the_orders() -> None:
    orders = []
    for seed in (0, 0, 1):
        model, optimizer = build(BiMask(candidates=2, seed=seed))
        train(model, optimizer, 2)
        orders.append((optimizer.state[model[0].weight]["permutation"], weights(model)))
    assert torch.equal(orders[0][1][0], orders[1][1][0])
    assert not torch.equal(orders[0][0], orders[2][0])


def test_outputs_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match="axis 0 of shape"):
        sparse_adamw(nn.Linear(16, 10), recipe="bi-mask")
