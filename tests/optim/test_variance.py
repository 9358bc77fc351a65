"""What a step does to Adam's variance, against torch's own AdamW and by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from autoswitch.variance_streams import WORKED
from torch import Tensor, nn

from step_cli.autoswitch.autoswitch import (
    AutoSwitch,
    Criterion,
    GeometricAutoSwitch,
    SwitchRule,
    VarianceSample,
)
from step_cli.optim.compiled import can_compile
from step_cli.optim.variance import ROW, SUMS, chunked_sums, compiled_sums
from step_cli.recipes.sparse_adamw import sparse_adamw

ALL = frozenset(SUMS)


def adamw_variances(grads: Sequence[Tensor], beta2: float) -> tuple[Tensor, Tensor]:
    """exp_avg_sq of torch.optim.AdamW in fp64 before and after the last gradient."""
    p = nn.Parameter(torch.zeros_like(grads[0], dtype=torch.float64))
    adamw = torch.optim.AdamW([p], betas=(0.9, beta2))
    seen = [torch.zeros_like(p)]
    for grad in grads:
        p.grad = grad.double()
        adamw.step()
        seen.append(adamw.state[p]["exp_avg_sq"].clone())
    return seen[-2], seen[-1]


def sums_by_hand(before: Tensor, after: Tensor) -> list[float]:
    """In plain Python, coordinate by coordinate; unchanged ones have no logarithm."""
    pairs = list(zip(before.flatten().tolist(), after.flatten().tolist(), strict=True))
    changes = [abs(b - a) for a, b in pairs if a != b]
    return [
        math.fsum(b for _, b in pairs),
        math.fsum(b * b for _, b in pairs),
        math.fsum(changes),
        math.fsum(math.log(change) for change in changes),
        len(changes),
    ]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("fast", [False, True])
def test_the_sums_are_those_of_adamws_own_variance(steps: int, fast: bool) -> None:
    if fast and not can_compile():
        pytest.skip("no C++ compiler")
    generator = torch.Generator().manual_seed(steps)
    grads = [torch.randn(40, 30, generator=generator) for _ in range(steps)]
    for grad in grads:
        grad[::4] = 0.0  # dead units, whose variance never changes
    before, after = adamw_variances(grads, 0.99)
    if steps > 1:
        assert (after < before).any() and (after > before).any()
    take = compiled_sums if fast else chunked_sums
    found = take(grads[-1], before.float(), 0.99, ALL).tolist()
    expected = sums_by_hand(before, after)
    assert found[4] == expected[4] == 30 * 30
    assert all(math.isfinite(value) for value in found)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("shape", [(64, 3 * ROW // 64), (7, 11)])
def test_the_change_alone_is_that_among_all_sums(
    shape: tuple[int, int], fast: bool
) -> None:
    if fast and not can_compile():
        pytest.skip("no C++ compiler")
    generator = torch.Generator().manual_seed(0)
    grad, variance = (torch.randn(shape, generator=generator) for _ in range(2))
    variance.square_()
    everything = chunked_sums(grad, variance, 0.99, ALL)
    take = compiled_sums if fast else chunked_sums
    alone = take(grad, variance, 0.99, frozenset({"dv_l1"})).tolist()
    assert alone == pytest.approx([0, 0, float(everything[2]), 0, 0], rel=1e-6)


def test_what_is_not_wanted_stays_zero() -> None:
    grad, variance = torch.ones(4), torch.full((4,), 3.0)
    assert chunked_sums(grad, variance, 0.5, frozenset({"dv_l1"})).tolist() == [
        0, 0, 4, 0, 0,
    ]  # fmt: skip
    norms = chunked_sums(grad, variance, 0.5, frozenset({"v_l2"})).tolist()
    assert norms == [8, 16, 0, 0, 0]


# ------------------------------------------------------------ through the optimizer


def observed(
    columns: Sequence[int],
    criterion: Criterion | None = None,
    loss_scale: float = 1.0,
    gradients: Sequence[tuple[float, ...]] = WORKED,
) -> tuple[int | None, list[VarianceSample]]:
    """Feed each column of gradients to its own parameter, the parameters in order.

    Returns:
        The switch step and each step's sample up to it.
    """
    parts = [nn.Parameter(torch.ones(4, 4)) for _ in gradients[0]]
    ordered = [parts[column] for column in columns]
    group = {"params": ordered, "pattern": "2:4", "axis": 1}
    rule = SwitchRule(criterion or AutoSwitch(0.5, 1e-30), 1, len(gradients) + 9)
    options: dict[str, Any] = {"betas": (0.9, 0.5), "lr": 1e-3, "record": True}
    optimizer = sparse_adamw([group], switch=rule, **options)
    seen = []
    for values in gradients:
        for p, value in zip(parts, values, strict=True):
            # d(c * value * sum(p)) / dp, the gradient of a loss multiplied by c
            (loss_scale * value * p.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        sample = optimizer.variance_sample()
        assert sample is not None
        seen.append(sample)
        if optimizer.switch_step is not None:
            break
    return optimizer.switch_step, seen


@pytest.mark.parametrize("kind", [AutoSwitch, GeometricAutoSwitch])
def test_the_order_of_parameters_does_not_change_the_decision(kind: Any) -> None:
    wide = [(a, b, 0.5 * a + b) for a, b in WORKED]
    found = [
        observed(order, kind(0.5, 0.3), gradients=wide)
        for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0])
    ]
    switches = {switch for switch, _ in found}
    assert len(switches) == 1 and None not in switches
    for _, samples in found[1:]:
        for sample, first in zip(samples, found[0][1], strict=True):
            assert sample == VarianceSample(
                first.step,
                first.d,
                *(
                    pytest.approx(getattr(first, name), rel=1e-12)
                    for name in ("v_l1", "v_l2", "dv_l1", "dv_log")
                ),  # type: ignore[arg-type]
            )


def test_the_worked_example_is_decided_by_the_optimizer_itself() -> None:
    switch, samples = observed([0, 1], AutoSwitch(0.5, 0.3))
    changes = [sample.dv_l1 / sample.d for sample in samples[:6]]
    assert switch == 6
    assert changes == pytest.approx([1, 1.5, 0.5, 0.5, 0.3375, 0.16875])


def test_option_2_is_finite_for_falling_and_unchanged_variances() -> None:
    # The second falls from the third step on, the third never changes.
    gradients = [(2, 2, 0), (2, 2, 0), (2, 0.1, 0), (1, 0, 0), (0, 0, 0)]
    _, samples = observed([0, 1, 2], gradients=gradients)
    logs = [sample.dv_log for sample in samples]
    assert all(log is not None and math.isfinite(log) for log in logs)
    v, expected = [0.0, 0.0], []
    for step in gradients:
        new = [0.5 * a + 0.5 * g * g for a, g in zip(v, step[:2], strict=True)]
        steps = [math.log(abs(b - a)) for a, b in zip(v, new, strict=True)]
        expected.append(sum(steps) / 2)
        v = new
    assert logs == pytest.approx(expected, abs=1e-5)
    criterion = GeometricAutoSwitch(0.5)
    values = [criterion.sample_change(sample) for sample in samples]
    assert all(0 < value < math.inf for value in values)


def test_option_2_without_any_change_has_no_mean() -> None:
    _, samples = observed([0, 1], gradients=[(0, 0)])
    assert [sample.dv_log for sample in samples] == [None]


@pytest.mark.parametrize("scale", [0.25, 3.0, 1e3])
def test_the_change_scales_with_the_square_of_the_loss(scale: float) -> None:
    steps = WORKED[:8]  # later changes are as small as the rounding of v
    _, one = observed([0, 1], gradients=steps)
    _, scaled = observed([0, 1], loss_scale=scale, gradients=steps)
    assert len(one) == len(scaled) == 8
    for a, b in zip(one, scaled, strict=True):
        for criterion in (AutoSwitch(0.5), GeometricAutoSwitch(0.5)):
            changes = [criterion.sample_change(sample) for sample in (a, b)]
            assert changes[1] == pytest.approx(scale**2 * changes[0], rel=1e-4)
