"""Stored tensors under transposable masks: against the function on each matrix."""

import ml_dtypes
import numpy as np
import pytest
import torch

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.tensor_data import TensorData
from step_cli.oneshot import transposable as module
from step_cli.oneshot.transposable import transposable_keep
from step_cli.recipes.transposable import transposable_mask

TWO_FOUR = NMPattern(2, 4)


def matrices(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    return {(8, 12): (1 - axis, axis), (8, 4, 3, 3): (0, 1), (2, 8, 12): (1, 2)}[shape]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((8, 12), 1), ((8, 12), 0), ((8, 4, 3, 3), 1), ((2, 8, 12), 2)]
)
def test_each_matrix_has_the_mask_of_its_own(
    shape: tuple[int, ...], axis: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 32)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.random.default_rng(0).standard_normal(shape).astype(kind)
    order = matrices(shape, axis)
    spec = NMSpec(TWO_FOUR, axis)
    keep = transposable_keep(TensorData(array, dtype), spec, order[0])
    stack = np.moveaxis(np.abs(array.astype(np.float32)), order, (-2, -1))
    masks = np.moveaxis(keep, order, (-2, -1))
    for index in np.ndindex(stack.shape[:-2]):
        expected = transposable_mask(torch.from_numpy(stack[index].copy()), TWO_FOUR)
        np.testing.assert_array_equal(masks[index], expected.numpy())


def test_a_block_that_holds_already_is_kept_even_if_no_full_mask_holds_it() -> None:
    block = np.zeros((4, 4), np.float32)
    block[:3, :3] = 1 - np.eye(3)  # two in each of three rows and columns
    block[3, 3] = 0.5
    keep = transposable_keep(TensorData(block, "float32"), NMSpec(TWO_FOUR, 1), 0)
    assert keep.all()
    block[0, 0] = 0.1
    keep = transposable_keep(TensorData(block, "float32"), NMSpec(TWO_FOUR, 1), 0)
    assert (keep.sum(0) == 2).all() and (keep.sum(1) == 2).all()


def test_scores_may_come_from_elsewhere() -> None:
    array = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    scores = np.random.default_rng(1).random((8, 8))
    plan = NMSpec(TWO_FOUR, 1)
    keep = transposable_keep(TensorData(array, "float32"), plan, 0, scores)
    expected = transposable_mask(torch.from_numpy(scores), TWO_FOUR).numpy()
    np.testing.assert_array_equal(keep, expected)


def test_outputs_that_do_not_divide_are_refused() -> None:
    weights = TensorData(np.ones((6, 8)), "float64")
    with pytest.raises(UsageError, match="blocks of 4x4"):
        transposable_keep(weights, NMSpec(TWO_FOUR, 1), 0)
