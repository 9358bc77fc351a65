"""Memory: one copy of the sparse weights beside dense Adam, also during a step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from step_cli.optim import adam
from step_cli.optim import weights as module
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw

WIDTH, LAYERS = 128, 16
LAYER = WIDTH * WIDTH * 4  # bytes in fp32


def build(
    recipe: str, dtype: torch.dtype = torch.float32
) -> tuple[list[nn.Parameter], SparseOptimizer]:
    generator = torch.Generator().manual_seed(0)
    parameters = [
        nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator).to(dtype))
        for _ in range(LAYERS)
    ]
    group = {"params": parameters, "pattern": "2:4", "axis": 1}
    optimizer = sparse_adamw([group], recipe=recipe, switch=1, total_steps=9, lr=1e-3)
    optimizer.rewire(nn.Module())  # the backward pass is not looked at here
    return parameters, optimizer


def give_gradients(parameters: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that ``call`` held at once beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    assert seen.profiler is not None
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("recipe", ["ste", "step", "sr-ste", "asp", "t-sr-ste"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_never_holds_the_new_gradients_all_at_once(
    recipe: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", LAYER)
    monkeypatch.setattr(adam, "CHUNK", WIDTH * WIDTH)
    parameters, optimizer = build(recipe, dtype)
    for _ in range(2):
        give_gradients(parameters)
        optimizer.step()
    # Working memory of a few layers, however many there are.
    assert peak_bytes(optimizer.step) < 8 * LAYER < LAYERS * LAYER


def test_in_one_piece_it_would_hold_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1 << 40)
    parameters, optimizer = build("sr-ste")
    give_gradients(parameters)
    assert peak_bytes(optimizer.step) >= LAYERS * LAYER


@pytest.mark.parametrize("recipe", ["ste", "step", "sr-ste", "s-ste"])
def test_the_state_is_that_of_adam_and_one_copy(recipe: str) -> None:
    parameters, optimizer = build(recipe)
    give_gradients(parameters)
    optimizer.step()
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
        if value.numel() > 1
    }
    assert sum(storages.values()) == 3 * LAYERS * LAYER


BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"foreach": True}),
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {}),  # which has state before its first step
}


@pytest.mark.parametrize("recipe", ["sr-ste", "asp"])
@pytest.mark.parametrize("base", BASES)
def test_in_parts_or_whole_the_weights_are_the_same(
    recipe: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at_once in (1, 1 << 40):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        parameters, _ = build(recipe)
        group = {"params": parameters, "pattern": "2:4", "axis": 1}
        kind, options = BASES[base]
        made = kind([group], **options)
        optimizer = sparse(made, recipe)
        for _ in range(3):
            give_gradients(parameters)
            optimizer.step()
        found.append([optimizer.state[p]["dense"] for p in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Counted(torch.optim.SGD):
    """An optimizer with something that all its parameters share."""

    steps = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.steps += 1
        super().step(closure)


def test_an_optimizer_that_is_not_torchs_own_takes_one_step_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1)
    p: list[Tensor] = [nn.Parameter(torch.ones(4, 4)) for _ in range(3)]
    base = Counted([{"params": p, "pattern": "2:4", "axis": 1}], lr=0.1)
    optimizer = sparse(base, "sr-ste")
    for each in p:
        each.grad = torch.ones_like(each)
    optimizer.step()
    assert base.steps == 1
