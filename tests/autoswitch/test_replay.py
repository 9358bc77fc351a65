"""A replay over columns decides what the rule decides step by step."""

import math
import random

import numpy as np
import pytest
from autoswitch.variance_streams import WORKED, random_samples, samples
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.autoswitch.autoswitch import (
    CRITERION_NAMES,
    AutoSwitch,
    Fixed,
    Staleness,
    SwitchRule,
    VarianceSample,
    make_criterion,
)
from step_cli.autoswitch.criterion_values import Delay, passes, values_of
from step_cli.autoswitch.replay import Replay
from step_cli.autoswitch.sample_block import SampleBlock


def blocks(stream: list[VarianceSample], seed: int) -> list[SampleBlock]:
    """The stream cut at random places."""
    rng, out, start = random.Random(seed), [], 0
    while start < len(stream):
        stop = start + rng.choice([1, 2, 7, 40, 1000])
        out.append(SampleBlock.of(stream[start:stop]))
        start = stop
    return out


@pytest.mark.parametrize("name", CRITERION_NAMES)
@given(seed=st.integers(0, 10_000), window=st.sampled_from([None, 1, 2, 13, 64, 500]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_columns_give_the_values_of_single_steps_bit_for_bit(
    name: str, seed: int, window: int | None
) -> None:
    beta2 = random.Random(seed).choice([0.5, 0.9, 0.95])
    stream = random_samples(seed, 150, beta2)
    criteria = [make_criterion(name, beta2=beta2, window=window, step=9) for _ in "ab"]
    expected = [criteria[0].value(sample) for sample in stream]
    values = values_of(criteria[1])
    found = np.concatenate([values(block) for block in blocks(stream, seed)])
    assert [None if math.isnan(v) else v for v in found.tolist()] == expected
    met = passes(criteria[1], found).tolist()
    assert met == [v is not None and criteria[0].met(v) for v in expected]


@pytest.mark.parametrize("name", CRITERION_NAMES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_replay_decides_what_the_rule_decides(name: str, seed: int) -> None:
    rng = random.Random(seed)
    beta2, stream = 0.9, random_samples(seed, 120, 0.9)
    eps = None if name == "autoswitch-relative" else 10 ** rng.uniform(-6, 0)
    t_min = rng.randint(0, 60)
    clip = (t_min, rng.choice([None, t_min + rng.randint(0, 60)]))
    rules = [
        SwitchRule(make_criterion(name, beta2=beta2, eps=eps, step=1 + t_min), *clip)
        for _ in "ab"
    ]
    reasons = [(sample.step, rules[0].observe(sample)) for sample in stream]
    fired = [(step, reason) for step, reason in reasons if reason is not None]
    replay = Replay(rules[1])
    for block in blocks(stream, seed):
        replay.observe(block)
    assert (replay.switch_step, replay.reason) == (fired or [(None, "never")])[0]


def replayed(rule: SwitchRule, stream: list[VarianceSample]) -> Replay:
    replay = Replay(rule)
    replay.observe(SampleBlock.of(stream))
    return replay


def test_who_decided_is_told() -> None:
    stream = samples(WORKED, 0.5)
    found = [
        (replay.decided_by, replay.clipped)
        for replay in (
            replayed(SwitchRule(AutoSwitch(0.5, 0.3), 0, 20), stream),
            replayed(SwitchRule(AutoSwitch(0.5, 0.3), 8, 20), stream),
            replayed(SwitchRule(AutoSwitch(0.5, 2.0), 0, 20), stream),
            replayed(SwitchRule(AutoSwitch(0.5, 1e-9), 0, 10), stream),
            replayed(SwitchRule(AutoSwitch(0.5, 1e-9), 0, 30), stream),
            replayed(SwitchRule(Fixed(3)), stream),
        )
    ]
    assert found == [
        ("threshold", False), ("t_min", True), ("window", True), ("t_max", True),
        ("never", False), ("fixed", False),
    ]  # fmt: skip


def test_the_margin_is_how_often_the_value_passes() -> None:
    stream = samples(WORKED, 0.5)
    passing = replayed(SwitchRule(AutoSwitch(0.5, 0.3)), stream)
    assert passing.margin == pytest.approx(0.3 / 0.253125)
    missing = replayed(SwitchRule(AutoSwitch(0.5, 0.1), 0, 5), stream)
    assert missing.margin == pytest.approx(0.1 / 0.253125)
    growing = replayed(SwitchRule(Staleness(0.5)), stream)
    assert growing.margin == pytest.approx(5 / 2 / 0.96)
    assert replayed(SwitchRule(Fixed(3)), stream).margin is None


def test_the_ladder_says_where_other_thresholds_decide() -> None:
    stream = samples(WORKED, 0.5)
    replay = replayed(SwitchRule(AutoSwitch(0.5, 1e-9), 0, 10), stream)
    assert replay.ladder is not None
    for eps, step in replay.ladder.steps.items():
        other = replayed(SwitchRule(AutoSwitch(0.5, eps), 0, 10), stream)
        assert (other.switch_step, other.clipped) == (step, False)
    assert max(replay.ladder.steps) == 1.0  # the first mean is 1.25
    assert replay.ladder.steps[0.3] == 6


@given(st.integers(1, 9), st.lists(st.integers(1, 12), max_size=9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_delay_gives_back_what_came_before(size: int, lengths: list[int]) -> None:
    numbers, delay, at, found = np.arange(200.0), Delay(size), 0, []
    for length in lengths:
        found += delay.push(numbers[at : at + length]).tolist()
        at += length
    expected = [math.nan] * min(size, at) + numbers[: max(0, at - size)].tolist()
    assert found == pytest.approx(expected, nan_ok=True)
