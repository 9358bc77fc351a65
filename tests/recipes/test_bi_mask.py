"""Bi-Mask: its backward mask and order of outputs, and what they do in training."""

import pytest
import torch
from small_training import build, train, weights
from torch import Tensor, nn

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.optim.mask import nm_mask
from step_cli.recipes.bi_mask import BiMask, backward_mask, best_permutation
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


def masked(shape: tuple[int, ...] = (16, 24)) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return weight * nm_mask(weight.abs(), "2:4", 1)


def mask_under(order: Tensor, sparse: Tensor) -> Tensor:
    return backward_mask(sparse, {"permutation": order}, PLAN)


def test_the_backward_mask_lies_within_the_forward_mask() -> None:
    sparse = masked()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    mask = mask_under(order, sparse)
    assert not mask[sparse == 0].any()
    groups = mask[order].view(4, 4, 24)
    assert groups.sum(1).le(2).all() and groups.sum(1).eq(2).any()


def test_the_identity_gives_the_column_mask_of_the_masked_weight() -> None:
    sparse = masked()
    mask = mask_under(torch.arange(16), sparse)
    assert torch.equal(mask, nm_mask(sparse.abs(), "2:4", 0) & (sparse != 0))


def test_convolutions_have_their_groups_over_outputs() -> None:
    sparse = masked((8, 4, 3, 3))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    mask = mask_under(order, sparse)
    assert mask[order].view(2, 4, 4, 3, 3).sum(1).le(2).all()


def test_conv1d_is_the_transpose_of_linear() -> None:
    sparse, order = masked(), torch.randperm(16)
    flipped = NMSpec(NMPattern(2, 4), 0)
    mask = backward_mask(sparse.t().contiguous(), {"permutation": order}, flipped)
    assert torch.equal(mask.t(), mask_under(order, sparse))


@pytest.mark.parametrize("seed", [0, 7])
def test_more_candidates_never_keep_less(seed: int) -> None:
    sparse = masked()
    orders = [best_permutation(sparse, PLAN, k, seed) for k in (1, 2, 5, 20, 50)]
    kept = [int(mask_under(order, sparse).sum()) for order in orders]
    assert kept == sorted(kept) and kept[0] < kept[-1]
    assert torch.equal(orders[-1].sort().values, torch.arange(16))
    again = best_permutation(sparse, PLAN, 50, seed)
    assert torch.equal(again, orders[-1])
