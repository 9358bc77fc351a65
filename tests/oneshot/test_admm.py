"""ADMM's steps against the worked row, and the gradient of its penalty."""

import pytest
import torch

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.oneshot.admm import admm_gradient, admm_update
from step_cli.optim.mask import count_violations, nm_mask

ROW = torch.tensor([[0.9, 0.8, 0.1, -0.7]], dtype=torch.float64)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_two_rounds_of_the_worked_row() -> None:
    target, dual = admm_update(ROW, torch.zeros_like(ROW), "2:4", 1)
    torch.testing.assert_close(target, row(0.9, 0.8, 0, 0))
    torch.testing.assert_close(dual, row(0, 0, 0.1, -0.7))
    target, dual = admm_update(ROW, dual, "2:4", 1)
    torch.testing.assert_close(target, row(0.9, 0, 0, -1.4))
    torch.testing.assert_close(dual, row(0, 0.8, 0.2, 0))


@pytest.mark.parametrize(("pattern", "axis"), [("2:4", 1), ("1:4", 0), ("2:8", 1)])
def test_the_target_is_n_m_and_the_dual_is_what_is_left(
    pattern: str, axis: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, dual = torch.randn(2, 8, 8, generator=generator, dtype=torch.float64)
    target, after = admm_update(weight, dual, pattern, axis)
    assert count_violations(target, NMPattern.parse(pattern), axis) == 0
    torch.testing.assert_close(after, dual + weight - target)
    kept = nm_mask((weight + dual).abs(), pattern, axis)
    assert torch.equal(target != 0, kept) and after[kept].eq(0).all()


def test_a_weight_that_is_n_m_stays_at_rest() -> None:
    weight = row(0.9, 0, 0, -0.7)
    target, dual = admm_update(weight, torch.zeros_like(weight), "2:4", 1)
    assert torch.equal(target, weight) and dual.eq(0).all()
    assert admm_gradient(weight, target, dual, 3.0).eq(0).all()


def test_the_pull_is_the_gradient_of_the_penalty() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, dual = torch.randn(2, 4, 8, generator=generator, dtype=torch.float64)
    target, dual = admm_update(weight, dual, "2:4", 1)
    weight.requires_grad_()
    penalty = 0.3 / 2 * (weight - target + dual).square().sum()
    (expected,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(admm_gradient(weight, target, dual, 0.3), expected)


def test_bad_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="not a multiple of M=4"):
        admm_update(torch.ones(2, 6), torch.zeros(2, 6), "2:4", 1)
    with pytest.raises(NonFiniteError, match="NaN"):
        admm_update(torch.full((1, 4), torch.nan), torch.zeros(1, 4), "2:4", 1)
