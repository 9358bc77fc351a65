"""What the best way to deal the channels of two stripes of M anew would gain.

Up to M = 4 all splits of 2 M channels are tried, 35 for 2:4; above, all exchanges of
one channel for one. Sums are in fp64, so that rounding hardly ever decides.
"""

from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.core.pattern import NMPattern
from step_cli.core.threads import own_scratch

Array = npt.NDArray[Any]
Half = tuple[int, ...]  # M of the 2 M channels of two stripes
Split = tuple[Half, Half]

ALL_SPLITS_UP_TO = 4  # M; from 8 on there are thousands of splits for each pair
CHUNK = 1 << 14  # magnitudes of one channel looked at together: they fit the cache


@lru_cache
def splits_of(m: int) -> list[Split]:
    """Ways to deal 2 M channels to two stripes whose order does not matter.

    The first leaves them as they are.
    """
    every = range(2 * m)
    if m <= ALL_SPLITS_UP_TO:
        # Channel 0 is always in the first half: else each split would count twice.
        first = [(0, *rest) for rest in combinations(every[1:], m - 1)]
    else:
        first = [tuple(every[:m])]
        for leaving in reversed(every[:m]):
            stay = tuple(c for c in every[:m] if c != leaving)
            first += [(*stay, entering) for entering in every[m:]]
    return [(half, tuple(c for c in every if c not in half)) for half in first]


def kept_of_splits(channels: Array, pattern: NMPattern) -> Array:
    """What each split of `splits_of` keeps, over all rows.

    Args:
        channels: Magnitudes of the 2 M channels of each pair, ``[2 M, pairs, rows]``.
        pattern: N of M.

    Returns:
        ``[splits, pairs]``.
    """
    found = np.zeros((len(splits_of(pattern.m)), channels.shape[1]))
    step = max(1, CHUNK // channels.shape[1])
    for row in range(0, channels.shape[2], step):
        part = channels[:, :, row : row + step]
        if pattern.m <= ALL_SPLITS_UP_TO:
            found += _of_all_splits(part, pattern)
        else:
            found += _of_exchanges(part, pattern)
    return found


def _of_all_splits(channels: Array, pattern: NMPattern) -> Array:
    kept = _kept_of_sets(channels, pattern)
    return np.stack([kept[one] + kept[two] for one, two in splits_of(pattern.m)])


def _kept_of_sets(channels: Array, pattern: NMPattern) -> dict[Half, Array]:
    """Kept by each set of M channels, which is half of a split."""
    n, m = pattern.n, pattern.m
    sets = list(combinations(range(2 * m), m))
    if m != 4 or n == m:
        return {half: top_sum([channels[c] for c in half], n) for half in sets}
    # Two pairs of a set: the best two of four are both of one pair, or the higher of
    # each. What pairs can contribute is computed once.
    pairs: dict[Half, int] = {p: k for k, p in enumerate(combinations(range(8), 2))}
    scratch, shape = own_scratch(), channels.shape[1:]
    both, ends = (
        scratch.take(use, channels.dtype, (len(pairs), *shape))
        for use in ("both", "ends")
    )
    end = np.minimum if n == 3 else np.maximum
    for pair, k in pairs.items():
        one, two = pair
        np.add(channels[one], channels[two], out=both[k])
        end(channels[one], channels[two], out=ends[k])
    kept, other = scratch.take("kept", channels.dtype, (2, *shape))
    found = {}
    for half in sets:
        front, back = pairs[half[:2]], pairs[half[2:]]
        end(ends[front], ends[back], out=kept)  # n = 1: the highest; n = 3: the lowest
        if n == 2:
            np.maximum(both[front], both[back], out=kept)
            np.add(ends[front], ends[back], out=other)
            np.maximum(kept, other, out=kept)
        elif n == 3:
            np.add(both[front], both[back], out=other)
            np.subtract(other, kept, out=kept)
        found[half] = kept.sum(axis=-1)
    return found


def _of_exchanges(channels: Array, pattern: NMPattern) -> Array:
    """Exchange one channel for one: what leaves a stripe frees a place in it.

    With t the N-th of those that stay, a channel c that enters adds max(c - t, 0).
    """
    m = pattern.m
    halves = channels[:m], channels[m:]
    (kept, least), (kept_too, least_too) = (_without_one(h, pattern.n) for h in halves)
    now = sum(top_sum(list(half), pattern.n) for half in halves)
    found = [np.asarray(now)]
    for leaving in reversed(range(m)):
        gains = np.maximum(halves[1], least[leaving]).sum(axis=-1)
        gains += np.maximum(least_too, halves[0][leaving]).sum(axis=-1)
        found += list(gains + kept[leaving] + kept_too)
    return np.stack(found)


def _without_one(half: Array, n: int) -> tuple[Array, Array]:
    """Without each of M channels: the sum of the N - 1 highest, and the N-th highest.

    Returns:
        ``[M, pairs]`` and ``[M, pairs, rows]``.
    """
    members = -np.sort(-half, axis=0)
    nth, next_one = members[n - 1], members[n]
    among = half >= nth  # of equal ones any may be the N-th: the values are the same
    least = np.where(among, next_one, nth)
    above = members[: n - 1].sum(axis=0)
    kept = np.where(among, above + nth - half, above)
    return kept.sum(axis=-1), least


def top_sum(members: list[Array], n: int) -> Array:
    """The sum over all rows of the N highest members, ``[..., rows]`` to ``[...]``."""
    top: list[Array] = []
    for value in members:
        inserted = []
        for higher in top:
            inserted.append(np.maximum(higher, value))
            value = np.minimum(higher, value)
        top = [*inserted, value][:n]
    total: Array = np.sum([values.sum(axis=-1) for values in top], axis=0)
    return total
