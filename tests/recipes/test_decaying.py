"""Decaying masks: schedules of the papers, and what the model holds at each step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import build, masters, train, weights
from torch import Tensor

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.optim.mask import nm_mask
from step_cli.recipes.decaying import (
    DecayingMask,
    MaskDecay,
    check_lengths,
    decay_span,
    exponential_fade,
    geometric_stages,
    linear_fade,
    stage_at,
    stepwise_stages,
)
from step_cli.recipes.step import Step


def kept_per_group(weight: Tensor, m: int) -> int:
    return int(weight.view(-1, m).count_nonzero(1).max())


@pytest.mark.parametrize("dense", [0, 0.1])
def test_n_falls_as_the_schedule_says(dense: float) -> None:
    model, optimizer = build(DecayingMask(dense=dense), "1:8", steps=40)
    seen = []
    for _ in range(40):
        seen.append((optimizer.phase, kept_per_group(weights(model)[0], 8)))
        train(model, optimizer, 1)
    start = round(dense * 40)
    stages = [start + s * (40 - start - 4) // 4 for s in range(4)]
    expected = [
        ("dense", 8) if t < start else
        ("mask-learning", [7, 4, 2, 1][sum(t >= stage for stage in stages) - 1])
        for t in range(40)
    ]  # fmt: skip
    assert seen == expected


def test_the_geometric_structure_keeps_its_density() -> None:
    model, optimizer = build(
        DecayingMask(structure="geometric", dense=0), "1:2", steps=20
    )
    stages = []
    for _ in range(20):
        weight = weights(model)[0]
        assert weight.count_nonzero() == weight.numel() / 2
        stages.append(
            next(m for m in (2, 4, 8, 16) if kept_per_group(weight, m) * 2 <= m)
        )
        train(model, optimizer, 1)
    assert stages == sorted(stages, reverse=True) and set(stages) == {2, 4, 8, 16}


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
def test_pruned_weights_fade(schedule: str) -> None:
    recipe = MaskDecay(schedule=schedule, rate=0.05, fine_tune=4)  # type: ignore[arg-type]
    model, optimizer = build(recipe, steps=20)
    for age in range(20):
        shown, dense = weights(model)[0], masters(model, optimizer)[0]
        pruned = ~nm_mask(dense.abs(), "2:4", 1)
        fade = 1 - 0.05 * age if schedule == "linear" else 0.95122942**age
        fade = fade if age < 16 else 0.0
        torch.testing.assert_close(shown[pruned], fade * dense[pruned])
        assert torch.equal(shown[~pruned], dense[~pruned])
        train(model, optimizer, 1)


def test_a_fixed_switch_takes_the_place_of_the_dense_share() -> None:
    model, optimizer = build("mask-decay", steps=20, switch=5)
    train(model, optimizer, 5)
    assert (optimizer.switch_step, optimizer.phase) == (5, "mask-learning")


def test_step_takes_the_place_of_the_dense_phase() -> None:
    model, optimizer = build(Step(inner=DecayingMask()), "1:8", steps=40, switch=12)
    train(model, optimizer, 12)
    assert optimizer.phase == "mask-learning"
    assert kept_per_group(weights(model)[0], 8) == 7
    frozen = optimizer.state[model[0].weight]["exp_avg_sq"].clone()
    train(model, optimizer, 28)
    assert kept_per_group(weights(model)[0], 8) == 1
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg_sq"], frozen)


def test_the_pruned_twin_is_what_training_would_end_with() -> None:
    model, optimizer = build(DecayingMask(dense=0.5), "1:8", steps=40)
    train(model, optimizer, 3)
    with optimizer.sparse_weights():
        assert kept_per_group(weights(model)[0], 8) == 1


def test_a_schedule_without_a_length_is_refused() -> None:
    for recipe in (DecayingMask(), Step(inner=MaskDecay())):
        with pytest.raises(UsageError, match="total_steps"):
            build(recipe, switch=5)


# 100 steps, 10 dense, 10 of fine-tuning: the step at which each N begins.
TABLES = {
    "1:16": {10: 15, 26: 8, 42: 4, 58: 2, 74: 1},
    "1:8": {10: 7, 30: 4, 50: 2, 70: 1},
    "1:4": {10: 3, 36: 2, 63: 1},
    "2:4": {10: 3, 50: 2},
}


@pytest.mark.parametrize("pattern", TABLES)
def test_stages_begin_where_the_paper_says(pattern: str) -> None:
    stages = stepwise_stages(NMPattern.parse(pattern))
    span = decay_span(100, 10, 10)
    begins, last = {}, None
    for step in range(10, 100):
        n = stage_at(stages, step - 10, span).n
        if n != last:
            begins[step], last = n, n
    assert begins == TABLES[pattern]


def test_m_of_16_halves_and_is_not_divided_by_2s() -> None:
    assert [stage.n for stage in stepwise_stages(NMPattern(1, 16))] == [15, 8, 4, 2, 1]


@pytest.mark.parametrize(
    ("pattern", "stages"),
    [("3:4", [3]), ("1:2", [1]), ("3:8", [7, 4, 3]), ("4:4", [4]), ("1:1", [1])],
)
def test_other_patterns_end_at_their_n(pattern: str, stages: list[int]) -> None:
    assert [s.n for s in stepwise_stages(NMPattern.parse(pattern))] == stages


def test_the_geometric_structure_shrinks_both() -> None:
    stages = geometric_stages(NMPattern(1, 8), width=128)
    assert [str(stage) for stage in stages] == ["8:64", "4:32", "2:16", "1:8"]
    assert len({stage.density for stage in stages}) == 1


def test_groups_too_wide_for_a_layer_are_left_out() -> None:
    stages = geometric_stages(NMPattern(2, 4), width=24)
    assert [str(stage) for stage in stages] == ["4:8", "2:4"]


@given(st.integers(1, 40), st.integers(0, 39), st.integers(0, 200), st.integers(1, 200))
@settings(max_examples=100)
def test_n_never_rises_and_ends_at_the_target(
    m: int, below: int, age: int, span: int
) -> None:
    pattern = NMPattern(max(1, m - below), m)
    stages = stepwise_stages(pattern)
    now, later = stage_at(stages, age, span), stage_at(stages, age + 1, span)
    assert later.n <= now.n
    assert stage_at(stages, span, span) == stages[-1] == pattern


def test_fades_fall_from_1_and_only_the_linear_one_reaches_0() -> None:
    assert linear_fade(0, 2e-4) == exponential_fade(0, 2e-4) == 1
    assert linear_fade(2500, 2e-4) == pytest.approx(0.5)
    assert linear_fade(5000, 2e-4) == linear_fade(9000, 2e-4) == 0
    assert exponential_fade(10_000, 1e-4) == pytest.approx(0.36788, abs=1e-5)
    assert exponential_fade(100_000, 1e-4) > 0


def test_lengths_are_steps_or_shares() -> None:
    assert decay_span(1000, 100, 0.1) == decay_span(1000, 100, 100) == 800
    for bad in (-1, -0.1, 1.5):
        with pytest.raises(UsageError, match="share of all steps"):
            check_lengths(dense=bad)
