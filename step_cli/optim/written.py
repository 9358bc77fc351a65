"""What others write into the model between steps, found by its values.

A write that torch counts is found by its count, but one through ``.data`` leaves none,
and the next projection would undo it without a word. So a copy is kept of a part of
what the model was given last, and compared before the next step: all of a small model,
of a large one a part of each tensor, in turn. Counts stay on the device.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from step_cli.optim.shards import ShardSum, is_shard
from step_cli.optim.weights import Weight, flattened

AT_LEAST = 1 << 20  # weights looked at in each step
TURNS = 32  # steps after which every weight has been looked at


def piece(values: Tensor, turn: int, turns: int) -> Tensor:
    """The part of a tensor whose turn it is, of the same size at each turn."""
    if turns == 1 or not values.dim():
        return values
    axis = 0  # whose pieces are contiguous
    if values.shape[0] < turns:
        axis = max(range(values.dim()), key=values.shape.__getitem__)
    size = values.shape[axis]
    length = -(-size // turns)
    return values.narrow(axis, min(turn % turns * length, size - length), length)


class _Batch:
    """Weights that are compared together, and the copy of a part of them."""

    def __init__(self, weights: list[Weight]) -> None:
        self.weights = weights
        self.values: Tensor | None = None
        self.seen: Tensor | None = None  # where something else was found

    def _pieces(self, turn: int, turns: int) -> list[Tensor]:
        whole = [w.shown for w in self.weights]
        return whole if turns == 1 else [piece(each, turn, turns) for each in whole]

    def keep(self, turn: int, turns: int) -> None:
        """Copy the part whose turn it is."""
        pieces = self._pieces(turn, turns)
        if len(pieces) > 1:
            self.values = flattened(pieces)
        elif self.values is not None and self.values.shape == pieces[0].shape:
            self.values.copy_(pieces[0])
        else:
            self.values = pieces[0].clone()

    def changes(self, turn: int, turns: int) -> Tensor | None:
        """How many values differ from the copy; None if that is known to be none."""
        if self.values is None:
            return None
        pieces = self._pieces(turn, turns)
        now = flattened(pieces) if len(pieces) > 1 else pieces[0]
        if now.is_cpu and torch.equal(now, self.values):
            return None
        differs = now != self.values
        self.seen = differs if self.seen is None else self.seen.logical_or_(differs)
        return differs.sum()

    def first_seen(self, turn: int, turns: int) -> str | None:
        """The name of a weight in which something else was found; then forget it."""
        seen, self.seen = self.seen, None
        if seen is None or not bool(seen.any()):
            return None
        place = int(seen.flatten().nonzero()[0]) if len(self.weights) > 1 else 0
        ends = accumulate(each.numel() for each in self._pieces(turn, turns))
        named = zip(ends, self.weights, strict=True)
        return next(w.name for end, w in named if place < end)

    def is_of(self, other: "_Batch") -> bool:
        """Whether two batches are of the same parameters, in the same place."""
        pairs = zip(self.weights, other.weights, strict=False)
        return len(self.weights) == len(other.weights) and all(
            a.param is b.param and a.device == b.device for a, b in pairs
        )


class Written:
    """Keeps what the model was given last, and counts where it holds something else."""

    def __init__(self) -> None:
        self._turn, self._turns = 0, 1
        self._weights: Sequence[Weight] = ()
        self._batches: list[_Batch] = []

    def keep(self, weights: Sequence[Weight]) -> None:
        """The optimizer has just written what the model holds of these weights.

        Args:
            weights: All of them.
        """
        self._group(weights)
        self._turn += 1
        for batch in self._batches:
            batch.keep(self._turn, self._turns)

    def look(self, weights: Sequence[Weight], sums: ShardSum, slot: int) -> None:
        """Add the number of values that others have changed to one of some sums."""
        self._group(weights)
        for batch in self._batches:
            count = batch.changes(self._turn, self._turns)
            if count is not None:
                sums.beside(batch.weights[0].param)[slot].add_(count)

    def changed(self) -> str | None:
        """The name of a weight in which :meth:`look` found something; waits for it."""
        names = [batch.first_seen(self._turn, self._turns) for batch in self._batches]
        return next((name for name in names if name is not None), None)

    def _group(self, weights: Sequence[Weight]) -> None:
        """Batch the weights, again if the optimizer has made new records of them."""
        if weights is self._weights:
            return
        before, self._weights = self._batches, weights
        apart = [w for w in weights if w.apart and w.shown.numel()]
        total = sum(w.shown.numel() for w in apart)
        turns = max(1, min(TURNS, -(-total // AT_LEAST)))
        self._batches = list(_batches(apart))
        if turns == self._turns:
            for old, new in zip(before, self._batches, strict=False):
                if new.is_of(old):
                    new.values, new.seen = old.values, old.seen
        self._turns = turns


def _batches(weights: Sequence[Weight]) -> Iterator[_Batch]:
    """Weights of one kind together, save large ones on a CPU, to spare memory."""
    alike: defaultdict[Any, list[Weight]] = defaultdict(list)
    for w in weights:
        p, alone = w.param, w.shown.is_cpu and not w.is_small
        split = (p.device_mesh, p.placements) if is_shard(p) else None
        alike[w if alone else (w.dtype, w.device, split)].append(w)
    yield from map(_Batch, alike.values())
