"""Soft thresholding against the worked groups, and its continuity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.optim.mask import nm_mask
from step_cli.recipes.soft_threshold import least_squares_scale, soft_threshold

PLAN = NMSpec(NMPattern(2, 4), 1)


def soft(*values: float) -> list[float]:
    return soft_threshold(torch.tensor([values], dtype=torch.float64), PLAN)[0].tolist()


def scale(*values: float) -> float:
    return float(least_squares_scale(torch.tensor([values]).double(), PLAN))


def test_the_worked_groups() -> None:
    assert soft(0.1, -0.4, 0.3, 0.9) == pytest.approx([0, -0.1, 0, 0.6])
    assert soft(1, -1, 0.5, 2) == pytest.approx([0, 0, 0, 1])
    assert soft(0.2, 0.5, 0.5, 0.9) == pytest.approx([0, 0, 0, 0.4])


def test_the_worked_scales() -> None:
    assert scale(0.1, -0.4, 0.3, 0.9) == pytest.approx(0.58 / 0.37)
    both = (0.1, -0.4, 0.3, 0.9, 1, -1, 0.5, 2)
    assert scale(*both) == pytest.approx(2.58 / 1.37)


def test_weights_of_one_magnitude_have_scale_1() -> None:
    assert scale(0.5, -0.5, 0.5, 0.5) == scale(0, 0, 0, 0) == 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("2:4", 1.483), ("1:2", 1.375), ("4:8", 1.565), ("1:4", 1.89), ("1:16", 3.15)],
)
def test_the_scale_of_gaussian_weights(pattern: str, expected: float) -> None:
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    plan = NMSpec(NMPattern.parse(pattern), 1)
    assert float(least_squares_scale(weight, plan)) == pytest.approx(expected, rel=0.01)


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, NMSpec]:
    m = draw(st.integers(1, 8))
    plan = NMSpec(NMPattern(draw(st.integers(1, m)), m), 1)
    sizes = st.floats(-4, 4) | st.sampled_from([0.0, 0.5, -0.5, 1.0])
    values = draw(st.lists(sizes, min_size=2 * m, max_size=2 * m))
    return torch.tensor([values], dtype=torch.float64), plan


@given(groups(), st.integers(0, 1000), st.floats(1e-6, 1))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_s_moves_at_most_twice_as_far_as_the_weights(
    case: tuple[Tensor, NMSpec], seed: int, size: float
) -> None:
    weight, plan = case
    generator = torch.Generator().manual_seed(seed)
    moved = torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 0.5
    moved *= size
    change = soft_threshold(weight + moved, plan) - soft_threshold(weight, plan)
    assert change.abs().max() <= 2 * moved.abs().max() + 1e-12


@given(groups())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_s_lies_within_the_hard_mask_and_scales(case: tuple[Tensor, NMSpec]) -> None:
    weight, plan = case
    found = soft_threshold(weight, plan)
    assert not found[~nm_mask(weight.abs(), plan.pattern, 1)].any()
    assert torch.allclose(soft_threshold(-3 * weight, plan), -3 * found)
    beta = least_squares_scale(weight, plan)
    assert beta >= 1 - 1e-12
    torch.testing.assert_close(least_squares_scale(-3 * weight, plan), beta)


def test_a_swap_of_order_moves_s_little_and_the_hard_mask_much() -> None:
    one = torch.tensor([[0.1, 0.5, 0.5001, 0.9]], dtype=torch.float64)
    other = torch.tensor([[0.1, 0.5001, 0.5, 0.9]], dtype=torch.float64)
    change = (soft_threshold(one, PLAN) - soft_threshold(other, PLAN)).abs().max()
    assert float(change) == pytest.approx(1e-4)
    hard = [w * nm_mask(w.abs(), "2:4", 1) for w in (one, other)]
    assert float((hard[0] - hard[1]).abs().max()) == pytest.approx(0.5001)


def test_n_equal_to_m_is_the_weight_bit_for_bit() -> None:
    weight = torch.randn(4, 8)
    plan = NMSpec(NMPattern(4, 4), 1)
    assert torch.equal(soft_threshold(weight, plan), weight)
    assert float(least_squares_scale(weight, plan)) == 1


def test_conv1d_groups_run_along_the_first_axis() -> None:
    weight = torch.randn(8, 6)
    flipped = soft_threshold(weight, NMSpec(NMPattern(2, 4), 0))
    assert torch.equal(flipped, soft_threshold(weight.t(), PLAN).t())
