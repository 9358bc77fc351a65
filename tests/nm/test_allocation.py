import ml_dtypes
import numpy as np
import pytest

from step_cli.nm import allocation
from step_cli.nm.allocation import allowed, kept_squares
from step_cli.nm.tensor_data import TensorData, values_of


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize(
    ("shape", "m", "axis"),
    [((6, 8), 4, 1), ((8, 6), 4, 0), ((3, 16, 2), 8, 1), ((4, 2, 6), 3, 2)],
)
def test_it_is_what_a_loop_over_groups_finds(
    dtype: str,
    shape: tuple[int, ...],
    m: int,
    axis: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allocation, "PIECE", 16)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.random.default_rng(0).standard_normal(shape).astype(kind)
    found = kept_squares(TensorData(array, dtype), m, axis)
    groups = np.moveaxis(array.astype(np.float64), axis, -1).reshape(-1, m)
    assert list(found) == allowed(m)
    for n, energy in found.items():
        expected = sum(sum(sorted(group**2)[-n:]) for group in groups)
        assert energy == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("zero_axis", [None, 0, 1])
def test_codes_count_from_their_zero_point(zero_axis: int | None) -> None:
    codes = np.random.default_rng(0).integers(0, 255, (4, 8)).astype(np.uint8)
    zero = np.array(7, np.uint8)
    if zero_axis is not None:
        zero = np.arange(codes.shape[zero_axis], dtype=np.uint8)
    weights = TensorData(codes, "uint8", zero, zero_axis)
    shape = [1, 1]
    if zero_axis is not None:
        shape[zero_axis] = -1
    expected = codes.astype(int) - zero.astype(int).reshape(shape)
    np.testing.assert_array_equal(values_of(weights, slice(0, 4)), expected)
    np.testing.assert_array_equal(values_of(weights, slice(1, 3)), expected[1:3])
    assert kept_squares(weights, 4, 1)[4] == (expected**2).sum()
