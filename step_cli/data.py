"""Training data: tensors in memory, and batches by arithmetic.

The batch of a step follows from (seed, epoch, position) alone, so a resumed run sees
what the uninterrupted one would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from step_cli.errors import InputError, UsageError
from step_cli.samples import load_sample

BUILT_IN = {"digits": "digits-resnet"}  # source -> the sample whose data it is


@dataclass(frozen=True)
class Split:
    """Samples along the first axis of both: ``inputs`` and integer class ``labels``."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Split":
        return Split(self.inputs[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """What is trained on, and what is not."""

    train: Split
    held_out: Split


def load_data(source: str) -> Dataset:
    """Load the data that ``[data] source`` names.

    Raises:
        UsageError: No such source.
        MissingError: A library it needs is not installed.
    """
    if source not in BUILT_IN:
        known = ", ".join(repr(name) for name in BUILT_IN)
        raise UsageError(f"data.source: no such data {source!r}; use {known}")
    dataset = load_sample(BUILT_IN[source], "data").load()
    assert isinstance(dataset, Dataset)
    return dataset


def batch_at(split: Split, *, index: int, size: int, seed: int) -> Split:
    """The ``index``-th batch, from 0, of an endless shuffled pass over ``split``.

    Every epoch is a fresh permutation; what does not fill a batch at its end is left
    out.

    Raises:
        InputError: The split is smaller than one batch.
    """
    per_epoch = len(split) // size
    if per_epoch == 0:
        raise InputError(f"the data has {len(split)} samples, a batch needs {size}")
    epoch, position = divmod(index, per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(split), generator=generator)
    return split[order[position * size : (position + 1) * size]]


def batches_of(split: Split, size: int) -> Iterator[Split]:
    """All of ``split`` in order, the last batch smaller."""
    for start in range(0, len(split), size):
        yield split[torch.arange(start, min(start + size, len(split)))]
