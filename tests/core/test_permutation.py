"""Channel permutations against the worked row, a slow search and published sums."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from step_cli.core.pattern import NMPattern
from step_cli.core.permutation import _splits, kept_magnitude, search_permutation
from step_cli.errors import NonFiniteError, UsageError

ROW = torch.tensor([[4.0, 3, 2, 1, 0, 0, 0, 0]])


def seeded(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


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


def slow_search(weight: Tensor, pattern: NMPattern) -> list[int]:
    """The search as the paper tells it, everything tried anew in each round."""
    n, m = pattern.n, pattern.m
    columns = weight.t().tolist()
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
    kept = [
        kept_magnitude(ROW[:, order], "2:4") for order in (range(8), swapped, twice)
    ]
    assert kept == [7, 9, 10]
    found = search_permutation(ROW, "2:4", escapes=0)
    assert kept_magnitude(ROW[:, found], "2:4") == 10


def test_there_are_35_splits_of_8_channels() -> None:
    splits = _splits(4)
    assert splits[0] == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert len({frozenset(split) for split in splits}) == len(splits) == 35
    assert all(sorted(one + two) == list(range(8)) for one, two in splits)


def test_above_four_each_split_exchanges_one_channel() -> None:
    splits = _splits(8)
    assert splits[0] == (tuple(range(8)), tuple(range(8, 16)))
    assert len({frozenset(split) for split in splits}) == len(splits) == 65
    assert all(len(set(one) - set(range(8))) == 1 for one, _ in splits[1:])


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "1:2", "2:3", "4:8"])
@pytest.mark.parametrize("levels", [4, 1000])  # few levels: ties are common
def test_it_equals_the_slow_search(pattern: str, levels: int) -> None:
    parsed = NMPattern.parse(pattern)
    shape = (5, (2 if parsed.m == 8 else 4) * parsed.m)
    generator = torch.Generator().manual_seed(levels)
    # Whole numbers, whose sums do not depend on their order.
    weight = torch.randint(-levels, levels, shape, generator=generator).float()
    found = search_permutation(weight, parsed, escapes=0)
    assert found.tolist() == slow_search(weight, parsed)


@pytest.mark.parametrize("seed", range(5))
def test_of_two_stripes_it_finds_the_best_of_all_orders(seed: int) -> None:
    weight = seeded(6, 8, seed=seed)
    best = max(
        kept_magnitude(weight[:, one + two], "2:4")
        for one, two in slow_splits(list(range(8)), 4)
    )
    found = search_permutation(weight, "2:4", escapes=0)
    assert kept_magnitude(weight[:, found], "2:4") == pytest.approx(best, rel=1e-12)


def test_the_published_sums_of_a_random_matrix() -> None:
    # Of the authors' tool: uniform numbers of seed 1; its sums are in fp32.
    drawn = np.random.RandomState(1).rand(128, 64)
    weight = torch.from_numpy(drawn)
    half = weight.flatten().sort().values[64 * 64 :].sum()
    assert float(weight.sum()) == pytest.approx(4083.169, abs=2e-3)
    assert float(half) == pytest.approx(3060.238, abs=2e-3)
    assert kept_magnitude(weight, "32:64") == pytest.approx(3042.332, abs=2e-3)
    assert kept_magnitude(weight, "2:4") == pytest.approx(2852.376, abs=2e-3)
    found = search_permutation(weight, "2:4", escapes=0)
    assert kept_magnitude(weight[:, found], "2:4") == pytest.approx(2919.757, abs=3e-3)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2", "4:8", "1:16", "4:4"])
def test_it_is_a_bijection_that_never_keeps_less(pattern: str) -> None:
    for seed in range(2):
        weight = seeded(6, 32, seed=seed)
        plain = search_permutation(weight, pattern, escapes=0)
        found = search_permutation(weight, pattern, escapes=8, seed=seed)
        assert found.sort().values.tolist() == list(range(32))
        kept = [
            kept_magnitude(weight[:, order], pattern)
            for order in (torch.arange(32), plain, found)
        ]
        assert kept == sorted(kept)


def test_escapes_reach_higher_and_a_seed_repeats_them() -> None:
    weight = seeded(16, 32)
    plain, found, again = (
        search_permutation(weight, "2:4", escapes=escapes, seed=1)
        for escapes in (0, 50, 50)
    )
    assert torch.equal(found, again)
    kept = [kept_magnitude(weight[:, order], "2:4") for order in (plain, found)]
    assert kept[1] > kept[0]


def test_a_permuted_network_computes_what_it_did() -> None:
    first, bias, second = seeded(16, 12), seeded(16, seed=1), seeded(8, 16, seed=2)
    inputs = seeded(5, 12, seed=3)
    order = search_permutation(second, "2:4")
    assert order.tolist() != list(range(16))

    def network(first: Tensor, bias: Tensor, second: Tensor) -> Tensor:
        return functional.linear(functional.linear(inputs, first, bias).relu(), second)

    permuted = network(first[order], bias[order], second[:, order])
    torch.testing.assert_close(permuted, network(first, bias, second))


def test_convolutions_and_conv1d_are_searched_along_their_axis() -> None:
    weight = seeded(4, 16, 3, 3)
    order = search_permutation(weight, "2:4", escapes=0)
    flat = weight.movedim(1, 3).reshape(-1, 16)  # taps are rows of their own
    assert torch.equal(search_permutation(flat, "2:4", escapes=0), order)
    assert torch.equal(search_permutation(flat.t(), "2:4", 0, escapes=0), order)
    assert kept_magnitude(weight, "2:4") == pytest.approx(kept_magnitude(flat, "2:4"))


def test_what_has_nothing_to_gain_is_left_in_order() -> None:
    sparse = torch.tensor([[1.0, 2, 0, 0, 0, 3, 4, 0]])
    for weight in (sparse, torch.zeros(2, 8), sparse + 1e-5, torch.ones(3, 4)):
        order = search_permutation(weight, "2:4")
        assert order.tolist() == list(range(weight.shape[1]))


def test_bad_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="not a multiple of M=4"):
        search_permutation(torch.ones(2, 6), "2:4")
    for bad in (torch.nan, torch.inf):
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            search_permutation(torch.full((2, 8), bad), "2:4")
