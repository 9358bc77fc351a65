"""What the best way to deal the channels of two stripes of M anew would gain.

Up to M = 4 all splits of 2 M channels are tried, 35 for 2:4; above, all exchanges of
one channel for one. Sums are in fp64, so that rounding hardly ever decides.
"""

from functools import lru_cache, reduce
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.nm.pattern import NMPattern
from step_cli.nm.threads import own_scratch

Array = npt.NDArray[Any]
Half = tuple[int, ...]  # M of the 2 M channels of two stripes
Split = tuple[Half, Half]

ALL_SPLITS_UP_TO = 4  # M; from 8 on there are thousands of splits for each pair
CHUNK = 1 << 15  # magnitudes of one channel looked at together: they fit the cache
PAIRS = 7  # of stripes, whose splits are summed up together


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
    step = max(1, CHUNK // channels.shape[1])
    starts = range(0, channels.shape[2], step)
    parts = (channels[:, :, row : row + step] for row in starts)
    if pattern.m <= ALL_SPLITS_UP_TO:
        return _of_all_splits(reduce(np.add, map(_sums_by_rivals, parts)), pattern)
    return reduce(np.add, (_of_exchanges(part, pattern) for part in parts))


def _sums_by_rivals(channels: Array) -> Array:
    """Sums of each channel's magnitudes, by which of the others are higher in the row.

    That is all a split need know: a half keeps a channel in the rows in which fewer
    than N of its rivals in this half are higher.

    Args:
        channels: ``[C, pairs, rows]``.

    Returns:
        ``[pairs, C, 2 ** (C - 1)]``, the sets of higher ones in the order of
        `_rival_bits`.
    """
    count, pairs, _ = channels.shape
    scratch = own_scratch()
    higher = scratch.take("higher", np.uint8, channels.shape)
    rivals = scratch.take("rivals", np.uint8, channels.shape[1:])
    places = scratch.take("places", np.int64, channels.shape[1:])
    sets = 1 << count - 1
    first = np.arange(0, pairs * sets, sets)[:, None]
    sums = np.empty((pairs, count, sets))
    for c, bits in enumerate(_rival_bits(count)):
        is_higher = higher.view(np.bool_)
        # Of equal ones the first counts as higher.
        np.greater_equal(channels[:c], channels[c], out=is_higher[:c])
        np.greater(channels[c:], channels[c], out=is_higher[c:])
        np.multiply(higher, bits[:, None, None], out=higher)
        np.add.reduce(higher, axis=0, dtype=np.uint8, out=rivals)
        np.add(rivals, first, out=places)
        found = np.bincount(places.ravel(), channels[c].ravel(), pairs * sets)
        sums[:, c] = found.reshape(pairs, sets)
    return sums


@lru_cache
def _rival_bits(count: int) -> npt.NDArray[np.uint8]:
    """The bit that each of ``count`` channels has for each other; 0 for itself."""
    bits = [
        [0 if r == c else 1 << r - (r > c) for r in range(count)] for c in range(count)
    ]
    return np.array(bits, np.uint8)


def _of_all_splits(sums: Array, pattern: NMPattern) -> Array:
    kept = _kept_by_splits(pattern)
    # Few pairs at a time: BLAS would start threads of its own, within ours.
    parts = (
        sums[k : k + PAIRS].reshape(-1, len(kept)) for k in range(0, len(sums), PAIRS)
    )
    return np.concatenate([part @ kept for part in parts]).T


@lru_cache
def _kept_by_splits(pattern: NMPattern) -> Array:
    """1 where a split keeps a channel against a set of higher ones, else 0.

    ``[C * 2 ** (C - 1), splits]``, the rows as in `_sums_by_rivals`.
    """
    bits = _rival_bits(2 * pattern.m)
    sets = np.arange(1 << len(bits) - 1)
    splits = splits_of(pattern.m)
    kept = np.zeros((len(bits), len(sets), len(splits)))
    for k, split in enumerate(splits):
        for half in split:
            for c in half:
                higher = np.bitwise_count(sets & int(bits[c, list(half)].sum()))
                kept[c, higher < pattern.n, k] = 1
    return kept.reshape(-1, len(splits))


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
