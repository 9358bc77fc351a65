"""The search loop on a small trained model."""

import itertools
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.recipes.domino_allocation import overall_sparsity
from step_cli.recipes.domino_training import count_operations, penalty_at, search


def model_and_plan() -> tuple[nn.Sequential, Plan]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    layer = NMSpec(NMPattern(2, 4), 1)
    return model, {"0.weight": layer, "2.weight": layer}


def loss(model: nn.Module) -> Tensor:
    inputs = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    return functional.mse_loss(model(inputs), inputs[:, :8].tanh())


def test_the_search_reaches_its_target_and_leaves_the_model() -> None:
    model, plan = model_and_plan()
    before = [p.detach().clone() for p in model.parameters()]
    found = search(model, plan, loss, 0.5, steps=500, lr=1.0)
    pairs = zip(before, model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    patterns = {name: layer.pattern for name, layer in found.items()}
    counts = {"0.weight": 512, "2.weight": 256}
    assert overall_sparsity(patterns, counts) >= 0.499
    assert {layer.axis for layer in found.values()} == {1}
    assert search(model, plan, loss, 0.5, steps=500, lr=1.0) == found


def test_density_never_rises_during_the_search(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, plan = model_and_plan()
    with caplog.at_level(logging.INFO):
        search(model, plan, loss, 0.3, steps=1500, lr=1.0)
    seen = [float(record.getMessage().split()[-1]) for record in caplog.records]
    assert len(seen) >= 2
    assert all(later < now for now, later in itertools.pairwise(seen))


def test_a_target_out_of_reach_is_told() -> None:
    model, plan = model_and_plan()
    with pytest.raises(UsageError, match="raise search_steps"):
        search(model, plan, loss, 0.3, steps=100)


def test_a_dense_target_needs_no_search() -> None:
    model, plan = model_and_plan()
    found = search(model, plan, loss, 1.0, steps=1)
    assert {str(layer.pattern) for layer in found.values()} == {"4:4"}


def test_the_penalty_comes_every_fifth_step_and_doubles_late() -> None:
    assert [penalty_at(step) for step in (1, 4, 5, 6)] == [0, 0, 0.1, 0]
    late = [penalty_at(step) for step in (29_995, 30_000, 40_000, 80_000, 200_000)]
    assert late == pytest.approx([0.1, 0.2, 0.4, 6.4, 6.4])


def test_operations_count_positions() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    plan = dict.fromkeys(("0.weight", "2.weight"), NMSpec(NMPattern(2, 4), 1))
    inputs = torch.randn(2, 4, 4, 4)
    found = count_operations(model, plan, lambda m: m(inputs).sum())
    assert found == {"0.weight": 288 * 2 * 4, "2.weight": 128 * 2}
