"""The compiled loops against slow ones, and what happens where they are not built."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.nm import kernels
from step_cli.nm.dtypes import dtype_info
from step_cli.nm.mask import keep_highest
from step_cli.nm.pattern import NMPattern

SIZES = [1, 2, 5, 15, 16, 31, 32, 33, 64, 100]
PRUNED = ["float16", "bfloat16", "float32"]
COUNTED = [*PRUNED, "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int16", "uint32"]

pytestmark = pytest.mark.usefixtures("level")


@st.composite
def pieces(draw: st.DrawFn, dtypes: list[str]) -> tuple[np.ndarray, str]:
    """Raw bits of shape (X, M, B); coarse, so that zeros and equals are common."""
    dtype = draw(st.sampled_from(dtypes))
    m = draw(st.one_of(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), st.integers(1, 64)))
    b = draw(st.one_of(st.just(1), st.sampled_from(SIZES)))
    x = draw(st.sampled_from(SIZES)) if m * b < 1000 else draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = np.round(rng.standard_normal((x, m, b)) * draw(st.sampled_from([1, 3])))
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    if kind.kind == "u":
        values = np.abs(values)
    array = values.astype(kind)
    place = np.zeros(array.nbytes + 1, np.uint8)  # files have them at any address
    moved = place[draw(st.integers(0, 1)) :][: array.nbytes].view(kind)
    moved[:] = array.reshape(-1)
    return moved.reshape(x, m, b).view(dtype_info(dtype).unsigned), dtype


@given(pieces(COUNTED), st.data())
@settings(max_examples=400)
def test_counts_equal_those_of_a_comparison(
    piece: tuple[np.ndarray, str], data: st.DataObject
) -> None:
    codes, dtype = piece
    n, bits = data.draw(st.integers(1, codes.shape[1])), dtype_info(dtype)
    left = data.draw(st.integers(0, codes.shape[2] - 1))
    part = codes[:, :, left:]  # groups beside each other, not all of them
    each = (part & codes.dtype.type(bits.mask) != 0).sum(axis=1)
    found = kernels.count(part, n, bits)
    assert found is not None and found.nonfinite == 0
    assert found.nonzeros == each.sum()
    assert (found.over, found.under) == (each.max() > n, each.min() < n)


@pytest.mark.parametrize("dtype", [kind for kind in COUNTED if dtype_info(kind).limit])
@pytest.mark.parametrize("shape", [(100, 4, 1), (9, 4, 40), (50, 3, 1), (40, 4, 9)])
def test_one_infinity_is_seen_wherever_it_stands(
    dtype: str, shape: tuple[int, int, int]
) -> None:
    bits = dtype_info(dtype)
    limit, sign = bits.limit, 1 << (8 * bits.size_bytes - 1)
    assert limit is not None
    codes = np.zeros(shape, bits.unsigned)
    for at in np.ndindex(*shape):
        for value, seen in ((limit - 1, False), (limit, True), (limit | sign, True)):
            codes[at] = value
            found = kernels.count(codes, shape[1], bits)
            assert found is not None
            assert found.nonfinite == seen
            if dtype in PRUNED:
                out = np.empty_like(codes)
                done = kernels.prune(codes, out, 1, bits, dtype)
                assert (done is None) is seen
        codes[at] = 0


@given(pieces(PRUNED), st.data())
@settings(max_examples=400)
def test_pruned_is_what_the_mask_of_numpy_keeps(
    piece: tuple[np.ndarray, str], data: st.DataObject
) -> None:
    codes, dtype = piece
    m, bits = codes.shape[1], dtype_info(dtype)
    n = data.draw(st.integers(1, m))
    magnitude = codes & codes.dtype.type(bits.mask)
    keep = keep_highest(magnitude, NMPattern(n, m), 1) | (magnitude == 0)
    out = np.full_like(codes, 0x55)
    found = kernels.prune(codes, out, n, bits, dtype)
    assert found is not None
    assert np.array_equal(out, np.where(keep, codes, 0))
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    before, after = (
        float(np.abs(array.view(kind).astype(np.float64)).sum())
        for array in (codes, out)
    )
    assert found.changed == keep.size - np.count_nonzero(keep)
    assert found.nonzeros == np.count_nonzero(out & codes.dtype.type(bits.mask))
    assert found.before == pytest.approx(before, rel=1e-12)
    assert found.after == pytest.approx(after, rel=1e-12)


@pytest.mark.parametrize("dtype", PRUNED)
def test_sums_of_many_values_and_of_subnormal_ones(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    values = np.random.default_rng(0).standard_normal((1 << 16, 4, 1)) ** 3
    tiny = float(np.array(1, dtype_info(dtype).unsigned).view(kind))
    for scale in (1.0, tiny):
        array = (values * scale).astype(kind)
        codes = array.view(dtype_info(dtype).unsigned)
        found = kernels.prune(codes, np.empty_like(codes), 2, dtype_info(dtype), dtype)
        assert found is not None
        expected = np.abs(array.astype(np.float64)).sum()
        assert found.before == pytest.approx(expected, rel=1e-8)


def test_a_sum_beyond_float32_is_left_to_numpy() -> None:
    largest = np.full((8, 4, 64), 0x7F7F, np.uint16)  # bfloat16
    out = np.empty_like(largest)
    assert kernels.prune(largest, out, 2, dtype_info("bfloat16"), "bfloat16") is None


def test_cases_the_loops_are_not_made_for() -> None:
    wide = np.zeros((1, 65, 1), np.uint16)
    half, eight = dtype_info("float16"), dtype_info("float8_e4m3fnuz")
    assert kernels.count(wide, 2, half) is None
    assert kernels.prune(wide, wide.copy(), 2, half, "float16") is None
    assert kernels.count(np.zeros((1, 4, 1), np.uint8), 2, eight) is None
    double = np.zeros((1, 4, 1), np.uint64)
    assert kernels.count(double, 2, dtype_info("float64")) is None
    assert kernels.prune(double, double, 2, dtype_info("float64"), "float64") is None


@pytest.mark.parametrize("size", [1, 7, 64, 100, 4096, 4097])
def test_a_checksum_tells_a_flipped_bit_and_parts_in_another_order(size: int) -> None:
    data = np.random.default_rng(size).integers(1, 256, size, np.uint8)
    whole = kernels.checksum(data)
    shifted = np.concatenate([np.zeros(1, np.uint8), data])[1:]  # elsewhere in memory
    assert kernels.checksum(shifted) == whole
    for bit in range(0, 8 * size, max(1, size // 8)):
        data[bit // 8] ^= 1 << bit % 8
        assert kernels.checksum(data) != whole
        data[bit // 8] ^= 1 << bit % 8
    assert kernels.checksum(data) == whole
    for apart in (4, 8, 64, 128):
        if size >= 2 * apart:
            swapped = data.copy()
            swapped[:apart], swapped[apart : 2 * apart] = (
                data[apart : 2 * apart],
                data[:apart],
            )
            assert kernels.checksum(swapped) != whole


@pytest.mark.parametrize("half", [0, 1])
def test_a_checksum_tells_the_order_of_each_half_of_a_word(half: int) -> None:
    data = np.zeros((4, 16), np.uint32)
    data[:, half::2] = np.arange(32).reshape(4, 8)
    swapped = data[[1, 0, 2, 3]]
    assert kernels.checksum(data) != kernels.checksum(swapped)


def test_a_checksum_that_wraps_around_still_tells() -> None:
    data = np.full(16 << 20, 0xFF, np.uint8)
    whole = kernels.checksum(data)
    assert kernels.checksum(data[64:]) != whole
    data[9 << 20] ^= 0x80
    assert kernels.checksum(data) != whole
