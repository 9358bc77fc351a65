"""Long tables are downsampled evenly."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.autoswitch.curves import Downsampled


@given(st.integers(2, 9), st.integers(0, 300))
@settings(max_examples=80)
def test_each_kth_row_is_kept(most: int, total: int) -> None:
    rows, kept = [(float(at), -float(at)) for at in range(total)], Downsampled(most)
    for row in rows:
        if kept.is_due():
            kept.add(row)
    every = 1
    while -(-total // every) > most:
        every *= 2
    assert np.array_equal(kept.rows(), np.array(rows[::every]))
