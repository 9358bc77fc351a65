"""Which samples a step sees, by arithmetic from the seed and its number alone.

A resumed run therefore sees what the uninterrupted one would have seen.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from step_cli.data.batch import Batch, RandomSplit, Split
from step_cli.errors import InputError


def batch_at(split: Split, *, index: int, size: int, seed: int) -> Batch:
    """The ``index``-th batch, from 0, of an endless shuffled pass over ``split``.

    Every epoch is a fresh permutation; what does not fill a batch at its end is left
    out.

    Raises:
        InputError: The split is smaller than one batch.
    """
    per_epoch = len(split) // size
    if per_epoch == 0:
        raise InputError(
            f"the data has {len(split)} samples to train on, a batch needs {size}; "
            "lower train.batch_size"
        )
    epoch, position = divmod(index, per_epoch)
    order = _permutation(len(split), seed * 1_000_003 + epoch)
    chosen = order[position * size : (position + 1) * size]
    if isinstance(split, RandomSplit):
        # Far from the seeds of epochs.
        generator = torch.Generator().manual_seed(-1 - (seed * 1_000_000_007 + index))
        return split.draw(chosen, generator)
    return split[chosen]


def batches_of(split: Split, size: int) -> Iterator[Batch]:
    """All of ``split`` in order, the last batch smaller."""
    for start in range(0, len(split), size):
        yield split[torch.arange(start, min(start + size, len(split)))]


# Remembered, as a million samples take longer to shuffle than a small model's step.
@lru_cache(maxsize=1)
def _permutation(length: int, seed: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))
