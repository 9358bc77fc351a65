"""Channel permutations against the worked row, a slow search and published sums."""

from itertools import combinations

import numpy as np
import pytest

from step_cli.channels import stripe_splits
from step_cli.channels.permutation import kept_magnitude, search_permutation
from step_cli.channels.stripe_splits import kept_of_splits, splits_of
from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.mask import keep_highest
from step_cli.nm.pattern import NMPattern
from step_cli.nm.tensor_data import Array

ROW = np.array([[4.0, 3, 2, 1, 0, 0, 0, 0]])


def kept(weight: Array, pattern: str) -> float:
    """Of a weight ``[out, in]``."""
    return kept_magnitude(np.abs(weight.T), NMPattern.parse(pattern))


def search(weight: Array, pattern: str, **options: int) -> list[int]:
    found = search_permutation(np.abs(weight.T), NMPattern.parse(pattern), **options)
    return list(found.tolist())


def seeded(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def slowly_kept(columns: list[list[float]], n: int) -> float:
    """Of one stripe, given as its columns."""
    rows = zip(*columns, strict=True)
    return sum(sum(sorted(map(abs, row))[-n:]) for row in rows)


def slow_splits(both: list[int], m: int) -> list[tuple[list[int], list[int]]]:
    """Two halves that do not differ by their order alone, or by one exchange."""
    halves = [list(half) for half in combinations(both, m) if both[0] in half]
    if m > 4:
        halves = [both[:m]]
        for leaving in reversed(range(m)):
            stay = both[:leaving] + both[leaving + 1 : m]
            halves += [[*stay, entering] for entering in both[m:]]
    return [(half, [c for c in both if c not in half]) for half in halves]


def slow_search(weight: Array, pattern: NMPattern) -> list[int]:
    """The search of the paper, everything tried anew in each round."""
    n, m = pattern.n, pattern.m
    columns = weight.T.tolist()
    stripes = [list(range(i, i + m)) for i in range(0, len(columns), m)]

    def kept(split: tuple[list[int], list[int]]) -> float:
        return sum(slowly_kept([columns[c] for c in half], n) for half in split)

    while True:
        gains = []
        for i, j in combinations(range(len(stripes)), 2):
            splits = slow_splits(stripes[i] + stripes[j], m)
            best = max(splits, key=kept)  # the first of equal ones
            gains.append((kept((stripes[i], stripes[j])) - kept(best), i, j, best))
        touched: set[int] = set()
        for gain, i, j, best in sorted(gains):
            if gain < 0 and touched.isdisjoint({i, j}):
                stripes[i], stripes[j] = best
                touched |= {i, j}
        if not touched:
            return [channel for stripe in stripes for channel in stripe]


def test_the_worked_row() -> None:
    swapped = [0, 1, 4, 3, 2, 5, 6, 7]
    twice = [0, 1, 4, 5, 2, 3, 6, 7]
    orders = (list(range(8)), swapped, twice)
    assert [kept(ROW[:, order], "2:4") for order in orders] == [7, 9, 10]
    assert kept(ROW[:, search(ROW, "2:4", escapes=0)], "2:4") == 10


def test_there_are_35_splits_of_8_channels() -> None:
    splits = splits_of(4)
    assert splits[0] == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert len({frozenset(split) for split in splits}) == len(splits) == 35
    assert all(sorted(one + two) == list(range(8)) for one, two in splits)


def test_above_four_each_split_exchanges_one_channel() -> None:
    splits = splits_of(8)
    assert splits[0] == (tuple(range(8)), tuple(range(8, 16)))
    assert len({frozenset(split) for split in splits}) == len(splits) == 65
    assert all(len(set(one) - set(range(8))) == 1 for one, _ in splits[1:])


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "1:2", "2:3", "4:8"])
@pytest.mark.parametrize("levels", [4, 1000])  # few levels: ties are common
def test_it_equals_the_slow_search(pattern: str, levels: int) -> None:
    parsed = NMPattern.parse(pattern)
    shape = (5, (2 if parsed.m == 8 else 4) * parsed.m)
    # Whole numbers, whose sums do not depend on their order.
    weight = np.random.default_rng(levels).integers(-levels, levels, shape) * 1.0
    assert search(weight, pattern, escapes=0) == slow_search(weight, parsed)


