import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from step_cli.nm.mask import (
    FLOATS,
    LARGEST_COMPARED,
    float_magnitude,
    keep_highest,
    magnitude_sum,
)
from step_cli.nm.pattern import NMPattern
from step_cli.optim.mask import nm_mask


def all_values(dtype: str) -> np.ndarray:
    """Every finite value of an 8 or 16 bit type; a sample of the wider ones."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(0)
    size = kind.itemsize
    codes = (
        np.arange(2 ** (8 * size))
        if size < 4
        else rng.integers(0, 2 ** (8 * size), 5000, np.uint64)
    )
    values = codes.astype(f"u{size}").view(kind)
    with np.errstate(invalid="ignore"):
        return values[np.isfinite(values.astype(np.float64))]


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_magnitudes_are_ordered_as_their_bits(dtype: str) -> None:
    values = all_values(dtype)
    bits = float_magnitude(values.view(f"u{values.itemsize}"))
    order = np.argsort(bits, kind="stable")
    assert (np.diff(np.abs(values.astype(np.float64))[order]) >= 0).all()


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_the_sum_is_that_of_the_values(dtype: str) -> None:
    values = all_values(dtype)
    if dtype == "float64":
        values = values[np.abs(values) < 1e290]
    expected = math.fsum(abs(value) for value in values.astype(np.float64).tolist())
    bits = float_magnitude(values.view(f"u{values.itemsize}"))
    assert magnitude_sum(bits, dtype) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_random_values_and_the_largest_ones_sum_up(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    drawn = np.random.default_rng(0).standard_normal(5000).astype(kind)
    for values in (drawn, np.full(1500, ml_dtypes.finfo(kind).max)):
        expected = math.fsum(np.abs(values.astype(np.float64)).tolist())
        bits = float_magnitude(values.view(np.uint16))
        found = magnitude_sum(bits, dtype)
        assert found == pytest.approx(expected, rel=1e-7)


def slow_mask(scores: np.ndarray, n: int, m: int, axis: int) -> np.ndarray:
    """Sort each group in Python; equal scores stay in the order of their index."""
    keep = np.zeros(scores.shape, bool)
    rows, kept = np.moveaxis(scores, axis, -1), np.moveaxis(keep, axis, -1)
    for row in np.ndindex(*rows.shape[:-1]):
        for start in range(0, rows.shape[-1], m):
            group = rows[row][start : start + m].tolist()
            order = sorted(range(m), key=lambda i: (-group[i], i))
            for i in order[:n]:
                kept[(*row, start + i)] = True
    return keep


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, int, int, int]:
    m = draw(st.sampled_from([2, 3, 4, 5, 8, 16]))
    n = draw(st.integers(1, m))
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] *= m
    dtype = draw(st.sampled_from(["u1", "u2", "u4", "u8"]))
    highest = draw(st.sampled_from([1, 3, np.iinfo(dtype).max]))  # ties are many
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, highest, shape, dtype, endpoint=True)
    return scores, n, m, axis


@given(cases())
def test_it_keeps_what_sorting_each_group_keeps(
    case: tuple[np.ndarray, int, int, int],
) -> None:
    scores, n, m, axis = case
    found = keep_highest(scores, NMPattern(n, m), axis)
    np.testing.assert_array_equal(found, slow_mask(scores, n, m, axis))


@pytest.mark.parametrize("m", [LARGEST_COMPARED, LARGEST_COMPARED + 1, 300])
def test_wide_groups_keep_the_same_by_sorting(m: int) -> None:
    scores = np.random.default_rng(m).integers(0, 9, (2, 2 * m), np.uint16)
    for n in (1, m // 2, m - 1):
        found = keep_highest(scores, NMPattern(n, m), 1)
        np.testing.assert_array_equal(found, slow_mask(scores, n, m, 1))


@pytest.mark.parametrize("axis", [0, 1])
def test_it_keeps_what_the_torch_mask_keeps(axis: int) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    weight = (weight * 2).round() / 2  # ties
    scores = weight.abs().numpy().view(np.uint32)
    for n, m in ((2, 4), (1, 8), (4, 16)):
        theirs = nm_mask(weight.abs(), NMPattern(n, m), axis)
        found = keep_highest(scores, NMPattern(n, m), axis)
        np.testing.assert_array_equal(found, theirs.numpy())


def test_equal_scores_keep_the_lower_indices() -> None:
    scores = np.full((3, 8), 7, np.uint16)
    keep = keep_highest(scores, NMPattern(2, 4), 1)
    np.testing.assert_array_equal(keep, [[True, True, False, False] * 2] * 3)


def test_a_dense_pattern_keeps_all() -> None:
    assert keep_highest(np.zeros((3, 4), np.uint8), NMPattern(4, 4), 1).all()
