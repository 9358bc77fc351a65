"""A replay decides what the rule decides, and says who decided."""

import random

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
from step_cli.autoswitch.replay import STEPS_AFTER, Replay


@pytest.mark.parametrize("name", CRITERION_NAMES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=40)
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
    reasons = [(sample.step, rules[0].update(sample)) for sample in stream]
    fired = [(step, reason) for step, reason in reasons if reason is not None]
    replay = replayed(rules[1], stream)
    assert (replay.switch_step, replay.reason) == (fired or [(None, "never")])[0]


def replayed(rule: SwitchRule, stream: list[VarianceSample]) -> Replay:
    replay = Replay(rule)
    for sample in stream:
        replay.update(sample)
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


def test_other_thresholds_decide_where_it_is_said() -> None:
    stream = samples(WORKED, 0.5)
    replay = replayed(SwitchRule(AutoSwitch(0.5, 1e-9), 0, 10), stream)
    assert replay.other_eps is not None
    for eps, step in replay.other_eps.items():
        other = replayed(SwitchRule(AutoSwitch(0.5, eps), 0, 10), stream)
        assert (other.switch_step, other.clipped) == (step, False)
    assert max(replay.other_eps) == 1.0  # the first mean is 1.25
    assert replay.other_eps[0.3] == 6


def grown(sizes: list[float], beta2: float) -> list[VarianceSample]:
    """A stream whose bias-corrected v has these L1 norms, of two coordinates."""
    return [
        VarianceSample(t, 2, size * (1 - beta2**t), 1.0, 0.1, -1.0)
        for t, size in enumerate(sizes, start=1)
    ]


def test_how_far_v_grows_after_the_switch() -> None:
    sizes = [1.0, 3.0, 2.0, 30.0, 2.0, 5.0]
    found = {}
    for step in range(1, 7):
        replay = Replay(SwitchRule(Fixed(step)), beta2=0.9)
        for sample in grown(sizes, 0.9):
            replay.update(sample)
        found[step] = replay.v_growth, replay.outgrown
    expected = [
        max(sizes[step:]) / sizes[step - 1] if sizes[step:] else None
        for step in range(1, 7)
    ]
    assert [growth for growth, _ in found.values()] == [
        None if growth is None else pytest.approx(growth) for growth in expected
    ]
    assert [outgrown for _, outgrown in found.values()] == [True] * 3 + [False] * 3


def test_only_the_steps_of_table_1_are_looked_at() -> None:
    near, far = ([1.0] * 2000 for _ in "ab")
    near[STEPS_AFTER], far[STEPS_AFTER + 1] = 20.0, 20.0  # steps 1002 and 1003
    for sizes, expected in ((near, 20.0), (far, 1.0)):
        replay = Replay(SwitchRule(Fixed(1)), beta2=0.9)
        for sample in grown(sizes, 0.9):
            replay.update(sample)
        assert replay.v_growth == pytest.approx(expected)


@pytest.mark.parametrize("after", [0.0, 1.0])
def test_a_variance_that_was_zero_is_outgrown_by_any_other(after: float) -> None:
    """By how many times, no number says."""
    replay = Replay(SwitchRule(Fixed(1)), beta2=0.9)
    for sample in grown([0.0, after, 0.0], 0.9):
        replay.update(sample)
    assert (replay.v_growth, replay.outgrown) == (None, after > 0)