@pytest.mark.parametrize("seed", range(5))
def test_of_two_stripes_it_finds_the_best_of_all_orders(seed: int) -> None:
    weight = seeded(6, 8, seed=seed)
    best = max(
        kept(weight[:, one + two], "2:4") for one, two in slow_splits(list(range(8)), 4)
    )
    found = search(weight, "2:4", escapes=0)
    assert kept(weight[:, found], "2:4") == pytest.approx(best, rel=1e-12)


def test_the_published_sums_of_a_random_matrix() -> None:
    # Of the authors' tool: uniform numbers of seed 1; its sums are in fp32.
    weight = np.random.RandomState(1).rand(128, 64)
    half = np.sort(weight, axis=None)[64 * 64 :].sum()
    assert float(weight.sum()) == pytest.approx(4083.169, abs=2e-3)
    assert float(half) == pytest.approx(3060.238, abs=2e-3)
    assert kept(weight, "32:64") == pytest.approx(3042.332, abs=2e-3)
    assert kept(weight, "2:4") == pytest.approx(2852.376, abs=2e-3)
    found = search(weight, "2:4", escapes=0)
    assert kept(weight[:, found], "2:4") == pytest.approx(2919.757, abs=3e-3)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2", "4:8", "1:16", "4:4"])
def test_it_is_a_bijection_that_never_keeps_less(pattern: str) -> None:
    for seed in range(2):
        weight = seeded(6, 32, seed=seed)
        plain = search(weight, pattern, escapes=0)
        found = search(weight, pattern, escapes=8, seed=seed)
        assert sorted(found) == list(range(32))
        orders = (list(range(32)), plain, found)
        sums = [kept(weight[:, order], pattern) for order in orders]
        assert sums == sorted(sums)


def test_escapes_reach_higher_and_a_seed_repeats_them() -> None:
    weight = seeded(16, 32)
    plain, found, again = (
        search(weight, "2:4", escapes=escapes, seed=1) for escapes in (0, 50, 50)
    )
    assert found == again
    assert kept(weight[:, found], "2:4") > kept(weight[:, plain], "2:4")


@pytest.mark.parametrize("pattern", ["1:2", "2:3", "1:4", "2:4", "3:4", "2:5", "7:8"])
def test_what_splits_keep_is_what_their_masks_keep(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe_splits, "CHUNK", 16)  # so that rows are cut
    parsed = NMPattern.parse(pattern)
    m = parsed.m
    channels = np.random.default_rng(m).integers(0, 9, (2 * m, 3, 17)) * 1.0  # ties
    found = kept_of_splits(channels, parsed)
    for split, sums in zip(splits_of(m), found, strict=True):
        for pair in range(3):
            rows = channels[[*split[0], *split[1]], pair].T.astype(np.uint16)
            expected = rows[keep_highest(rows, parsed, 1)].sum()
            assert sums[pair] == expected


def test_a_permuted_network_computes_what_it_did() -> None:
    first, bias, second = seeded(16, 12), seeded(16, seed=1), seeded(8, 16, seed=2)
    inputs = seeded(5, 12, seed=3)
    order = search(second, "2:4")
    assert order != list(range(16))

    def network(first: Array, bias: Array, second: Array) -> Array:
        return np.maximum(inputs @ first.T + bias, 0) @ second.T

    permuted = network(first[order], bias[order], second[:, order])
    np.testing.assert_allclose(permuted, network(first, bias, second), rtol=1e-12)


def test_what_has_nothing_to_gain_is_left_in_order() -> None:
    sparse = np.array([[1.0, 2, 0, 0, 0, 3, 4, 0]])
    for weight in (sparse, np.zeros((2, 8)), sparse + 1e-5, np.ones((3, 4))):
        assert search(weight, "2:4") == list(range(weight.shape[1]))


def test_bad_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="not a multiple of M=4"):
        search(np.ones((2, 6)), "2:4")
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            search(np.full((2, 8), bad), "2:4")
