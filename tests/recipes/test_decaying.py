"""Decaying masks: what the model holds at each step of a schedule."""

import pytest
import torch
from small_training import build, masters, train, weights
from torch import Tensor

from step_cli.errors import UsageError
from step_cli.optim.mask import nm_mask
from step_cli.recipes.decaying_mask import DecayingMask
from step_cli.recipes.mask_decay import MaskDecay
from step_cli.recipes.step import Step


def kept_per_group(weight: Tensor, m: int) -> int:
    return int(weight.view(-1, m).count_nonzero(1).max())


@pytest.mark.parametrize("dense", [0, 0.1])
def test_n_falls_as_the_schedule_says(dense: float) -> None:
    model, optimizer = build(DecayingMask(dense=dense), "1:8", steps=40)
    seen = []
    for _ in range(40):
        seen.append((optimizer.phase, kept_per_group(weights(model)[0], 8)))
        train(model, optimizer, 1)
    start = round(dense * 40)
    stages = [start + s * (40 - start - 4) // 4 for s in range(4)]
    expected = [
        ("dense", 8) if t < start else
        ("mask-learning", [7, 4, 2, 1][sum(t >= stage for stage in stages) - 1])
        for t in range(40)
    ]  # fmt: skip
    assert seen == expected


def test_the_geometric_structure_keeps_its_density() -> None:
    model, optimizer = build(
        DecayingMask(structure="geometric", dense=0), "1:2", steps=20
    )
    stages = []
    for _ in range(20):
        weight = weights(model)[0]
        assert weight.count_nonzero() == weight.numel() / 2
        stages.append(
            next(m for m in (2, 4, 8, 16) if kept_per_group(weight, m) * 2 <= m)
        )
        train(model, optimizer, 1)
    assert stages == sorted(stages, reverse=True) and set(stages) == {2, 4, 8, 16}


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
def test_pruned_weights_fade(schedule: str) -> None:
    recipe = MaskDecay(schedule=schedule, rate=0.05, fine_tune=4)  # type: ignore[arg-type]
    model, optimizer = build(recipe, steps=20)
    for age in range(20):
        shown, dense = weights(model)[0], masters(model, optimizer)[0]
        pruned = ~nm_mask(dense.abs(), "2:4", 1)
        fade = 1 - 0.05 * age if schedule == "linear" else 0.95122942**age
        fade = fade if age < 16 else 0.0
        torch.testing.assert_close(shown[pruned], fade * dense[pruned])
        assert torch.equal(shown[~pruned], dense[~pruned])
        train(model, optimizer, 1)


def test_a_fixed_switch_takes_the_place_of_the_dense_share() -> None:
    model, optimizer = build("mask-decay", steps=20, switch=5)
    train(model, optimizer, 5)
    assert (optimizer.switch_step, optimizer.phase) == (5, "mask-learning")


def test_step_takes_the_place_of_the_dense_phase() -> None:
    model, optimizer = build(Step(inner=DecayingMask()), "1:8", steps=40, switch=12)
    train(model, optimizer, 12)
    assert optimizer.phase == "mask-learning"
    assert kept_per_group(weights(model)[0], 8) == 7
    frozen = optimizer.state[model[0].weight]["exp_avg_sq"].clone()
    train(model, optimizer, 28)
    assert kept_per_group(weights(model)[0], 8) == 1
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg_sq"], frozen)


def test_the_pruned_twin_is_what_training_would_end_with() -> None:
    model, optimizer = build(DecayingMask(dense=0.5), "1:8", steps=40)
    train(model, optimizer, 3)
    with optimizer.sparse_weights():
        assert kept_per_group(weights(model)[0], 8) == 1


def test_a_schedule_without_a_length_is_refused() -> None:
    for recipe in (DecayingMask(), Step(inner=MaskDecay())):
        with pytest.raises(UsageError, match="total_steps"):
            build(recipe, switch=5)
