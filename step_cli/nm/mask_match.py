"""Do two tensors keep the same weights? Compared piece by piece, values aside."""

from dataclasses import dataclass

import numpy as np

from step_cli.nm.groups import Groups, Scratch, TensorData, index_of


@dataclass(frozen=True)
class Mismatch:
    """How many weights one mask keeps and the other drops, and where the first is."""

    count: int
    index: tuple[int, ...]


def mismatch(one: TensorData, other: TensorData) -> Mismatch | None:
    """Compare the masks of two tensors of one shape; None if they are the same."""
    ours, theirs = (
        Groups(one, 1, one.array.ndim - 1),
        Groups(other, 1, other.array.ndim - 1),
    )
    scratches = Scratch(), Scratch()
    count, first = 0, None
    for piece in ours.pieces():
        kept = ours.magnitude(piece, scratches[0]) != 0
        differs = kept != (theirs.magnitude(piece, scratches[1]) != 0)
        found = int(np.count_nonzero(differs))
        if found and first is None:
            first = ours.position(piece, int(differs.argmax()), 0, 0)
        count += found
    return None if first is None else Mismatch(count, index_of(first, ours.shape))
