"""DominoSearch's arithmetic against worked numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.errors import UsageError
from step_cli.nm import allocation
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.recipes import domino_allocation as domino

PLAN = NMSpec(NMPattern(2, 4), 1)
TOY = torch.tensor(
    [[0.1, 0.3, 0.8, 0.9], [0.2, 0.25, 0.5, 0.6], [0.4] * 4, [0.05, 0.5, 0.6, 0.7]]
)


def test_erk_of_two_square_layers() -> None:
    found = allocation.erk_sparsities({"a": (64, 64), "b": (256, 256)}, 0.75)
    assert found == {"a": pytest.approx(0.15), "b": pytest.approx(0.7875)}
    kept = (1 - found["a"]) * 4096 + (1 - found["b"]) * 65536
    assert kept == pytest.approx(0.25 * (4096 + 65536))


def test_erk_leaves_a_small_layer_dense() -> None:
    found = allocation.erk_sparsities(
        {"a": (4, 4), "b": (256, 256), "c": (64, 128)}, 0.5
    )
    assert found["a"] == 0
    counts = {"a": 16, "b": 65536, "c": 8192}
    kept = sum((1 - found[name]) * n for name, n in counts.items())
    assert kept == pytest.approx(0.5 * (16 + 65536 + 8192), abs=1)


def test_the_toy_vote() -> None:
    limits = domino.thresholds(TOY, PLAN)
    assert limits.flatten().tolist() == pytest.approx([0.2, 0.225, 0.4, 0.275])
    # At the first check N falls without any shrinking: 3, 3, 0, 3 exceed the limits.
    assert domino.vote(TOY, limits, 4, PLAN) == 1
    assert domino.vote(0.6 * TOY, limits, 3, PLAN) == 0.75
    assert domino.vote(0.35 * TOY, limits, 2, PLAN) == 0.75


def test_generic_weights_always_vote_at_the_first_check() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    plan = NMSpec(NMPattern(1, 16), 1)
    assert domino.vote(weight, domino.thresholds(weight, plan), 16, plan) == 1


def test_only_powers_of_two_and_m_are_committed() -> None:
    assert allocation.allowed(16) == [1, 2, 4, 8, 16]
    assert allocation.allowed(12) == [1, 2, 4, 8, 12]
    assert allocation.allowed(1) == [1]


def test_factors_pull_dense_and_costly_layers_and_let_sparse_ones_grow() -> None:
    erk, operations = {"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 4.0}
    phi = domino.factors({"a": 1.0, "b": 1.0}, erk, operations)
    assert phi == {"a": 0.5 + 0.125, "b": 1.0}
    phi = domino.factors({"a": 1.0, "b": 0.25}, erk, operations)
    assert phi == {"a": 0.5 + 0.5, "b": pytest.approx(-0.25 + 0.5)}
    # All within 0.01 of their share: only operations count.
    phi = domino.factors({"a": 0.5, "b": 0.5}, erk, operations)
    assert phi == {"a": 0.125, "b": 0.5}


def test_the_search_stops_within_its_tolerance() -> None:
    counts = {"a": 100, "b": 900}
    patterns = {"a": NMPattern(4, 4), "b": NMPattern(2, 4)}
    assert domino.overall_sparsity(patterns, counts) == pytest.approx(0.45)
    assert domino.reached(patterns, counts, 0.4505)
    assert not domino.reached(patterns, counts, 0.452)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.floats(0.07, 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_allocation_fits_the_budget_and_wastes_little(
    sizes: list[int], density: float
) -> None:
    generator = torch.Generator().manual_seed(len(sizes))
    weights = {
        f"layer{i}": torch.randn(8 * size, 16 * size, generator=generator)
        for i, size in enumerate(sizes)
    }
    plan = dict.fromkeys(weights, NMSpec(NMPattern(2, 16), 1))
    found = domino.allocate(weights, plan, density)
    patterns = {name: layer.pattern for name, layer in found.items()}
    counts = {name: weight.numel() for name, weight in weights.items()}
    kept = 1 - domino.overall_sparsity(patterns, counts)
    assert kept <= density * (1 + 1e-9)
    assert all(p.n in allocation.allowed(16) for p in patterns.values())
    for name, pattern in patterns.items():  # no layer could have its next N as well
        if pattern.n < 16:
            more = {**patterns, name: NMPattern(2 * pattern.n, 16)}
            assert 1 - domino.overall_sparsity(more, counts) > density


def test_allocation_keeps_more_where_the_weights_are() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(32, 32, generator=generator) for name in "ab"}
    weights["b"] *= 10
    plan = dict.fromkeys("ab", NMSpec(NMPattern(2, 8), 1))
    found = domino.allocate(weights, plan, 0.375)
    assert found["a"].pattern.n < found["b"].pattern.n


def test_an_impossible_density_is_refused() -> None:
    plan = {"a": NMSpec(NMPattern(2, 4), 1)}
    with pytest.raises(UsageError, match="one weight of every group"):
        domino.allocate({"a": torch.randn(4, 8)}, plan, 0.1)
