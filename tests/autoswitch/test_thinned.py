"""Long tables are thinned evenly, however they come."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.autoswitch.thinned import Thinned


@given(st.integers(2, 9), st.lists(st.integers(0, 25), max_size=12))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_each_kth_row_is_kept_however_they_are_cut(
    most: int, lengths: list[int]
) -> None:
    total = sum(lengths)
    rows = np.stack([np.arange(total), -np.arange(total)], axis=1).astype(float)
    pieces, whole, at = Thinned(most), Thinned(most), 0
    for length in lengths:
        pieces.add(rows[at : at + length])
        at += length
    whole.add(rows)
    kept = pieces.rows()
    if not total:
        return
    assert np.array_equal(kept, whole.rows())
    every = 1
    while -(-total // every) > most:
        every *= 2
    assert np.array_equal(kept, rows[::every])
