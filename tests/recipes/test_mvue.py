"""MVUE sampling: worked chances, exact expectation over the draw, sparsity."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.recipes.mvue import approximate_mvue, keep_chances, mvue, pair_chances

Moments = tuple[Tensor, float]


def chances(values: tuple[float, ...], n: int) -> list[float]:
    groups = torch.tensor(values, dtype=torch.float64).abs().view(1, -1, 1)
    return keep_chances(groups, n).flatten().tolist()


def exactly(values: Tensor, n: int) -> Moments:
    """Expectation and summed variance, integrated over the draw.

    The outcome only changes where the draw meets an end of an interval.
    """
    m = values.numel()
    ends = keep_chances(values.abs().view(1, m, 1), n).flatten().cumsum(0)
    cuts = sorted({0.0, 1.0, *(float(end % 1) for end in ends)})
    mean, square = torch.zeros(m, dtype=torch.float64), 0.0
    for low, high in itertools.pairwise(cuts):
        draw = torch.tensor([(low + high) / 2], dtype=torch.float64)
        sample = mvue(values.view(1, m), NMPattern(n, m), 1, draw).flatten()
        assert int(sample.count_nonzero()) <= n
        mean += (high - low) * sample
        square += (high - low) * float(sample.square().sum())
    return mean, square - float(values.square().sum())


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, int]:
    m = draw(st.integers(2, 8))
    n = draw(st.integers(1, m - 1))
    sizes = st.sampled_from([0.0, 1e-6, 0.5, 1.0, 3.0, 1e6]) | st.floats(-10, 10)
    values = draw(st.lists(sizes, min_size=m, max_size=m))
    return torch.tensor(values, dtype=torch.float64), n


def test_one_of_two_keeps_in_proportion() -> None:
    assert chances((3, 1), 1) == pytest.approx([0.75, 0.25])
    mean, variance = exactly(torch.tensor([3.0, 1.0], dtype=torch.float64), 1)
    assert mean.tolist() == pytest.approx([3, 1])
    assert variance == pytest.approx(6)
    low = mvue(torch.tensor([[3.0, -1.0]]), NMPattern(1, 2), 1, torch.tensor([0.7]))
    high = mvue(torch.tensor([[3.0, -1.0]]), NMPattern(1, 2), 1, torch.tensor([0.8]))
    assert low.tolist() == [[4, 0]] and high.tolist() == [[0, -4]]


@pytest.mark.parametrize(
    ("values", "expected", "variance"),
    [
        ((1, 2, 3, 4), (0.2, 0.4, 0.6, 0.8), 20),
        ((1, 1, 1, 9), (1 / 3, 1 / 3, 1 / 3, 1), 6),
    ],
)
def test_two_of_four_has_the_worked_chances_and_variance(
    values: tuple[float, ...], expected: tuple[float, ...], variance: float
) -> None:
    assert chances(values, 2) == pytest.approx(expected)
    mean, found = exactly(torch.tensor(values, dtype=torch.float64), 2)
    assert mean.tolist() == pytest.approx(values)
    assert found == pytest.approx(variance)


@given(groups())
@settings(max_examples=150)
def test_the_expectation_is_the_value(case: tuple[Tensor, int]) -> None:
    values, n = case
    mean, variance = exactly(values, n)
    scale = max(1.0, float(values.abs().max()))
    assert (mean - values).abs().max() <= 1e-6 * scale
    assert variance >= -1e-6 * scale**2


@given(groups())
@settings(max_examples=100)
def test_chances_are_chances_and_use_the_whole_budget(case: tuple[Tensor, int]) -> None:
    values, n = case
    found = torch.tensor(chances(tuple(values.tolist()), n), dtype=torch.float64)
    assert ((found >= 0) & (found <= 1)).all()
    assert float(found.sum()) == pytest.approx(min(n, int(values.count_nonzero())))


@pytest.mark.parametrize(
    ("values", "n", "expected"),
    [
        ((0.0, 0.5, 2e-309), 2, (0, 1, 1)),
        ((1e-6, 1e-6, 1.0, 2e-309, 2e-309), 4, (1, 1, 1, 0.5, 0.5)),
        ((1e300, 1e-300, 1e-300), 2, (1, 0.5, 0.5)),
    ],
)
def test_values_far_below_the_others_have_their_chances(
    values: tuple[float, ...], n: int, expected: tuple[float, ...]
) -> None:
    assert chances(values, n) == pytest.approx(expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_at_most_n_of_a_group_are_not_zero(axis: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(64, 64)
    for pattern in (NMPattern(2, 4), NMPattern(1, 4), NMPattern(5, 16)):
        sample = mvue(values, pattern, axis)
        groups = sample.movedim(axis, 1).reshape(-1, pattern.m)
        assert groups.count_nonzero(1).eq(pattern.n).all()
        assert torch.equal(sample.sign() * values.sign(), (sample != 0).float())


def test_many_samples_come_near_the_values() -> None:
    torch.manual_seed(0)
    values = torch.randn(8, 16)
    mean = torch.stack([mvue(values, NMPattern(2, 4), 1) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, values, atol=0.15, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zero_groups_stay_zero_and_types_stay(dtype: torch.dtype) -> None:
    sample = mvue(torch.zeros(3, 8, dtype=dtype), NMPattern(2, 4), 1)
    assert sample.dtype == dtype and not sample.any()
    few = torch.tensor([[0, 7, 0, 0]], dtype=dtype)
    assert torch.equal(mvue(few, NMPattern(2, 4), 1), few)


def test_numbers_of_any_size_stay_finite() -> None:
    values = torch.tensor([[1e38, 1e-38, 3e38, 0], [1e-45, 0, 1e-45, 1e-45]])
    for draw in (0.0, 0.3, 0.999999):
        sample = mvue(values, NMPattern(2, 4), 1, torch.full((2,), draw))
        assert sample.isfinite().all()


def test_a_pattern_that_keeps_all_changes_nothing() -> None:
    values = torch.randn(2, 4)
    assert mvue(values, NMPattern(4, 4), 1) is values


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="not a multiple"):
        mvue(torch.zeros(2, 6), NMPattern(2, 4), 1)


@pytest.mark.parametrize(
    ("values", "expected", "variance"),
    [
        ((1, 2, 3, 4), (0.234524, 0.441270, 0.608333, 0.715873), 20.4736),
        ((1, 1, 1, 9), (0.348485, 0.348485, 0.348485, 0.954545), 9.466),
    ],
)
def test_the_approximation_has_the_worked_chances(
    values: tuple[float, ...], expected: tuple[float, ...], variance: float
) -> None:
    size = torch.tensor(values, dtype=torch.float64)
    found = pair_chances(size)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert float((size**2 * (1 / found - 1)).sum()) == pytest.approx(variance, abs=1e-3)


def test_the_approximation_is_unbiased_and_holds_the_pattern() -> None:
    # A fine grid over both draws stands for the integral.
    grid = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    draws = torch.cartesian_prod(grid, grid).t()
    values = torch.tensor([1.0, -2, 3, 4], dtype=torch.float64).repeat(40000, 1)
    sample = approximate_mvue(values, 1, draws)
    assert sample.count_nonzero(1).eq(2).all()
    torch.testing.assert_close(sample.mean(0), values[0], atol=2e-2, rtol=0)


def test_the_approximation_stays_finite() -> None:
    values = torch.tensor([[0.0, 0, 0, 0], [1e30, 0, 0, 0], [1, 1e-20, 0, 1e10]])
    for seed in range(20):
        torch.manual_seed(seed)
        sample = approximate_mvue(values, 1)
        assert sample.isfinite().all() and not sample[0].any()
