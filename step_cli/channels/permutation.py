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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.channels.stripe_splits import CHUNK, kept_of_splits, splits_of, top_sum
from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.nm.threads import in_order, own_scratch

Array = npt.NDArray[Any]

WORTHWHILE = 1e-3  # share of magnitude lost, below which there is nothing to gain
NOISE = 1e-12  # share of magnitude that rounding of sums can feign as a gain


def kept_magnitude(channels: Array, pattern: NMPattern) -> float:
    """The objective: the sum of magnitudes an N:M mask keeps, in fp64.

    Args:
        channels: Magnitudes as `search_permutation` takes them.
        pattern: The N:M pattern.
    """
    order = np.arange(len(channels)).reshape(-1, pattern.m)
    return _objective(channels, order, pattern.n)


def search_permutation(
    channels: Array, pattern: NMPattern, *, escapes: int = 100, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Find an order of the input channels that never keeps less than the present one.

    Above M = 4 pairs of stripes exchange one channel at a time instead of trying every
    split. Time grows with the square of the channels, and with the rows.

    Args:
        channels: Magnitudes, ``[in, rows]``: all that one input meets, in a row.
        pattern: The N:M pattern.
        escapes: How often, where no pair gains, a random exchange is tried; it is
            taken back unless the search ends higher from there.
        seed: Of these exchanges.

    Returns:
        ``[in]``: which channel comes to each place, for ``take`` along the input axis
        and along the producer's output axis.

    Raises:
        UsageError: The number of channels is not a multiple of M.
        NonFiniteError: A weight is NaN or infinite.
    """
    _check(channels, pattern)
    order = np.arange(len(channels)).reshape(-1, pattern.m)
    total = float(channels.sum(dtype=np.float64))
    lost = total - _objective(channels, order, pattern.n)
    if len(order) == 1 or pattern.dense or lost < WORTHWHILE * total:
        return order.ravel()
    gain = np.zeros((len(order), len(order)))
    search = _Search(
        channels, pattern, total * NOISE, order, gain, gain.astype(np.int64)
    )
    search.converge(range(len(order)))
    random = np.random.default_rng(seed)
    for _ in range(escapes):
        search = search.escaped(random)
    return search.order.ravel()


@dataclass
class _Search:
    """Where a search stands.

    Attributes:
        channels: Magnitudes, ``[in, rows]``.
        pattern: N of M.
        noise: What a gain must exceed, in magnitude.
        order: The channels of each stripe, ``[stripes, M]``.
        gain: Of each pair of stripes by its best split, above the diagonal.
        best: The index of that split.
    """

    channels: Array
    pattern: NMPattern
    noise: float
    order: npt.NDArray[np.int64]
    gain: Array
    best: npt.NDArray[np.int64]

    def converge(self, touched: Collection[int]) -> None:
        """Apply the best splits until none gains; ``touched`` are stripes changed."""
        while touched:
            self._refresh(touched)
            touched = self._apply()

    def escaped(self, random: np.random.Generator) -> "_Search":
        """The search that goes on from a random exchange if it ends higher, else this.

        Orders are compared by their objective, so that it never falls.
        """
        stripes, m = self.order.shape
        one, two = random.choice(stripes, 2, replace=False).tolist()
        left, right = random.integers(m, size=2).tolist()
        order = self.order.copy()
        order[one, left], order[two, right] = (
            self.order[two, right],
            self.order[one, left],
        )
        other = replace(self, order=order, gain=self.gain.copy(), best=self.best.copy())
        other.converge({one, two})
        return other if other.objective() > self.objective() + self.noise else self

    def objective(self) -> float:
        return _objective(self.channels, self.order, self.pattern.n)

    def _refresh(self, touched: Collection[int]) -> None:
        """Find the best split of each pair with a touched stripe."""
        changed = np.zeros(len(self.order), np.bool_)
        changed[list(touched)] = True
        one, two = np.triu_indices(len(self.order), 1)
        wanted = changed[one] | changed[two]
        one, two = one[wanted], two[wanted]
        step = max(1, CHUNK // self.channels.shape[1])
        parts = [slice(start, start + step) for start in range(0, len(one), step)]
        tasks = (partial(self._best_splits, one[part], two[part]) for part in parts)
        for part, (gain, best) in zip(parts, in_order(tasks), strict=True):
            self.gain[one[part], two[part]] = gain
            self.best[one[part], two[part]] = best

    def _best_splits(self, one: Array, two: Array) -> tuple[Array, Array]:
        """Gain and index of the best split of each pair of stripes."""
        places = np.concatenate([self.order[one], self.order[two]], axis=1)
        shape = (places.shape[1], len(one), self.channels.shape[1])
        channels = own_scratch().take("channels", self.channels.dtype, shape)
        np.take(self.channels, places.T, axis=0, out=channels)
        kept = kept_of_splits(channels, self.pattern)
        best = kept.argmax(axis=0)
        return np.take_along_axis(kept, best[None], 0)[0] - kept[0], best

    def _apply(self) -> set[int]:
        """Apply gains, the highest first, no stripe twice; return stripes touched."""
        one, two = np.nonzero(self.gain > self.noise)
        splits, touched = splits_of(self.pattern.m), set[int]()
        for k in np.argsort(-self.gain[one, two], kind="stable"):
            pair = [int(one[k]), int(two[k])]
            if touched.isdisjoint(pair):
                halves = splits[int(self.best[pair[0], pair[1]])]
                self.order[pair] = self.order[pair].ravel()[np.array(halves)]
                touched.update(pair)
        return touched


def _check(channels: Array, pattern: NMPattern) -> None:
    if len(channels) % pattern.m:
        raise UsageError(
            f"{len(channels)} input channels, not a multiple of M={pattern.m}; "
            "exclude this layer or pad it"
        )
    if not np.isfinite(channels).all():
        raise NonFiniteError("a weight is NaN or infinite, which cannot be ordered")


def _objective(channels: Array, order: Array, n: int) -> float:
    """Magnitude kept with channels in ``order``, ``[stripes, M]``."""
    return float(top_sum([channels[places] for places in order.T], n).sum())
