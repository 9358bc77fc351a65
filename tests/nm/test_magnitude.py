import math

import ml_dtypes
import numpy as np
import pytest

from step_cli.nm.magnitude import FLOATS, float_magnitude, magnitude_sum


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
