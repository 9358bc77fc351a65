"""Whichever the recipe and the step, a run continues bit for bit from its state."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from step_cli.autoswitch.autoswitch import AutoSwitch, SwitchRule
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.recipe import Recipe
from step_cli.recipes import RECIPES, make_recipe
from step_cli.recipes.sparse_adamw import sparse_adamw

STEPS = 14
CASES: dict[str, dict[str, Any]] = {name: {} for name in RECIPES} | {
    "bi-mask": {"candidates": 10},
    "t-sr-ste dense": {"finish": "dense", "refresh_steps": 4},
    "t-sr-ste often": {"refresh_steps": 3},
    "bi-mask often": {"refresh_steps": 3, "candidates": 4},
    "s-ste fp8": {"fp8": True, "mvue": "approximate"},
    "decaying-mask no-dense": {"dense": 0.0, "structure": "geometric"},
    "mask-decay fast": {"rate": 0.1, "schedule": "exponential"},
    **{f"step {inner}": {"inner": inner} for inner in
       ("sr-ste", "s-ste", "t-sr-ste", "decaying-mask", "mask-decay", "domino-search")},
    "step bi-mask": {"inner": "bi-mask", "candidates": 4},
}  # fmt: skip


def build(case: str) -> tuple[nn.Module, SparseOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))
    recipe: Recipe = make_recipe(case.split()[0], CASES[case])
    switch = None if recipe.switch_step is not None else 7
    rule = SwitchRule(AutoSwitch(0.5, 1e-30), 1, 6) if switch else None
    optimizer = sparse_adamw(
        model, "2:4", recipe, STEPS, rule, lr=1e-2, betas=(0.9, 0.5)
    )
    return model, optimizer


def train(model: nn.Module, optimizer: SparseOptimizer, first: int, last: int) -> None:
    for step in range(first, last):
        # Sampling draws from torch's generator, which whoever resumes restores.
        torch.manual_seed(step)
        inputs, labels = torch.randn(12, 16), torch.randint(0, 8, (12,))
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def everything(model: nn.Module, optimizer: SparseOptimizer) -> list[Tensor]:
    states = [optimizer.state[p] for p in model.parameters()]
    tensors = [s[k] for s in states for k in sorted(s) if isinstance(s[k], Tensor)]
    return [*model.state_dict().values(), *tensors]


@pytest.mark.parametrize("case", CASES)
def test_a_run_continues_bit_for_bit(case: str) -> None:
    model, optimizer = build(case)
    keys = {p: set(state) for p, state in optimizer.state.items()}
    saved = {}
    for step in range(STEPS):
        buffer = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), buffer)
        saved[step] = buffer.getvalue()
        train(model, optimizer, step, step + 1)
    whole = copy.deepcopy(everything(model, optimizer))
    assert {p: set(state) for p, state in optimizer.state.items()} == keys
    for cut in (1, 6, 7, 8, 12):  # around every switch
        again, resumed = build(case)
        weights, state = torch.load(io.BytesIO(saved[cut]), weights_only=True)
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        train(again, resumed, cut, STEPS)
        assert resumed.switch_step == optimizer.switch_step
        found = everything(again, resumed)
        pairs = zip(found, whole, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), cut
