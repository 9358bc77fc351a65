"""A frozen variance that gradients have outgrown is told, and a sound one is not."""

import logging
from collections.abc import Iterable

import pytest
import torch

from step_cli import sparse_adamw
from step_cli.autoswitch.replay import OUTGROWN
from step_cli.training.frozen_variance import LOGGED, FrozenVariance


def told(caplog: pytest.LogCaptureFixture, ratios: Iterable[float | None]) -> int:
    """How often it warned."""
    watch = FrozenVariance()
    with caplog.at_level(logging.WARNING):
        for step, ratio in enumerate(ratios, start=1):
            watch.look({"step": step, "variance_ratio": ratio}, 7)
    return len(caplog.records)


def test_gradients_that_outgrow_it_are_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert told(caplog, [None, 1.0, *[100.0] * 9]) == 1
    message = caplog.records[0].getMessage()
    assert "100 times the variance that was frozen after step 7" in message
    assert "10.0 times too long" in message


@pytest.mark.parametrize(
    "ratios",
    [
        [None] * 9,
        [OUTGROWN] * 9,
        [100.0] * (LOGGED - 1),
        [1.0, 1.0, 100.0] * 9,  # single batches
    ],
)
def test_what_is_sound_or_an_exception_is_not_told(
    ratios: list[float | None], caplog: pytest.LogCaptureFixture
) -> None:
    assert told(caplog, ratios) == 0


def test_the_ratio_is_that_of_squared_gradients_to_the_corrected_variance() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 4)
    optimizer = sparse_adamw(layer, recipe="step", switch=3, betas=(0.9, 0.9))
    optimizer.watch_masks = True
    grads = []
    for step in range(1, 6):
        grad = torch.randn(4, 8) * step
        layer.weight.grad, layer.bias.grad = grad.clone(), torch.ones(4)
        optimizer.step()
        grads.append(grad)
        if step <= 3:
            assert optimizer.variance_ratio() is None
            continue
        v = sum(0.1 * 0.9 ** (2 - i) * g.square() for i, g in enumerate(grads[:3]))
        v = v / (1 - 0.9**3)
        expected = grad.square().mean() / v.mean()
        assert optimizer.variance_ratio() == pytest.approx(float(expected), rel=1e-5)


def test_recipes_that_freeze_nothing_have_no_ratio() -> None:
    layer = torch.nn.Linear(8, 4)
    optimizer = sparse_adamw(layer, recipe="sr-ste")
    optimizer.watch_masks = True
    for _ in range(2):
        layer.weight.grad = torch.ones(4, 8)
        optimizer.step()
    assert optimizer.flip_rate() is not None
    assert optimizer.variance_ratio() is None
