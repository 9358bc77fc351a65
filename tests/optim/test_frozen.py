"""Layers that are frozen when the optimizer is built train once they are let."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import step_cli
from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.optim.mask import count_violations
from step_cli.optim.optimizer import SparseOptimizer

TWO_FOUR = NMPattern(2, 4)


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.Linear(8, 4))
    net[0].requires_grad_(False)
    return net.to(dtype)


def batches(first: int, last: int) -> list[Tensor]:
    return [
        torch.randn(4, 8, generator=torch.Generator().manual_seed(n))
        for n in range(first, last)
    ]


def train(net: nn.Sequential, optimizer: Any, first: int, last: int) -> None:
    dtype = net[0].weight.dtype
    for batch in batches(first, last):
        optimizer.zero_grad()
        net(batch.to(dtype)).float().square().mean().backward()
        optimizer.step()


def pruned(net: nn.Sequential) -> bool:
    return not count_violations(net[0].weight, TWO_FOUR, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["step", "ste", "sr-ste", "asp", "bi-mask"])
def test_a_backbone_is_let_train_before_or_after_the_switch(
    recipe: str, dtype: torch.dtype
) -> None:
    for at in (1, 5):
        net = model(dtype)
        before = net[0].weight.detach().clone()
        optimizer = step_cli.sparse_adamw(net, recipe=recipe, switch=3, lr=1e-2)
        train(net, optimizer, 0, at)
        assert torch.equal(net[0].weight, before)  # not touched while it is frozen
        net[0].requires_grad_(True)
        train(net, optimizer, at, 8)
        assert not torch.equal(net[0].weight, before) and pruned(net)
        step_cli.require_sparse(net, optimizer)


def test_unfrozen_before_the_switch_it_learns_as_adamw_does() -> None:
    net, plain = model(), model()
    optimizer = step_cli.sparse_adamw(net, switch=9, lr=1e-2)
    adamw = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    for each, its in ((net, optimizer), (plain, adamw)):
        train(each, its, 0, 2)
        each[0].requires_grad_(True)
        train(each, its, 2, 6)
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_first_gradient_after_the_switch_is_of_the_dense_layer() -> None:
    """As Algorithm 1 would begin: a projection, then that gradient, then the next."""
    net = model()
    optimizer = step_cli.sparse_adamw(net, recipe="ste", lr=1e-2)
    train(net, optimizer, 0, 2)
    net[0].requires_grad_(True)
    w = net[0].weight
    twin = nn.Parameter(w.detach().clone())
    adamw = torch.optim.AdamW([twin], lr=1e-2)
    for step in range(2, 6):
        train(net, optimizer, step, step + 1)
        twin.grad = w.grad.clone()
        adamw.step()
    assert torch.equal(optimizer.state[w]["dense"], twin.detach())


@pytest.mark.parametrize("recipe", ["step", "ste", "asp"])
@pytest.mark.parametrize(("saved_at", "wakes_at"), [(2, 6), (5, 6), (6, 4), (5, 1)])
@pytest.mark.parametrize("frozen_again", [True, False])
def test_a_run_goes_on_exactly_wherever_it_wakes(
    recipe: str, saved_at: int, wakes_at: int, frozen_again: bool
) -> None:
    def run(net: nn.Module, optimizer: SparseOptimizer, first: int, last: int) -> None:
        for step in range(first, last):
            net[0].requires_grad_(step >= wakes_at)
            train(net, optimizer, step, step + 1)

    net = model()
    optimizer = step_cli.sparse_adamw(net, recipe=recipe, switch=3, lr=1e-2)
    run(net, optimizer, 0, saved_at)
    states = {k: v.clone() for k, v in net.state_dict().items()}, optimizer.state_dict()
    again = model()
    if saved_at >= wakes_at and not frozen_again:
        again[0].requires_grad_(True)
    other = step_cli.sparse_adamw(again, recipe=recipe, switch=3, lr=1e-2)
    keys = [set(state) for state in other.state.values()]
    again.load_state_dict(states[0])
    other.load_state_dict(states[1])
    if frozen_again:
        assert [set(state) for state in other.state.values()] == keys
    for each, its in ((net, optimizer), (again, other)):
        run(each, its, saved_at, 9)
    for mine, theirs in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_is_frozen_does_not_settle_the_switch() -> None:
    """The criterion is a mean over what trains, not over all that might."""
    net = model()
    optimizer = step_cli.sparse_adamw(net, total_steps=100, record=True)
    train(net, optimizer, 0, 1)
    sample = optimizer.variance_sample()
    assert sample is not None
    assert sample.d == sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_codes_that_never_learn_are_no_parameters_of_the_optimizer() -> None:
    net = model()
    net.codes = nn.Parameter(torch.ones(4, 4, dtype=torch.uint8), requires_grad=False)
    net.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64), requires_grad=False)
    optimizer = step_cli.sparse_adamw(net, recipe="ste")
    assert net.codes not in optimizer.state and net.phase not in optimizer.state
    train(net, optimizer, 0, 2)


def unfreeze_and_add(module: nn.Module, optimizer: SparseOptimizer) -> None:
    """What Lightning's BaseFinetuning does when an epoch begins."""
    module.requires_grad_(True)
    known = [p for group in optimizer.param_groups for p in group["params"]]
    new = [p for p in module.parameters() if not any(torch.equal(p, q) for q in known)]
    if new:
        optimizer.add_param_group({"params": new, "lr": 1e-3})


def test_a_callback_that_unfreezes_layers_finds_them_in_the_optimizer() -> None:
    net = model()
    optimizer = step_cli.sparse_adamw(net, switch=2, lr=1e-2)
    train(net, optimizer, 0, 4)
    unfreeze_and_add(net[0], optimizer)
    train(net, optimizer, 4, 6)
    step_cli.require_sparse(net, optimizer)


def test_what_trains_only_may_be_given_to_spare_memory() -> None:
    net = model()
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = step_cli.sparse_adamw(trained, switch=2, model=net)
    assert net[0].weight not in optimizer.state
    train(net, optimizer, 0, 4)
    step_cli.require_sparse(net, optimizer)
    with pytest.raises(UsageError, match=r"give it all, and let requires_grad_"):
        unfreeze_and_add(net[0], optimizer)


def test_a_layer_that_is_frozen_later_is_pruned_with_the_others() -> None:
    net = model()
    net[0].requires_grad_(True)
    optimizer = step_cli.sparse_adamw(net, switch=3)
    train(net, optimizer, 0, 1)
    net[0].requires_grad_(False)
    train(net, optimizer, 1, 5)
    step_cli.require_sparse(net, optimizer)
