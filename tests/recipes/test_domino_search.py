"""DominoSearch: its arithmetic by hand, and as a recipe, alone and in STEP."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import build, train
from torch import nn

from step_cli.errors import UsageError
from step_cli.nm import allocation
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.optim.mask import count_violations
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes import domino_search as domino
from step_cli.recipes import make_recipe
from step_cli.recipes.domino_search import DominoSearch
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw
from step_cli.recipes.step import Step


def uneven() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 16))
    with torch.no_grad():
        model[2].weight *= 20
    return model


def patterns(optimizer: SparseOptimizer) -> list[str]:
    return [str(plan.pattern) for _, plan in optimizer.sparse_parameters()]


def test_each_layer_has_its_own_n() -> None:
    recipe = DominoSearch(density=0.45)
    assert patterns(sparse_adamw(uneven(), "4:8", recipe)) == ["2:8", "4:8"]
    named = list(uneven().named_parameters())
    base = torch.optim.SGD(named, lr=0.1, momentum=0.9)
    assert patterns(sparse(base, recipe, "4:8")) == ["2:8", "4:8"]


def test_the_density_is_the_plans_or_the_one_given() -> None:
    for density, limit in ((None, 0.5), (0.25, 0.25)):
        optimizer = sparse_adamw(uneven(), "4:8", DominoSearch(density=density))
        layers = list(optimizer.sparse_parameters())
        kept = sum(p.numel() * plan.pattern.density for p, plan in layers)
        assert 0.6 * limit <= kept / sum(p.numel() for p, _ in layers) <= limit


@pytest.mark.parametrize("inside_step", [False, True])
def test_training_holds_each_pattern(inside_step: bool) -> None:
    recipe = Step(inner=DominoSearch()) if inside_step else DominoSearch()
    model, optimizer = build(recipe, "2:8", switch=4)
    train(model, optimizer, 8)
    for p, plan in optimizer.sparse_parameters():
        assert count_violations(p, plan.pattern, plan.axis) == 0
    assert optimizer.phase == "mask-learning"


def test_patterns_given_by_the_user_stay() -> None:
    model = uneven()
    groups = [{"params": [model[0].weight], "pattern": "1:4", "axis": 1}]
    assert patterns(sparse_adamw(groups, recipe="domino-search")) == ["1:4"]


def test_options_reach_the_recipe_inside_step() -> None:
    recipe = make_recipe("step", {"inner": "domino-search", "density": 0.3})
    assert recipe == Step(inner=DominoSearch(density=0.3))


def test_an_impossible_density_is_refused() -> None:
    with pytest.raises(UsageError, match=r"density 1\.5"):
        DominoSearch(density=1.5)


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
@settings(max_examples=40)
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


def test_a_density_below_one_weight_a_group_is_refused() -> None:
    plan = {"a": NMSpec(NMPattern(2, 4), 1)}
    with pytest.raises(UsageError, match="one weight of every group"):
        domino.allocate({"a": torch.randn(4, 8)}, plan, 0.1)
