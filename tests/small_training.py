"""A model small enough to train in a test, and its training."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.recipe import Recipe
from step_cli.recipes.sparse_adamw import sparse_adamw


def build(
    recipe: Recipe | str, pattern: str = "2:4", steps: int | None = None, **more: Any
) -> tuple[nn.Sequential, SparseOptimizer]:
    """Two linear layers of 16 inputs and their optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))
    return model, sparse_adamw(model, pattern, recipe, steps, lr=1e-2, **more)


def train(model: nn.Module, optimizer: SparseOptimizer, steps: int) -> None:
    """Take ``steps`` steps; the same ones from the same point."""
    for step in range(optimizer.steps_taken, optimizer.steps_taken + steps):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(12, 16, generator=generator)
        labels = torch.randint(0, 8, (12,), generator=generator)
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[Tensor]:
    """Copies of the two matrices."""
    return [p.detach().clone() for p in model.parameters() if p.dim() > 1]


def masters(model: nn.Module, optimizer: SparseOptimizer) -> list[Tensor]:
    """The dense weights of the two matrices."""
    with optimizer.dense_weights():
        return weights(model)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether all tensors are equal, bit for bit but for the sign of zero."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
