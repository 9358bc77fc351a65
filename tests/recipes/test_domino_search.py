"""DominoSearch as a recipe: patterns for each layer, then SR-STE, alone and in STEP."""

import pytest
import torch
from small_training import build, train
from torch import nn

from step_cli.errors import UsageError
from step_cli.optim.mask import count_violations
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes import make_recipe
from step_cli.recipes.domino_search import DominoSearch
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw
from step_cli.recipes.step import Step


def uneven() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 16))
    with torch.no_grad():
        model[2].weight *= 20
    return model


def patterns(optimizer: SparseOptimizer) -> list[str]:
    return [str(plan.pattern) for _, plan in optimizer.sparse_parameters()]


def test_each_layer_has_its_own_n() -> None:
    recipe = DominoSearch(density=0.45)
    assert patterns(sparse_adamw(uneven(), "4:8", recipe)) == ["2:8", "4:8"]
    named = list(uneven().named_parameters())
    base = torch.optim.SGD(named, lr=0.1, momentum=0.9)
    assert patterns(sparse(base, recipe, "4:8")) == ["2:8", "4:8"]


def test_the_density_is_the_plans_or_the_one_given() -> None:
    for density, limit in ((None, 0.5), (0.25, 0.25)):
        optimizer = sparse_adamw(uneven(), "4:8", DominoSearch(density=density))
        layers = list(optimizer.sparse_parameters())
        kept = sum(p.numel() * plan.pattern.density for p, plan in layers)
        assert 0.6 * limit <= kept / sum(p.numel() for p, _ in layers) <= limit


@pytest.mark.parametrize("inside_step", [False, True])
def test_training_holds_each_pattern(inside_step: bool) -> None:
    recipe = Step(inner=DominoSearch()) if inside_step else DominoSearch()
    model, optimizer = build(recipe, "2:8", switch=4)
    train(model, optimizer, 8)
    for p, plan in optimizer.sparse_parameters():
        assert count_violations(p, plan.pattern, plan.axis) == 0
    assert optimizer.phase == "mask-learning"


def test_patterns_given_by_the_user_stay() -> None:
    model = uneven()
    groups = [{"params": [model[0].weight], "pattern": "1:4", "axis": 1}]
    assert patterns(sparse_adamw(groups, recipe="domino-search")) == ["1:4"]


def test_options_reach_the_recipe_inside_step() -> None:
    recipe = make_recipe("step", {"inner": "domino-search", "density": 0.3})
    assert recipe == Step(inner=DominoSearch(density=0.3))


def test_an_impossible_density_is_refused() -> None:
    with pytest.raises(UsageError, match=r"density 1\.5"):
        DominoSearch(density=1.5)
