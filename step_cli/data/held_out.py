"""A share of the samples is held out: drawn by their numbers, the same from each class.

Samples that follow each other often are of one class or one source, and evenly spaced
ones may all be of the same; a draw has no such pattern. It needs no seed: the hash of a
sample's number decides, so the share is the same on every machine and in every run.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from step_cli.data.batch import Dataset, Split, Subset, classes_in
from step_cli.errors import InputError

Numbers = npt.NDArray[np.int64]


def set_aside(
    split: Split, share: float, path: Path, classes: tuple[str, ...] = ()
) -> Dataset:
    """Hold out a share of ``split``, and train on the rest.

    Args:
        split: All samples.
        share: More than 0 and less than 1.
        path: Where they are, for messages.
        classes: As in `Dataset`.

    Raises:
        InputError: One of the two would be empty.
    """
    count = round(len(split) * share)
    if not 0 < count < len(split):
        raise InputError(
            f"data.held_out {share} of {len(split)} samples is {count}; nothing would "
            "be left to train on or to measure",
            file=path,
        )
    labels = classes_in(split)
    found = np.zeros(len(split), np.int64) if labels is None else labels.numpy()
    held_out = torch.zeros(len(split), dtype=torch.bool)
    held_out[torch.from_numpy(drawn(found, count))] = True
    numbers = torch.arange(len(split))
    return Dataset(
        Subset(split, numbers[~held_out]), Subset(split, numbers[held_out]), classes
    )


def drawn(labels: Numbers, count: int) -> Numbers:
    """The numbers of ``count`` samples, each class having its share of them.

    Args:
        labels: The class of each sample, ``[n]``.
        count: More than 0 and less than n.
    """
    order = np.argsort(hashed(len(labels)), kind="stable")
    _, of_class, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = order[np.argsort(of_class[order], kind="stable")]  # by class, then by hash
    ends = np.cumsum(sizes)
    parts = zip(ends - sizes, _shares(sizes, count), strict=True)
    return np.sort(np.concatenate([order[start : start + n] for start, n in parts]))


def _shares(sizes: Numbers, count: int) -> list[int]:
    """How many of each class are held out, ``count`` in all.

    As near to its share as whole numbers allow, and neither none nor all of a class of
    two or more, as long as ``count`` allows that.
    """
    wanted = sizes * (count / sizes.sum())
    low = np.minimum(1, sizes - 1)
    high = np.maximum(sizes - 1, 0)
    if low.sum() > count:
        low = np.zeros_like(sizes)
    if high.sum() < count:
        high = sizes
    given = np.clip(np.floor(wanted).astype(np.int64), low, high)
    while (missing := count - int(given.sum())) != 0:
        # The class that is furthest from its share, of those that can change.
        step = 1 if missing > 0 else -1
        free = given < high if missing > 0 else given > low
        order = np.argsort(-step * (wanted - given), kind="stable")
        changed = order[free[order]][: abs(missing)]
        given[changed] += step
    return [int(n) for n in given]


def hashed(count: int) -> npt.NDArray[np.uint64]:
    """A number for each of 0 to ``count - 1`` that looks random: SplitMix64.

    Source: Steele, Lea and Flood, OOPSLA 2014; its constants.
    """
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
