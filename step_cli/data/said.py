"""What is found in data, said before training: samples, classes, and what looks wrong.

Nothing here is an error: a run on such data ends as any other, with a model that may
have learned nothing, and metrics that do not show it.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from torch import Tensor

from step_cli.data.batch import Dataset, Split, classes_in
from step_cli.data.leaks import alike_in
from step_cli.data.names import doubles
from step_cli.errors import few
from step_cli.reports import SplitFound

logger = logging.getLogger(__name__)

LISTED = 10  # classes at most whose counts are said one by one
MOST = 10_000  # classes that are counted at all
FEW = 20  # samples, of which each may well be a class of its own


def say_what_is_found(data: Dataset, source: str) -> None:
    """Log the samples and classes of each split, and a warning for each doubt."""
    logger.info("%s: %s", source, summary(data))
    for doubt in _doubts(data):
        logger.warning("%s: %s", source, doubt)


def summary(data: Dataset) -> str:
    """The samples and classes of both splits, in words."""
    learned = _words(data.train, data, "to train on")
    return f"{learned}; {_words(data.held_out, data, 'held out')}"


def counts_of(split: Split, data: Dataset) -> dict[str, int] | None:
    """The samples of each class that ``split`` has, by the name of the class.

    None where there are no classes, or more than anybody reads.
    """
    labels = classes_in(split)
    if labels is None:
        return None
    found, counts = np.unique(labels.numpy(), return_counts=True)
    if len(found) > MOST:
        return None
    pairs = zip(found.tolist(), counts.tolist(), strict=True)
    return {_name(label, data): count for label, count in pairs}


def _name(label: int, data: Dataset) -> str:
    return data.classes[label] if 0 <= label < len(data.classes) else str(label)


def _words(split: Split, data: Dataset, purpose: str) -> str:
    counts, said = counts_of(split, data), f"{len(split)} samples {purpose}"
    if counts is None:
        return said
    if len(counts) <= LISTED:
        each = ", ".join(f"{name}: {count}" for name, count in counts.items())
        return f"{said} ({each})"
    sizes = counts.values()
    return f"{said} ({len(counts)} classes of {min(sizes)} to {max(sizes)})"


def _doubts(data: Dataset) -> Iterator[str]:
    for one, other in doubles(data.classes)[:3]:
        yield (
            f"classes {one!r} and {other!r} differ by case or blanks alone; if they "
            "are one, give them one name"
        )
    yield from _doubts_of_numbers(data.classes)
    train, held_out = classes_in(data.train), classes_in(data.held_out)
    if train is not None and held_out is not None:
        yield from _doubts_of_classes(train, held_out, data)
    shared, constant = alike_in(data)
    if constant:
        yield "all samples to train on read the same: there is nothing to learn"
    if shared:
        yield (
            f"{shared} of {len(data.held_out)} held-out samples are trained on as "
            "well, so metrics show what is known by heart; leave them out of one side"
        )


def _doubts_of_numbers(names: Sequence[str]) -> Iterator[str]:
    """Doubts of folders that are called 0, 1, and so on to 10, which comes before 2."""
    if not all(name.isdecimal() for name in names):
        return
    numbers = [int(name) for name in names]
    place = next((i for i, number in enumerate(numbers) if number != i), None)
    if place is not None and max(numbers) <= len(numbers):
        yield (
            f"{names[place]!r} is class {place}, as names are sorted as text; number "
            "from 0, all with as many digits, if the model knows numbers"
        )


def _doubts_of_classes(train: Tensor, held_out: Tensor, data: Dataset) -> Iterator[str]:
    here, there = (set(np.unique(x.numpy()).tolist()) for x in (train, held_out))

    def names(labels: set[int]) -> str:
        return few([_name(label, data) for label in sorted(labels)])

    if len(here) == 1:
        yield (
            f"all samples to train on are of one class, {names(here)}: there is "
            "nothing to learn"
        )
    if len(here) > FEW and len(here) > len(train) / 2:
        yield (
            f"{len(here)} classes for {len(train)} samples to train on: the label may "
            "be a number of the row, or a text"
        )
    elif not data.classes:
        yield from _gaps(here | there)
    if here - there:
        yield (
            f"no held-out sample is of class {names(here - there)}: metrics say "
            "nothing about it"
        )
    if there - here:
        yield (
            f"no sample to train on is of class {names(there - here)}, which is held "
            "out: the model cannot know it"
        )


def _gaps(labels: set[int]) -> Iterator[str]:
    """Doubts of classes by number, of which some never occur."""
    missing = max(labels) + 1 - len(labels)
    if not missing:
        return
    first = list(islice((n for n in range(max(labels)) if n not in labels), LISTED))
    more = f" and {missing - len(first)} more" if missing > len(first) else ""
    named = ", ".join(map(str, first)) + more
    if min(labels) > 0:
        yield (
            f"labels begin at {min(labels)}, and classes count from 0: no sample is of "
            f"class {named}; number them from 0 unless the model has those too"
        )
    else:
        yield f"no sample is of class {named}; number classes without gaps"


def found_in(data: Dataset) -> dict[str, SplitFound]:
    """For the report: of each split its samples, and their number by class."""
    return {
        name: SplitFound(samples=len(split), classes=counts_of(split, data))
        for name, split in (("train", data.train), ("held_out", data.held_out))
    }
