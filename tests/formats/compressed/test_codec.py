import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.formats.compressed.codec import (
    BadPositionsError,
    Layout,
    decode,
    kept_values,
    pack_bits,
    packed_positions,
    unpack_bits,
)
from step_cli.nm.pattern import NMPattern, NMSpec

DTYPES = [
    np.dtype(kind)
    for kind in (
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2fnuz,
        np.int8,
    )
]
Array = npt.NDArray[np.generic]


def layout_of(shape: tuple[int, ...], pattern: str, axis: int) -> Layout:
    return Layout(shape, NMSpec(NMPattern.parse(pattern), axis))


def parts_of(array: Array, layout: Layout) -> tuple[Array, npt.NDArray[np.uint8]]:
    values = np.concatenate([chunk for chunk, _ in kept_values(array, layout)])
    packed = np.concatenate(list(packed_positions(array, layout)))
    return values, packed


def raw(array: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def slow_parts(array: Array, layout: Layout) -> tuple[list[bytes], list[int]]:
    """Kept values and positions by a loop over groups: the format, read literally."""
    n, m = layout.spec.pattern.n, layout.spec.pattern.m
    groups = array.reshape(-1, m, layout.behind)
    values, positions = [], []
    for x in range(len(groups)):
        for b in range(layout.behind):
            group = groups[x, :, b]
            kept = [i for i in range(m) if float(group[i]) != 0]
            kept += [i for i in range(m) if float(group[i]) == 0][: n - len(kept)]
            positions += sorted(kept)
            values += [group[i].tobytes() for i in sorted(kept)]
    return values, positions


@st.composite
def sparse_tensors(draw: st.DrawFn) -> tuple[Array, Layout]:
    """A tensor of any dtype, N:M, rank and axis that holds its pattern."""
    m = draw(st.integers(2, 17))
    n = draw(st.integers(1, m - 1))
    rank = draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank - 1))
    shape = [draw(st.integers(1, 5)) for _ in range(rank)]
    shape[axis] = m * draw(st.integers(1, 4))
    layout = layout_of(tuple(shape), f"{n}:{m}", axis)
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank_in_group = rng.random((layout.groups, m)).argsort(axis=1)
    keep = rank_in_group < rng.integers(0, n + 1, (layout.groups, 1))
    keep = keep.reshape(-1, layout.behind, m).swapaxes(1, 2).reshape(shape)
    # Bits, not numbers: NaN, subnormals and infinities must survive as well.
    # Odd ones, as 0x80 alone would be -0.0, which may be dropped.
    bits = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8) | 1
    array = bits.view(dtype).reshape(shape)
    return np.where(keep, array, np.zeros((), dtype)), layout


@settings(max_examples=150)
@given(sparse_tensors())
def test_round_trip_is_bit_exact_and_matches_the_loop(
    case: tuple[Array, Layout],
) -> None:
    array, layout = case
    values, packed = parts_of(array, layout)
    assert values.size == layout.slots
    assert packed.size == layout.position_bytes
    slow_values, slow_positions = slow_parts(array, layout)
    assert raw(values).tobytes() == b"".join(slow_values)
    found = unpack_bits(packed, layout.slots, layout.bits)
    assert found.tolist() == slow_positions
    assert np.array_equal(raw(decode(values, packed, layout)), raw(array))


def test_two_of_four_is_packed_as_the_format_says() -> None:
    array = np.array([[0, 5, 0, 7, 8, 0, 0, 0], [0, 0, 3, 4, 0, 0, 0, 0]], np.float16)
    values, packed = parts_of(array, layout_of((2, 8), "2:4", 1))
    assert values.tolist() == [5, 7, 8, 0, 3, 4, 0, 0]
    # Positions (1,3), (0,1), (2,3), (0,1); lower first, from the low bits.
    assert packed.tolist() == [0b0100_1101, 0b0100_1110]


def test_groups_run_along_the_axis_in_x_b_order() -> None:
    array = np.array([[0, 1], [2, 0], [0, 3], [4, 0]], np.float32)  # [in, out], axis 0
    values, packed = parts_of(array, layout_of((4, 2), "2:4", 0))
    assert values.tolist() == [2, 4, 1, 3]  # column 0, then column 1
    assert unpack_bits(packed, 4, 2).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("axis", [0, 1])
def test_many_chunks_join_without_a_seam(axis: int) -> None:
    rng = np.random.default_rng(0)
    shape = (1536, 768)
    layout = layout_of(shape, "1:3", axis)
    groups = np.zeros((layout.groups, 3), np.float32)
    groups[np.arange(layout.groups), rng.integers(0, 3, layout.groups)] = 1.5
    view = groups.reshape(-1, layout.behind, 3).swapaxes(1, 2)
    array = np.ascontiguousarray(view).reshape(shape)
    assert sum(1 for _ in kept_values(array, layout)) > 1
    values, packed = parts_of(array, layout)
    assert np.array_equal(decode(values, packed, layout), array)


def test_dropped_negative_zeros_are_counted_where_the_type_has_them() -> None:
    layout = layout_of((1, 4), "1:4", 1)

    def dropped(array: Array) -> int:
        return sum(count for _, count in kept_values(array, layout))

    assert dropped(np.array([[0.0, 3, -0.0, -0.0]], np.float16)) == 2
    assert dropped(np.array([[-0.0, 0, -0.0, 0.0]], np.float16)) == 1  # one fills
    bits = np.array([[0x00, 0x80, 0x00, 0x00]], np.uint8)
    assert dropped(bits.view(ml_dtypes.float8_e4m3fn)) == 1
    assert dropped(bits.view(ml_dtypes.float8_e4m3fnuz)) == 0  # 0x80 is NaN
    assert dropped(bits.view(np.int8)) == 0


def test_a_negative_zero_is_a_zero() -> None:
    layout = layout_of((1, 4), "2:4", 1)
    array = np.array([[1, -0.0, -0.0, 2]], np.float32)
    values, packed = parts_of(array, layout)
    assert values.tolist() == [1, 2]
    assert not np.signbit(decode(values, packed, layout)).any()


def test_a_group_with_too_many_non_zeros_cannot_be_encoded() -> None:
    for size in (8, 12):  # the byte-wise way and the general one
        array = np.ones((1, size), np.float32)
        with pytest.raises(ValueError, match="more than N non-zeros"):
            parts_of(array, layout_of((1, size), "2:4", 1))


@pytest.mark.parametrize(
    ("pattern", "positions", "message"),
    [
        ("2:4", [1, 1], r"group 0 has positions \[1, 1\]"),
        ("2:4", [3, 1], r"group 0 has positions \[3, 1\]"),
        ("2:4", [0, 1, 2, 0], r"group 1 has positions \[2, 0\]"),
        ("1:3", [3], r"group 0 has positions \[3\], expected 1 rising ones below 3"),
        ("1:2", [0, 1, 1, 1, 1], "bits after the last"),
    ],
)
def test_positions_no_encoder_writes_are_refused(
    pattern: str, positions: list[int], message: str
) -> None:
    parsed = NMPattern.parse(pattern)
    groups = len(positions) // parsed.n if "bits" not in message else 3
    layout = layout_of((1, groups * parsed.m), pattern, 1)
    packed = pack_bits(np.array(positions), layout.bits)
    values = np.ones(layout.slots, np.float32)
    with pytest.raises(BadPositionsError, match=message):
        decode(values, packed, layout)
