"""The switch criteria on the hand-worked examples."""

import math

import pytest
from autoswitch.variance_streams import WORKED as GRADIENTS
from autoswitch.variance_streams import samples
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.autoswitch.autoswitch import (
    CRITERION_NAMES,
    AutoSwitch,
    Fixed,
    GeometricAutoSwitch,
    RelativeAutoSwitch,
    RelativeNorm,
    Staleness,
    SwitchRule,
    VarianceSample,
    WindowMean,
    make_criterion,
    window_of,
)


def switch_step(rule: SwitchRule, stream: list[VarianceSample]) -> int | None:
    return next((s.step for s in stream if rule.update(s) is not None), None)


@pytest.mark.parametrize(
    ("beta2", "window"), [(0.999, 1000), (0.95, 20), (0.98, 50), (0.99, 100), (0.5, 2)]
)
def test_the_window_is_rounded_not_floored(beta2: float, window: int) -> None:
    assert window_of(beta2) == window


@pytest.mark.parametrize(
    ("eps", "t_min", "t_max", "expected"),
    [
        (0.3, 0, None, 6),
        (0.5, 0, None, 5),  # strict: the mean of exactly 0.5 at t = 4 does not fire
        (0.3, 2, 10, 6),
        (0.3, 8, None, 9),
        (1e-8, 0, 10, 11),
    ],
)
def test_autoswitch_on_the_worked_example(
    eps: float, t_min: int, t_max: int | None, expected: int
) -> None:
    rule = SwitchRule(AutoSwitch(0.5, eps), t_min, t_max)
    assert switch_step(rule, samples(GRADIENTS, 0.5)) == expected


def test_the_windowed_means_of_the_worked_example() -> None:
    criterion = AutoSwitch(0.5, 0.3)
    values = [criterion.update(sample) for sample in samples(GRADIENTS, 0.5)[:6]]
    assert values[0] is None
    assert values[1:] == pytest.approx([1.25, 1.0, 0.5, 0.41875, 0.253125])


def test_geometric_means_of_the_worked_example() -> None:
    criterion = GeometricAutoSwitch(0.5, 0.3)
    stream = samples(GRADIENTS, 0.5)
    changes = [criterion.sample_change(sample) for sample in stream[1:5]]
    assert changes == pytest.approx([1.414214, 0.5, 0.484123, 0.315446], abs=1e-6)
    # The first step has a zero difference: it is left out instead of giving zero.
    assert criterion.sample_change(stream[0]) == pytest.approx(2.0)


def test_the_geometric_mean_is_below_eps_where_the_printed_formula_is_not() -> None:
    sample = VarianceSample(1, 2, 1.0, 1.0, 0.00101, math.log(1e-3 * 1e-5) / 2)
    assert GeometricAutoSwitch(0.5).sample_change(sample) == pytest.approx(1e-4)


def test_no_criterion_fires_before_its_window_is_full() -> None:
    tiny = [VarianceSample(t, 4, 1e-30, 1e-30, 1e-30, -80.0) for t in range(1, 200)]
    rule = SwitchRule(AutoSwitch(0.99))
    assert switch_step(rule, tiny) == 100


@pytest.mark.parametrize("beta2", [0.9, 0.95, 0.99, 0.999])
def test_equation_10_fires_at_step_3_on_constant_gradients(beta2: float) -> None:
    stream = samples([(1.0, 2.0)] * 5, beta2)
    assert switch_step(SwitchRule(RelativeNorm()), stream) == 3


@pytest.mark.parametrize(
    ("before", "after", "fires"), [(4, 5, True), (1, 2, False), (5, 3, True)]
)
def test_equation_10_on_its_examples(before: float, after: float, fires: bool) -> None:
    criterion = RelativeNorm()
    criterion.update(VarianceSample(1, 1, before, before, 1.0, 0.0))
    value = criterion.update(VarianceSample(2, 1, after, after, 1.0, 0.0))
    assert value is not None and criterion.met(value) is fires


def test_equation_11_fires_after_one_window_on_constant_gradients() -> None:
    stream = samples([(1.0,)] * 2001, 0.999)
    criterion = Staleness(0.999)
    values = [criterion.update(sample) for sample in stream]
    assert values[:1000] == [None] * 1000
    assert values[1000] == pytest.approx(632.67, abs=0.01)
    assert values[1999] == pytest.approx(1.368, abs=0.001)
    assert switch_step(SwitchRule(Staleness(0.999)), stream) == 1001


@pytest.mark.parametrize(
    ("before", "after", "fires"), [(10, 9.7, True), (10, 9.5, False), (10, 30, True)]
)
def test_equation_11_on_its_examples(before: float, after: float, fires: bool) -> None:
    criterion = Staleness(0.5, window=1)
    criterion.update(VarianceSample(1, 1, before, 1.0, 1.0, 0.0))
    value = criterion.update(VarianceSample(2, 1, after, 1.0, 1.0, 0.0))
    assert value is not None and criterion.met(value) is fires


@given(st.floats(1e-6, 1e6), st.integers(0, 1000))
@settings(max_examples=40)
def test_our_criterion_ignores_the_scale_of_the_loss(scale: float, seed: int) -> None:
    import random

    rng = random.Random(seed)
    gradients = [(rng.gauss(0, 1), rng.gauss(0, 3)) for _ in range(120)]
    steps = [
        switch_step(SwitchRule(RelativeAutoSwitch(0.9)), samples(gradients, 0.9, s))
        for s in (1.0, scale)
    ]
    assert steps[0] == steps[1]


def test_autoswitch_samples_scale_with_the_square_of_the_loss() -> None:
    one, three = samples(GRADIENTS, 0.5), samples(GRADIENTS, 0.5, scale=3.0)
    for a, b in zip(one, three, strict=True):
        assert b.dv_l1 == pytest.approx(9 * a.dv_l1)


def test_our_criterion_waits_while_gradients_grow() -> None:
    growing = samples([(1.2**t,) for t in range(60)], 0.9)
    assert switch_step(SwitchRule(RelativeAutoSwitch(0.9)), growing) is None
    steady = samples([((-1.0) ** t * (1 + t % 3),) for t in range(60)], 0.9)
    assert switch_step(SwitchRule(RelativeAutoSwitch(0.9)), steady) is not None


def test_a_fixed_step_is_not_clipped() -> None:
    rule = SwitchRule(Fixed(3), t_min=10, t_max=20)
    stream = samples(GRADIENTS, 0.5)
    assert switch_step(rule, stream) == 3
    assert SwitchRule(Fixed(3)).update(stream[2]) == "fixed"


@pytest.mark.parametrize("name", CRITERION_NAMES)
@given(cut=st.integers(1, 80), seed=st.integers(0, 100))
@settings(max_examples=15)
def test_a_criterion_continues_from_its_state(name: str, cut: int, seed: int) -> None:
    import random

    rng = random.Random(seed)
    stream = samples([(rng.gauss(0, 1), rng.gauss(0, 3)) for _ in range(100)], 0.9)
    whole = make_criterion(name, beta2=0.9, step=50)
    first, second = (make_criterion(name, beta2=0.9, step=50) for _ in range(2))
    expected = [whole.update(sample) for sample in stream]
    found = [first.update(sample) for sample in stream[:cut]]
    second.load(first.state())
    found += [second.update(sample) for sample in stream[cut:]]
    assert found == expected


def test_the_window_mean_forgets_large_values() -> None:
    mean = WindowMean(3)
    values = [mean.add(value) for value in (1e16, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)]
    assert values[-1] == 1.0
