"""Gradients and weights that are not finite are said at once, whatever the recipe."""

import pytest
import torch
from small_training import build, same, train
from torch import Tensor, nn

from step_cli.errors import NonFiniteError
from step_cli.optim import watch as module
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.watch import FiniteWatch
from step_cli.optim.weights import Weight
from step_cli.recipes import RECIPES

TOTAL, SWITCH = 20, 4


def everything(model: nn.Module, optimizer: SparseOptimizer) -> list[Tensor]:
    """Copies of all weights and of all state."""
    states = [t for state in optimizer.state.values() for t in state.values()]
    return [t.detach().clone() for t in (*model.parameters(), *states)]


def weight_of(p: nn.Parameter) -> Weight:
    """The record of a parameter that holds its own dense weights."""
    return Weight(p, "a parameter", 0, None, {}, shown=p.detach(), dense=p.detach())


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
@pytest.mark.parametrize("taken", [0, SWITCH + 2])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_gradient_that_is_not_finite_changes_nothing(
    recipe: str, taken: int, bad: float
) -> None:
    model, optimizer = build(recipe, steps=TOTAL, switch=SWITCH)
    train(model, optimizer, taken)
    before = everything(model, optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[2].weight.grad[3, 5] = bad
    said = f"step {taken + 1}: the gradient of 2.weight is not finite; this step has"
    with pytest.raises(NonFiniteError, match=said):
        optimizer.step()
    assert same(everything(model, optimizer), before)
    assert optimizer.steps_taken == taken
    optimizer.zero_grad()
    train(model, optimizer, 3)  # without that batch it goes on
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("base", ["precondition", "sparse"])
def test_a_gradient_of_a_dense_weight_is_told_too(base: str) -> None:
    model, optimizer = build("step", switch=2)
    train(model, optimizer, 4 if base == "sparse" else 1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[0].bias.grad[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"the gradient of 0\.bias"):
        optimizer.step()


def test_a_large_model_is_looked_at_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_LEAST", 1)
    monkeypatch.setattr(module, "TURNS", 1 << 20)  # one parameter at each step
    model, optimizer = build("ste")
    names = [name for name, _ in model.named_parameters()]
    for _ in range(len(names)):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    with torch.no_grad():  # as a gradient nobody looked at would have left it
        optimizer.state[model[2].weight]["dense"][0, 0] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"2\.weight is not finite, after an earlier grad"
    ):
        for _ in range(len(names)):
            optimizer.step()


def test_nothing_waits_for_a_device_that_has_not_counted_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrived = False
    monkeypatch.setattr(module._Reading, "arrived", property(lambda reading: arrived))
    p = torch.nn.Parameter(torch.ones(8))
    p.grad = torch.full_like(p, torch.nan)
    watch, weights = FiniteWatch(), [weight_of(p)]
    watch.look(1, weights)
    p.grad = torch.ones_like(p)
    watch.look(2, weights)  # neither is said while nothing is there
    arrived = True
    with torch.no_grad():
        p[3] = torch.nan  # what the first step did
    with pytest.raises(NonFiniteError, match="step 3: a parameter is not finite"):
        watch.look(3, weights)


def test_finite_values_whose_sum_is_not_are_let_pass() -> None:
    p = torch.nn.Parameter(torch.full((8,), 1e38))
    p.grad = torch.full_like(p, 3e38)
    watch, weights = FiniteWatch(), [weight_of(p)]
    for step in (1, 2, 3):
        watch.look(step, weights)
    p.grad[2] = torch.inf
    with pytest.raises(NonFiniteError, match="the gradient of a parameter"):
        watch.look(4, weights)


def test_no_gradient_and_no_weights_are_fine() -> None:
    empty, resting = (
        torch.nn.Parameter(torch.ones(0)),
        torch.nn.Parameter(torch.ones(3)),
    )
    watch = FiniteWatch()
    watch.look(1, [weight_of(empty), weight_of(resting)])
    watch.look(2, [])


@pytest.mark.parametrize("taken", [0, SWITCH + 2])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_learning_rate_that_no_weight_can_hold_is_said(
    recipe: str, taken: int
) -> None:
    model, optimizer = build(recipe, steps=TOTAL, switch=SWITCH)
    train(model, optimizer, taken)
    for group in optimizer.param_groups:
        group["lr"] = 1e300
    with pytest.raises(NonFiniteError, match=f"step {taken + 1}: .*learning rate"):
        train(model, optimizer, 1)
