"""Which samples a step sees, by arithmetic from the seed and its number alone.

A resumed run therefore sees what the uninterrupted one would have seen.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from step_cli.data.batch import Batch, RandomSplit, Split
from step_cli.errors import InputError

Share = tuple[int, int]  # which of how many processes, the first being 0
ALONE = (0, 1)


def batch_at(
    split: Split, *, index: int, size: int, seed: int, share: Share = ALONE
) -> Batch:
    """The ``index``-th batch, from 0, of an endless shuffled pass over ``split``.

    Every epoch is a fresh permutation; what does not fill a batch at its end is left
    out.

    Args:
        split: The samples.
        index: Counted over epochs.
        size: Samples of the batch, of all processes together.
        seed: Of the order.
        share: Whose part of the batch to give: the same number of samples for each.

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
    rank, count = share
    own = size // count
    start = position * size + rank * own
    chosen = order[start : start + own]
    if isinstance(split, RandomSplit):
        # Far from the seeds of epochs; each process varies its samples in its own way.
        drawn = seed * 1_000_000_007 + index * count + rank
        return split.draw(chosen, torch.Generator().manual_seed(-1 - drawn))
    return split[chosen]


def batches_of(
    split: Split, size: int, share: Share = ALONE
) -> Iterator[tuple[Batch, bool]]:
    """All of ``split`` in order, ``size`` samples at a time, the last ones fewer.

    Each process gets as many batches. Where the samples do not suffice for that, it
    gets one that another has too.

    Returns:
        Batches, and whether they count.
    """
    rank, count = share
    for start in range(rank * size, len(split) + rank * size, count * size):
        end = min(start + size, len(split))
        own = torch.arange(min(start, end), end)
        yield (split[own], True) if len(own) else (split[own.new_zeros(1)], False)


# Remembered, as a million samples take longer to shuffle than a small model's step.
@lru_cache(maxsize=1)
def _permutation(length: int, seed: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))
