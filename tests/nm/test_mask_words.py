"""Masks of groups side by side equal those of the planes, ties and all."""

import numpy as np
import pytest

from step_cli.nm.groups import Scratch
from step_cli.nm.mask import keep_highest
from step_cli.nm.mask_words import WORDS, keep_side_by_side
from step_cli.nm.pattern import NMPattern


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("levels", [1, 3, 200])  # few levels: ties are common
@pytest.mark.parametrize("m", WORDS)
def test_it_is_the_mask_of_the_planes(m: int, levels: int, dtype: type) -> None:
    rng, scratch = np.random.default_rng(m), Scratch()
    for groups in (1, 2, 37):
        scores = rng.integers(0, levels, groups * m).astype(dtype)
        for n in range(1, m):
            expected = keep_highest(scores.reshape(groups, m), NMPattern(n, m), 1)
            found = keep_side_by_side(scores, n, m, scratch)
            np.testing.assert_array_equal(found.reshape(groups, m), expected)


def test_the_last_comparisons_do_not_reach_into_what_was_there_before() -> None:
    scratch = Scratch()
    for value in (9, 0):
        scores = np.full(8, value, np.uint16)
        assert keep_side_by_side(scores, 2, 4, scratch).tolist() == [1, 1, 0, 0] * 2
