"""Bi-Mask's backward mask and the search for an order of the outputs."""

import pytest
import torch
from torch import Tensor

from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.optim.mask import nm_mask
from step_cli.recipes.bi_mask_permutation import backward_mask, best_permutation

PLAN = NMSpec(NMPattern(2, 4), 1)


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
