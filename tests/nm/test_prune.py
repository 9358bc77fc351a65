from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from step_cli.errors import NonFiniteError
from step_cli.nm import prune as module
from step_cli.nm.mask import FLOATS
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.prune import OneShot, Pruned
from step_cli.nm.tensor_data import TensorData

CASES = [
    ((6, 8), 2, 4, 1),
    ((8, 6), 1, 4, 0),
    ((3, 16, 2, 2), 2, 8, 1),
    ((2, 3, 14), 3, 7, 2),
    ((3, 140), 30, 70, 1),
    ((4, 4), 1, 2, 0),
]


pytestmark = pytest.mark.usefixtures("loops")


def kind_of(dtype: str) -> np.dtype:  # type: ignore[type-arg]
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


def random_weights(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Coarse values, so that equal magnitudes and zeros of both signs are common."""
    rng = np.random.default_rng(seed)
    values = np.round(rng.standard_normal(shape) * 2) / 2
    return values.astype(kind_of(dtype))


def pruned(
    array: np.ndarray, n: int, m: int, axis: int, seed: int | None = None
) -> tuple[np.ndarray, Pruned]:
    plan = NMSpec(NMPattern(n, m), axis)
    work = OneShot(TensorData(array, array.dtype.name), plan, name="w", seed=seed)
    out = (
        np.concatenate([b.copy() for b in work.blocks()])
        .view(array.dtype)
        .reshape(array.shape)
    )
    return out, work.done


def groups_of(array: np.ndarray, m: int, axis: int) -> Iterator[np.ndarray]:
    """Each group as a view that can be written to."""
    rows = np.moveaxis(array, axis, -1)
    for row in np.ndindex(*rows.shape[:-1]):
        for start in range(0, rows.shape[-1], m):
            yield rows[row][start : start + m]


def slowly_pruned(
    array: np.ndarray, n: int, m: int, axis: int
) -> tuple[np.ndarray, float, float]:
    out, before, after = array.copy(), 0.0, 0.0
    for group in groups_of(out, m, axis):
        size = [abs(float(value)) for value in group]
        order = sorted(range(m), key=lambda i: (-size[i], i))
        before += sum(size)
        after += sum(size[i] for i in order[:n])
        for i in order[n:]:
            if size[i] != 0:
                group[i] = 0
    return out, before, after


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize(("shape", "n", "m", "axis"), CASES)
def test_magnitude_prunes_as_a_slow_loop_does(
    dtype: str, shape: tuple[int, ...], n: int, m: int, axis: int
) -> None:
    array = random_weights(dtype, shape)
    expected, before, after = slowly_pruned(array, n, m, axis)
    out, done = pruned(array, n, m, axis)
    assert out.tobytes() == expected.tobytes()
    assert done.before == pytest.approx(before, rel=1e-12)
    assert done.after == pytest.approx(after, rel=1e-12)
    assert done.elements == array.size
    assert done.nonzeros == np.count_nonzero(expected.astype(np.float64))
    unsigned = f"u{array.itemsize}"
    assert done.changed == np.sum(out.view(unsigned) != array.view(unsigned))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize(("shape", "n", "m", "axis"), CASES)
def test_random_prunes_only_what_it_must(
    dtype: str, shape: tuple[int, ...], n: int, m: int, axis: int
) -> None:
    array = random_weights(dtype, shape)
    out, _ = pruned(array, n, m, axis, seed=1)
    for old, new in zip(
        groups_of(array, m, axis), groups_of(out, m, axis), strict=True
    ):
        nonzero = old.astype(np.float64) != 0
        left = new.astype(np.float64) != 0
        assert left.sum() == min(n, nonzero.sum())
        assert (new[left] == old[left]).all()
        if nonzero.sum() <= n:
            assert new.tobytes() == old.tobytes()


def test_random_differs_by_seed_and_name_and_repeats() -> None:
    array = random_weights("float32", (64, 64)) + np.float32(0.1)
    one, again, other = (pruned(array, 2, 4, 1, seed=seed)[0] for seed in (1, 1, 2))
    assert one.tobytes() == again.tobytes() != other.tobytes()
    plan = NMSpec(NMPattern(2, 4), 1)
    named = OneShot(TensorData(array, "float32"), plan, name="v", seed=1)
    assert np.concatenate([b.copy() for b in named.blocks()]).tobytes() != one.tobytes()
    assert 0.4 < np.mean(one[:, 0] != 0) < 0.6  # no place is favoured


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 4), (2, 4), (4, 8), (3, 5)]))
def test_what_complies_is_not_touched(seed: int, pattern: tuple[int, int]) -> None:
    n, m = pattern
    array = random_weights("float16", (4, 4 * m), seed)
    once, _ = pruned(array, n, m, 1)
    twice, done = pruned(once, n, m, 1)
    assert twice.tobytes() == once.tobytes() and done.changed == 0


def test_negative_zeros_and_subnormals() -> None:
    tiny = np.float32(1e-45)
    array = np.array([[-0.0, 1, 2, -0.0, tiny, tiny, tiny, 0]], np.float32)
    out, _ = pruned(array, 2, 4, 1)
    assert np.signbit(out[0, [0, 3]]).all()  # zeros stay, sign and all
    np.testing.assert_array_equal(out[0, 4:], [tiny, tiny, 0, 0])


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("place", [(0, 0), (3, 9), (5, 15)])
def test_nan_and_infinity_are_refused_with_their_place(
    dtype: str, place: tuple[int, int]
) -> None:
    kind = kind_of(dtype)
    limits = ml_dtypes.finfo(kind)
    values = [np.nan, np.inf, -np.inf] if limits.bits > 8 else [np.nan]
    for value in values:
        array = random_weights(dtype, (6, 16))
        array[place] = value
        with pytest.raises(NonFiniteError, match=rf"\[{place[0]}, {place[1]}\]"):
            pruned(array, 2, 4, 1)
        with pytest.raises(NonFiniteError, match=rf"\[{place[0]}, {place[1]}\]"):
            pruned(array, 1, 2, 0)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
@pytest.mark.parametrize("per_slice", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_codes_are_pruned_to_their_zero_point(
    dtype: str, per_slice: bool, axis: int
) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 100, (8, 8)).astype(dtype)
    zero = np.arange(8, dtype=dtype) * 3 if per_slice else np.array(7, dtype)
    zero_axis = 1 - axis if per_slice else None
    weights = TensorData(codes, dtype, zero, zero_axis)
    work = OneShot(weights, NMSpec(NMPattern(2, 4), axis), name="w")
    out = np.concatenate([b.copy() for b in work.blocks()]).view(dtype).reshape(8, 8)
    points = np.broadcast_to(
        zero.reshape([-1, 1] if zero_axis == 0 else [1, -1]), (8, 8)
    ).astype(np.int64)
    expected, before, after = slowly_pruned(codes.astype(np.int64) - points, 2, 4, axis)
    np.testing.assert_array_equal(out.astype(np.int64) - points, expected)
    assert (work.done.before, work.done.after) == (before, after)


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_and_threads_do_not_change_the_result(
    axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = random_weights("float16", (32, 64))
    whole, _ = pruned(array, 2, 4, axis)
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "PIECE", 32)
    monkeypatch.setattr(module, "WORTH_A_THREAD", 0)
    parts, _ = pruned(array, 2, 4, axis)
    assert parts.tobytes() == whole.tobytes()


def test_a_block_is_overwritten_only_when_the_next_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    array = random_weights("float16", (64, 64))
    whole, _ = pruned(array, 2, 4, 1)
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "WORTH_A_THREAD", 0)
    plan = NMSpec(NMPattern(2, 4), 1)
    written = bytearray()
    for block in OneShot(TensorData(array, "float16"), plan, name="w").blocks():
        written += block.tobytes()
    assert bytes(written) == whole.tobytes()
