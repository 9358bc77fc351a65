"""An order of the input channels under which an N:M mask keeps more magnitude.

A layer whose input channels and whose producer's output channels are put in one order
computes what it did. The search looks at two stripes of M channels at a time: all 35
ways to split 8 channels in two fours, the gain of the best kept for each pair of
stripes, the best pairs applied first, and so on until no pair gains.

Layers that read the same input need the same order: search on their weights joined
along the output axis.

Source: Pool and Yu, NeurIPS 2021, "Channel permutations for N:M sparsity".
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations, product, takewhile

import torch
from torch import Tensor

from step_cli.core.mask import check_groups
from step_cli.core.pattern import NMPattern
from step_cli.errors import NonFiniteError

ALL_SPLITS_UP_TO = 4  # M; from 8 on there are thousands of splits for each pair
WORTHWHILE = 1e-3  # share of magnitude lost, below which there is nothing to gain
NOISE = 1e-12  # share of magnitude that rounding of sums can feign as a gain
# Magnitudes of one channel looked at together: they fit the cache, and are too few for
# torch to split among threads, which costs more than it saves on a busy machine.
CHUNK = 1 << 14

Half = tuple[int, ...]  # M of the 2 M channels of two stripes
Split = tuple[Half, Half]


def kept_magnitude(weight: Tensor, pattern: NMPattern | str, axis: int = 1) -> float:
    """The objective: the sum of magnitudes an N:M mask keeps, in fp64.

    Raises:
        UsageError: The axis does not exist, or its size is not a multiple of M.
        NonFiniteError: A weight is NaN or infinite.
    """
    pattern = NMPattern.parse(pattern) if isinstance(pattern, str) else pattern
    channels = _channels(weight, pattern, axis)
    order = torch.arange(len(channels), device=weight.device).view(-1, pattern.m)
    return _objective(channels, order, pattern.n)


def search_permutation(
    weight: Tensor,
    pattern: NMPattern | str,
    axis: int = 1,
    *,
    escapes: int = 100,
    seed: int = 0,
) -> Tensor:
    """Find an order of the input channels that never keeps less than the present one.

    Above M = 4 pairs of stripes exchange one channel at a time instead of trying every
    split. Time grows with the square of the width, and with its outputs.

    Args:
        weight: ``[out, in, ...]``, or ``[in, out]`` with ``axis`` 0.
        pattern: The N:M pattern, or its text such as ``"2:4"``.
        axis: The input axis.
        escapes: How often, where no pair gains, a random exchange is tried; it is
            taken back unless the search ends higher from there.
        seed: Of these exchanges; must be one for all processes.

    Returns:
        ``[in]``: which channel comes to each place, for ``weight.index_select(axis,
        order)`` and ``index_select`` of the producer's weight and bias along outputs.

    Raises:
        UsageError: The axis does not exist, or its size is not a multiple of M.
        NonFiniteError: A weight is NaN or infinite.
    """
    pattern = NMPattern.parse(pattern) if isinstance(pattern, str) else pattern
    channels = _channels(weight, pattern, axis)
    order = torch.arange(len(channels), device=weight.device).view(-1, pattern.m)
    total = float(channels.sum(dtype=torch.float64))
    lost = total - _objective(channels, order, pattern.n)
    if len(order) == 1 or lost < WORTHWHILE * total:
        return order.flatten()
    search = _Search.start(channels, order, pattern.n, total * NOISE)
    search.converge(range(len(order)))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(escapes):
        search = search.escaped(generator)
    return search.order.flatten()


@dataclass
class _Search:
    """Where a search stands.

    Attributes:
        channels: Magnitudes, ``[in, rows]``.
        splits: Ways to deal the channels of two stripes, see `_splits`.
        n: Kept of each M.
        noise: What a gain must exceed, in magnitude.
        order: The channels of each stripe, ``[stripes, M]``.
        gain: Of each pair of stripes by its best split, above the diagonal.
        best: The index of that split.
    """

    channels: Tensor
    splits: list[Split]
    n: int
    noise: float
    order: Tensor
    gain: Tensor
    best: Tensor

    @classmethod
    def start(cls, channels: Tensor, order: Tensor, n: int, noise: float) -> "_Search":
        gain = torch.zeros(len(order), len(order), dtype=torch.float64)
        splits = _splits(order.shape[1])
        return cls(channels, splits, n, noise, order, gain, gain.long())

    def converge(self, touched: Collection[int]) -> None:
        """Apply the best splits until none gains; ``touched`` are stripes changed."""
        while touched:
            self._refresh(touched)
            touched = self._apply()

    def escaped(self, generator: torch.Generator) -> "_Search":
        """The search that goes on from a random exchange if it ends higher, else this.

        Orders are compared by their objective, so that it never falls.
        """
        m = self.order.shape[1]
        one, two = torch.randperm(len(self.order), generator=generator)[:2].tolist()
        left, right = torch.randint(m, (2,), generator=generator).tolist()
        order = self.order.clone()
        order[one, left], order[two, right] = (
            self.order[two, right],
            self.order[one, left],
        )
        other = _Search(
            self.channels, self.splits, self.n, self.noise,
            order, self.gain.clone(), self.best.clone(),
        )  # fmt: skip
        other.converge({one, two})
        return other if other.objective() > self.objective() + self.noise else self

    def objective(self) -> float:
        return _objective(self.channels, self.order, self.n)

    def _refresh(self, touched: Collection[int]) -> None:
        """Find the best split of each pair with a touched stripe."""
        changed = torch.zeros(len(self.order), dtype=torch.bool)
        changed[list(touched)] = True
        one, two = torch.triu_indices(len(self.order), len(self.order), 1)
        wanted = changed[one] | changed[two]
        pairs = torch.stack([one[wanted], two[wanted]], dim=1)
        step = max(1, CHUNK // self.channels.shape[1])
        for part in torch.split(pairs, step):
            stripes = part.flatten().to(self.order.device)
            channels = self.order.index_select(0, stripes).view(len(part), -1)
            gain, best = self._best_splits(channels)
            at = part.unbind(1)
            self.gain[at], self.best[at] = gain.cpu(), best.cpu()

    def _best_splits(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and index of the best split; ``channels`` is ``[pairs, 2 M]``."""
        sets = sorted({half for split in self.splits for half in split})
        place = {half: k for k, half in enumerate(sets)}
        # Indexing with [] starts threads however little there is to do.
        members = [self.channels.index_select(0, member) for member in channels.t()]
        each = _kept(members, sets, self.n)
        kept = torch.stack([each[place[a]] + each[place[b]] for a, b in self.splits])
        best = kept.argmax(0)
        return kept.gather(0, best[None])[0] - kept[0], best

    def _apply(self) -> set[int]:
        """Apply gains, the highest first, no stripe twice; return stripes touched."""
        pairs = (self.gain > self.noise).nonzero()
        gains = self.gain[pairs.unbind(1)]
        touched: set[int] = set()
        for k in gains.argsort(descending=True, stable=True).tolist():
            pair = pairs[k].tolist()
            if touched.isdisjoint(pair):
                halves = self.splits[int(self.best[*pair])]
                self.order[pair] = self.order[pair].flatten()[torch.tensor(halves)]
                touched.update(pair)
        return touched


