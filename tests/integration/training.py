"""A small model, its batches and the plain loop that every other loop must equal."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from step_cli.autoswitch.autoswitch import AutoSwitch, SwitchRule
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes.sparse_adamw import sparse_adamw

Batch = tuple[Tensor, Tensor]


def build_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Rows that do not divide by two, and one layer of a single row."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)
    ).to(dtype)


def build_blocks() -> nn.Sequential:
    """For recipes that look along both axes: all sizes divide by the pattern."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8))


def batches(count: int, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 16, generator=generator),
            torch.randn(8, 1, generator=generator),
        )
        for _ in range(count)
    ]


def by_autoswitch(t_max: int = 5) -> SwitchRule:
    """A rule that reads the variance; eps so small that only t_max makes it fire."""
    return SwitchRule(AutoSwitch(0.5, 1e-30), 1, t_max)


def optimizer_of(model: nn.Module, **options: Any) -> SparseOptimizer:
    options = {"lr": 1e-2, "betas": (0.9, 0.5), "weight_decay": 0.1, **options}
    optimizer = sparse_adamw(model, **options)
    optimizer.watch_layers = options.get("record", False)
    return optimizer


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    dtype = next(model.parameters()).dtype
    outputs = model(inputs.to(dtype)).float().mean(-1, keepdim=True)
    return functional.mse_loss(outputs, targets)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Iterable[Batch]
) -> None:
    for batch in data:
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the whole weights, wherever they lie."""
    return {name: whole(p).clone() for name, p in model.named_parameters()}


def dense_weights(model: nn.Module, optimizer: SparseOptimizer) -> dict[str, Tensor]:
    """The optimizer's, of those that are sparse."""
    return {
        name: whole(optimizer.state[p]["dense"]).clone()
        for name, p in model.named_parameters()
        if "dense" in optimizer.state[p]
    }


def whole(tensor: Tensor) -> Tensor:
    gathered = tensor.detach()
    if hasattr(gathered, "full_tensor"):
        gathered = gathered.full_tensor()
    return gathered


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> Iterator[str]:
    """Names whose tensors differ, for the message of a failed test."""
    yield from (name for name in one if not torch.equal(one[name], other[name]))
