"""What a broken pattern looks like, and what two masks differ in."""

import numpy as np
import pytest

from step_cli.nm import groups
from step_cli.nm.count import TensorToCheck
from step_cli.nm.diagnosis import (
    Mismatch,
    axis_that_holds,
    mismatch,
    pattern_that_holds,
)
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.tensor_data import TensorData


def to_check(array: np.ndarray, pattern: str = "2:4", axis: int = 1) -> TensorToCheck:
    plan = NMSpec(NMPattern.parse(pattern), axis)
    return TensorToCheck(TensorData(array, array.dtype.name), plan)


def sparse(n: int, m: int, axis: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).random((64, 64 // m, m))
    kept = scores.argsort(-1).argsort(-1) < n
    flat = kept.reshape(64, 64).astype(np.float32)
    return flat if axis == 1 else np.ascontiguousarray(flat.T)


def test_the_axis_along_which_it_holds_is_found() -> None:
    assert axis_that_holds(to_check(sparse(2, 4, axis=0))) == 0
    assert axis_that_holds(to_check(sparse(2, 4, axis=1), axis=0)) == 1
    assert axis_that_holds(to_check(np.ones((8, 8), np.float32))) is None


@pytest.mark.parametrize("nm", ["2:4", "4:8", "2:8", "1:16", "8:16"])
def test_the_pattern_that_holds_is_found(nm: str) -> None:
    n, m = (int(part) for part in nm.split(":"))
    assert str(pattern_that_holds(to_check(sparse(n, m, axis=1), "1:32"))) == nm


def test_a_dense_layer_looks_like_no_pattern() -> None:
    assert pattern_that_holds(to_check(np.ones((8, 64), np.float32))) is None


def test_the_same_mask_in_another_dtype_and_with_other_values() -> None:
    ours = sparse(2, 4, axis=1)
    theirs = -3 * ours.astype(np.float64)
    assert mismatch(TensorData(ours, "float32"), TensorData(theirs, "float64")) is None


def test_the_first_difference_of_two_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PIECE_BYTES", 16)
    ours = sparse(2, 4, axis=1)
    theirs = ours.copy()
    theirs[5, 7] = 1 - theirs[5, 7]
    theirs[9, 0] = 1 - theirs[9, 0]
    found = mismatch(TensorData(ours, "float32"), TensorData(theirs, "float32"))
    assert found == Mismatch(2, (5, 7))