def _splits(m: int) -> list[Split]:
    """Ways to deal 2 M channels to two stripes whose order does not matter.

    The first leaves them as they are.
    """
    every = range(2 * m)
    if m <= ALL_SPLITS_UP_TO:
        # Channel 0 is always in the first half: else each split would count twice.
        first = [(0, *rest) for rest in combinations(every[1:], m - 1)]
    else:
        exchanges = product(reversed(every[:m]), every[m:])
        first = [tuple(every[:m])]
        first += [(*(c for c in every[:m] if c != a), b) for a, b in exchanges]
    return [(half, tuple(c for c in every if c not in half)) for half in first]


def _channels(weight: Tensor, pattern: NMPattern, axis: int) -> Tensor:
    """Magnitudes as ``[in, rows]``, all that one input meets in a row; in fp64."""
    check_groups(tuple(weight.shape), pattern, axis)
    channels = weight.detach().double().abs().movedim(axis, 0)
    if not bool(torch.isfinite(channels).all()):
        raise NonFiniteError("a weight is NaN or infinite, which has no rank")
    return channels.reshape(len(channels), -1).contiguous()


def _kept(members: list[Tensor], sets: list[Half], n: int) -> Tensor:
    """Sum of the N largest of some members of each group, over all rows.

    Args:
        members: Magnitudes of each member of the groups, ``[groups, rows]``.
        sets: Members, in lexicographic order: what a set shares with the one before
            it is not done again.
        n: How many of a set are kept.

    Returns:
        ``[sets, groups]``.
    """
    tops: list[list[Tensor]] = [[]]  # after each member of the set, in descending order
    sums, last = [], Half()
    for chosen in sets:
        shared = sum(
            takewhile(bool, (a == b for a, b in zip(chosen, last, strict=False)))
        )
        del tops[shared + 1 :]
        for member in chosen[shared:]:
            tops.append(_inserted(tops[-1], members[member], n))
        sums.append(torch.stack([top.sum(1) for top in tops[-1]]).sum(0))
        last = chosen
    return torch.stack(sums)


def _inserted(top: list[Tensor], value: Tensor, n: int) -> list[Tensor]:
    """The N largest of ``top``, in descending order, and ``value``."""
    result = []
    for higher in top:
        result.append(torch.maximum(higher, value))
        value = torch.minimum(higher, value)
    return [*result, value][:n]


def _objective(channels: Tensor, order: Tensor, n: int) -> float:
    """Magnitude kept with channels in ``order``, ``[stripes, M]``."""
    members = [channels.index_select(0, places) for places in order.t()]
    return float(_kept(members, [tuple(range(len(members)))], n).sum())
