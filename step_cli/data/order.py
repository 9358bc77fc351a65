"""Which samples a step sees, by arithmetic from the seed and its number alone.

A resumed run therefore sees what the uninterrupted one would have seen, and the next
batch can be read while the present one is trained on.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Self

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


class ReadAhead:
    """Batches by number, each the same whether it was read ahead or not.

    Args:
        read: Gives the batch of a number, by arithmetic alone; it is called in another
            thread, and once for a batch that may never be needed.
    """

    def __init__(self, read: Callable[[int], Batch]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._next: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __getitem__(self, index: int) -> Batch:
        ahead, self._next = self._next, None
        if ahead is not None and ahead[0] == index:
            batch = ahead[1].result()
        else:
            batch = self._read(index)
        self._next = index + 1, self._thread.submit(self._read, index + 1)
        return batch
