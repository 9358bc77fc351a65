"""The counts of `verify-nm` against a loop over groups, for each dtype and axis."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.errors import InputError
from step_cli.nm import count as check
from step_cli.nm import groups
from step_cli.nm.count import TensorCounts, TensorToCheck, count_tensor, count_tensors
from step_cli.nm.dtypes import dtype_info
from step_cli.nm.groups import index_of
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.tensor_data import TensorData

FLOATS = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3",
    "float8_e3m4",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e4m3b11fnuz",
]


pytestmark = pytest.mark.usefixtures("loops")


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def as_numbers(array: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaN
        return array.astype(np.float64)


def to_check(
    array: np.ndarray, pattern: str, axis: int, exact: bool = False
) -> TensorToCheck:
    plan = NMSpec(NMPattern.parse(pattern), axis)
    return TensorToCheck(TensorData(array, array.dtype.name), plan, exact)


def slow_tally(
    array: np.ndarray, pattern: NMPattern, axis: int, exact: bool
) -> TensorCounts:
    """The contract, read aloud: one group and one weight after the other."""
    total, bad = 0, []
    nonzeros = 0
    sizes = [range(n) for n in array.shape]
    sizes[axis] = range(0, array.shape[axis], pattern.m)
    for index in itertools.product(*sizes):
        kept = 0
        for member in range(pattern.m):
            place = list(index)
            place[axis] += member
            value = float(array[tuple(place)])
            kept += value != 0  # NaN too: it is not zero
        total += 1
        nonzeros += kept
        if kept > pattern.n or (exact and kept != pattern.n):
            bad.append((int(np.ravel_multi_index(index, array.shape)), kept))
    wild = [i for i, v in enumerate(as_numbers(array).flat) if not np.isfinite(v)]
    return TensorCounts(
        groups=total,
        violations=len(bad),
        elements=array.size,
        nonzeros=nonzeros,
        violation=min(bad, default=None),
        nonfinite=len(wild),
        nonfinite_at=min(wild, default=None),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, NMPattern, int, bool]:
    m = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 16, 32]))
    n = draw(st.integers(1, m))
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] *= m
    dtype = numpy_dtype(draw(st.sampled_from(FLOATS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
    array = codes.view(dtype).copy()
    array[rng.random(array.size) < draw(st.sampled_from([0.0, 0.5, 0.9]))] = 0
    if draw(st.booleans()):
        array[~np.isfinite(as_numbers(array))] = 1
    return array.reshape(shape), NMPattern(n, m), axis, draw(st.booleans())


@given(cases())
@settings(max_examples=300)
def test_any_pattern_axis_and_dtype_equals_the_slow_loop(
    case: tuple[np.ndarray, NMPattern, int, bool],
) -> None:
    array, pattern, axis, exact = case
    found = count_tensor(
        TensorToCheck(TensorData(array, array.dtype.name), NMSpec(pattern, axis), exact)
    )
    assert found == slow_tally(array, pattern, axis, exact)


@given(cases())
@settings(max_examples=100)
def test_small_pieces_and_threads_change_nothing(
    case: tuple[np.ndarray, NMPattern, int, bool],
) -> None:
    array, pattern, axis, exact = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "PIECE_BYTES", 8)
        patch.setattr(check, "WORTH_A_THREAD", 0)
        patch.setattr(check, "TASK_BYTES", 16)
        tensors = [
            TensorToCheck(
                TensorData(array, array.dtype.name), NMSpec(pattern, axis), exact
            )
        ] * 3
        found = list(count_tensors(tensors))
    assert found == [slow_tally(array, pattern, axis, exact)] * 3


@pytest.mark.parametrize("m", [65, 128, 255, 256, 511, 1020, 1021])
@pytest.mark.parametrize("inner", [1, 2, 255, 256])
def test_large_groups_are_counted_exactly(m: int, inner: int) -> None:
    rng = np.random.default_rng(m)
    array = (rng.random((2, m, inner)) < 0.9).astype(np.float32)
    array[0] = 1  # a byte cannot hold the count of a full group of 256
    found = count_tensor(to_check(array, f"{m // 2}:{m}", 1))
    kept = (array != 0).sum(1)
    assert found.nonzeros == kept.sum()
    assert found.violations == (kept > m // 2).sum()
    assert found.violation == (0, m)


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_weight_too_many_is_found_in_each_dtype(dtype: str) -> None:
    array = np.zeros((64, 16), numpy_dtype(dtype))
    array[:, ::2] = 1
    assert count_tensor(to_check(array, "2:4", 1)).violations == 0
    array[63, 15] = 0.5
    found = count_tensor(to_check(array, "2:4", 1))
    assert (found.violations, found.violation) == (1, (63 * 16 + 12, 3))


@pytest.mark.parametrize("dtype", FLOATS[:8])
def test_minus_zero_is_zero_and_the_smallest_subnormal_is_not(dtype: str) -> None:
    bits = dtype_info(dtype)
    array = np.zeros((1, 4), bits.unsigned)
    array[0, :2] = 1  # the smallest subnormal
    array[0, 2] = bits.mask + 1  # the sign bit alone
    plan = NMSpec(NMPattern(1, 4), 1)
    assert count_tensor(TensorToCheck(TensorData(array, dtype), plan)).violation == (
        0,
        2,
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("place", [0, 37, 127])
def test_nan_and_infinity_are_counted_and_located(dtype: str, place: int) -> None:
    array = np.ones(128, numpy_dtype(dtype))
    assert count_tensor(to_check(array.reshape(8, 16), "4:4", 1)).nonfinite == 0
    array[place] = np.nan if "fn" in dtype else -np.inf
    found = count_tensor(to_check(array.reshape(8, 16), "4:4", 1))
    assert (found.nonfinite, found.nonfinite_at) == (1, place)


def test_the_zero_point_is_zero() -> None:
    codes = np.array([[3, 3, 1, 0], [3, 3, 3, -128]], np.int8)
    plan = NMSpec(NMPattern(1, 4), 1)
    found = count_tensor(
        TensorToCheck(TensorData(codes, "int8", zero=np.array(3, np.int8)), plan)
    )
    assert (found.nonzeros, found.violation, found.nonfinite) == (3, (0, 2), 0)


@pytest.mark.parametrize("zero_axis", [0, 1, 2])
def test_zero_points_may_differ_for_each_slice(zero_axis: int) -> None:
    rng = np.random.default_rng(zero_axis)
    codes = rng.integers(0, 3, (4, 8, 3), np.uint8)
    zero = rng.integers(0, 3, codes.shape[zero_axis], np.uint8)
    shape = [1, 1, 1]
    shape[zero_axis] = -1
    expected = (codes != zero.reshape(shape)).astype(np.float32)
    weights = TensorData(codes, "uint8", zero, zero_axis)
    found = count_tensor(TensorToCheck(weights, NMSpec(NMPattern(2, 4), 1)))
    assert found == count_tensor(to_check(expected, "2:4", 1))


def test_exact_wants_n_and_no_fewer() -> None:
    array = np.zeros((2, 4), np.float32)
    array[0, :2] = array[1, 0] = 1
    assert count_tensor(to_check(array, "2:4", 1)).violations == 0
    assert count_tensor(to_check(array, "2:4", 1, exact=True)).violation == (4, 1)


def test_a_group_of_more_than_255_is_counted_in_full() -> None:
    array = np.ones((2, 512), np.float16)
    assert count_tensor(to_check(array, "511:512", 1)).violation == (0, 512)
    assert count_tensor(to_check(array, "512:512", 1)).violations == 0


def test_data_that_is_not_contiguous_is_read_in_its_own_coordinates() -> None:
    array = np.zeros((16, 8), np.float32)
    array[::2] = 1
    assert count_tensor(to_check(array.T, "2:4", 1)).violations == 0
    array[15, 7] = 1
    assert count_tensor(to_check(array.T, "2:4", 1)).violation == (7 * 16 + 12, 3)


def test_a_position_becomes_an_index_of_the_tensor() -> None:
    assert index_of(29, (2, 8, 3)) == (1, 1, 2)


def test_a_dtype_without_a_zero_is_refused() -> None:
    with pytest.raises(InputError, match="float8_e8m0fnu"):
        count_tensor(
            TensorToCheck(
                TensorData(np.zeros((4, 4), np.uint8), "float8_e8m0fnu"), PLAN
            )
        )


PLAN = NMSpec(NMPattern(2, 4), 1)


def test_an_error_while_threads_run_ends_them() -> None:
    def broken_after_one() -> object:
        yield TensorToCheck(
            TensorData(np.ones((2048, 2048), np.float32), "float32"), PLAN
        )
        raise InputError("the file ended")

    with pytest.raises(InputError, match="the file ended"):
        list(count_tensors(broken_after_one()))  # type: ignore[arg-type]
