"""Tensors of a file that have bytes in common without being one and the same."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from step_cli.formats.checkpoint import NamedTensor, Place

MOST_OPEN = 64  # tensors over one place that are compared one by one
MOST_WORK = 10_000  # of NumPy's search for a common element


def overlapping(
    tensors: Sequence[NamedTensor],
) -> Iterator[tuple[NamedTensor, NamedTensor]]:
    """Pairs of tensors with an element's bytes in common.

    Columns of one matrix lie between each other and have none in common. What is too
    hard to decide counts as common.
    """
    placed = [(place, tensor) for tensor in tensors if (place := _place(tensor))]
    placed.sort(key=lambda entry: (id(entry[0].file), entry[0].begin))
    opened: list[tuple[Place, NamedTensor]] = []
    for place, tensor in placed:
        opened = [
            (other, its) for other, its in opened
            if other.file is place.file and other.end > place.begin
        ]  # fmt: skip
        many = len(opened) > MOST_OPEN
        for other, its in opened:
            apart = other.strides is not None or place.strides is not None
            if many or not apart or _common(its, tensor):
                yield its, tensor
        if many:  # those that reach farthest are over whatever the others are over
            opened.sort(key=lambda entry: -entry[0].end)
            del opened[MOST_OPEN:]
        opened.append((place, tensor))


def _place(tensor: NamedTensor) -> Place | None:
    place = tensor.place or tensor.among
    return place if place is not None and place.begin < place.end else None


def _common(one: NamedTensor, other: NamedTensor) -> bool:
    try:
        both = one.read(), other.read()
        return np.shares_memory(*both, max_work=MOST_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def with_sharing(
    tensors: Sequence[NamedTensor], others: Sequence[NamedTensor] = ()
) -> list[NamedTensor]:
    """Say of each tensor that has bytes of another, to which it is not tied.

    Args:
        tensors: Of a state dict.
        others: What lies elsewhere in the file, named by the keys that lead to it.
    """
    own = [tensor for tensor in tensors if tensor.tied_to is None]
    elsewhere = {id(other) for other in others}
    shared: dict[str, str] = {}
    for one, other in overlapping([*own, *others]):
        for tensor, by in ((one, other), (other, one)):
            if id(tensor) not in elsewhere:
                kind = "what lies under" if id(by) in elsewhere else "the tensor"
                shared.setdefault(tensor.name, f"{kind} {by.name!r:.80}")
    return [
        replace(tensor, shared_with=shared[first])
        if (first := tensor.tied_to or tensor.name) in shared
        else tensor
        for tensor in tensors
    ]
