"""Schedules against the tables worked from the papers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.recipes.decay import (
    check_lengths,
    decay_span,
    exponential_fade,
    geometric_stages,
    linear_fade,
    stage_at,
    stepwise_stages,
)

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
@settings(max_examples=100, deadline=None, derandomize=True)
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
