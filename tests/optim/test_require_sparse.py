"""`require_sparse` says why a model is not what it was trained to be."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import step_cli
from step_cli.errors import NonFiniteError, NotSparseError, UsageError
from step_cli.optim.optimizer import SparseOptimizer


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def train(net: nn.Module, optimizer: SparseOptimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 8, generator=generator)).square().mean().backward()
        optimizer.step()


def trained(steps: int = 4, **options: Any) -> tuple[nn.Sequential, SparseOptimizer]:
    net = model()
    optimizer = step_cli.sparse_adamw(net, **{"switch": 2, "lr": 1e-2, **options})
    train(net, optimizer, steps)
    return net, optimizer


def test_a_model_that_holds_its_pattern_passes() -> None:
    net, optimizer = trained()
    step_cli.require_sparse(net, optimizer)
    step_cli.require_sparse(nn.DataParallel(net), optimizer)
    step_cli.require_sparse(*copy.deepcopy((net, optimizer)))
    other = model(1)
    other.load_state_dict(net.state_dict())
    step_cli.require_sparse(other, optimizer)  # the file that was saved, say


def test_a_run_that_never_switched_is_told_when_it_would_have() -> None:
    net, optimizer = trained(switch=None, total_steps=100)
    said = r"step 51, at the latest of total_steps=100, and 4 steps were taken; .*micro"
    with pytest.raises(NotSparseError, match=said) as refused:
        step_cli.require_sparse(net, optimizer)
    assert refused.value.exit_code == 1 and "\n" not in str(refused.value)
    net, optimizer = trained(switch=9)
    with pytest.raises(NotSparseError, match=r"come at step 9, .* 4 steps were taken"):
        step_cli.require_sparse(net, optimizer)


def test_weights_that_were_loaded_over_it_are_told() -> None:
    net, optimizer = trained(1)
    best = {name: value.clone() for name, value in net.state_dict().items()}
    train(net, optimizer, 3)
    net.load_state_dict(best)
    with pytest.raises(NotSparseError, match=r"loaded over it.*best among.*step 2"):
        step_cli.require_sparse(net, optimizer)
    with pytest.raises(NotSparseError, match="another one than the optimizer trains"):
        step_cli.require_sparse(model(), optimizer)


def test_a_frozen_layer_is_told() -> None:
    net = model()
    net[2].requires_grad_(False)
    optimizer = step_cli.sparse_adamw(net, switch=2)
    train(net, optimizer, 4)
    with pytest.raises(NotSparseError, match=r"2\.weight not 2:4: .* is frozen"):
        step_cli.require_sparse(net, optimizer)
    net[2].requires_grad_(True)
    train(net, optimizer, 1)
    step_cli.require_sparse(net, optimizer)


def test_the_dense_view_is_told() -> None:
    net, optimizer = trained()
    with (
        optimizer.dense_weights(),
        pytest.raises(NotSparseError, match=r"outside dense_weights\(\)"),
    ):
        step_cli.require_sparse(net, optimizer)
    with optimizer.sparse_weights():
        step_cli.require_sparse(net, optimizer)


def test_a_schedule_that_is_not_over_is_told() -> None:
    net, optimizer = trained(recipe="mask-decay", total_steps=20, switch=1)
    with pytest.raises(NotSparseError, match="4 of 20 steps were taken"):
        step_cli.require_sparse(net, optimizer)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told(value: float) -> None:
    net, optimizer = trained()
    with torch.no_grad():
        net[0].weight[0, 0] = value
    with pytest.raises(NonFiniteError, match=r"0\.weight: 1 weights are not finite"):
        step_cli.require_sparse(net, optimizer)


def test_a_dense_recipe_leaves_nothing_to_hold() -> None:
    net = model()
    optimizer = step_cli.sparse_adamw(net, recipe="dense")
    with pytest.raises(NotSparseError, match="not 2:4"):
        step_cli.require_sparse(net, optimizer)


def test_other_optimizers_and_models_are_refused() -> None:
    net, optimizer = trained()
    with pytest.raises(UsageError, match="AdamW prunes nothing"):
        step_cli.require_sparse(net, torch.optim.AdamW(net.parameters()))
    with pytest.raises(UsageError, match=r"0\.weight of the optimizer is not in"):
        step_cli.require_sparse(nn.Linear(8, 8), optimizer)


def test_a_wrapped_optimizer_is_looked_through() -> None:
    class Wrapped:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

    net, optimizer = trained()
    step_cli.require_sparse(net, Wrapped(Wrapped(optimizer)))


def test_an_expert_of_three_axes_is_counted_along_its_own() -> None:
    p = nn.Parameter(torch.randn(2, 8, 12))
    net = nn.ParameterDict({"weight": p})
    group = {"params": [("weight", p)], "pattern": "2:4", "axis": 1}
    optimizer = step_cli.sparse_adamw([group], recipe="ste")
    step_cli.require_sparse(net, optimizer)
    turned: Tensor = p.detach().transpose(1, 2).reshape(2, 8, 12).clone()
    with torch.no_grad():
        p.copy_(turned)
    with pytest.raises(NotSparseError):
        step_cli.require_sparse(net, optimizer)
