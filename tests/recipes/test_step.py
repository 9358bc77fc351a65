"""STEP's invariants; its worked fixture is in tests/optim/test_optimizer.py."""

import torch
from small_training import build, masters, same, train, weights

from step_cli.optim.mask import nm_mask
from step_cli.recipes.sparse_adamw import sparse_adamw
from step_cli.recipes.sr_ste import SRSTE
from step_cli.recipes.step import Step


def test_a_switch_at_the_end_is_dense_adam_and_one_mask() -> None:
    model, optimizer = build("step", switch=8)
    reference, adamw = build("dense")
    train(model, optimizer, 8)
    train(reference, adamw, 8)
    masked = [w * nm_mask(w.abs(), "2:4", 1) for w in weights(reference)]
    assert same(weights(model), masked)
    assert same(masters(model, optimizer), weights(reference))


def test_a_pattern_that_keeps_all_is_not_dense_adam_once_v_is_frozen() -> None:
    found = []
    for recipe in ("step", "dense"):
        model, optimizer = build(recipe, "4:4", switch=4)
        train(model, optimizer, 4)
        at_switch = weights(model)
        train(model, optimizer, 4)
        found.append((at_switch, weights(model)))
    assert same(found[0][0], found[1][0])
    assert not same(found[0][1], found[1][1])


def test_the_inner_decay_acts_in_the_second_phase_only() -> None:
    found = []
    for decay in (0.0, 0.1):
        model, optimizer = build(Step(inner=SRSTE(decay=decay)), switch=4)
        train(model, optimizer, 4)
        at_switch = masters(model, optimizer)
        train(model, optimizer, 4)
        found.append((at_switch, masters(model, optimizer)))
    assert same(found[0][0], found[1][0])
    assert not same(found[0][1], found[1][1])


def test_layers_may_have_patterns_of_their_own() -> None:
    model, _ = build("dense")
    groups = [
        {"params": [model[0].weight], "pattern": "1:8", "axis": 1},
        {"params": [model[2].weight], "pattern": "3:4", "axis": 1},
        {"params": [model[0].bias, model[2].bias]},
    ]
    optimizer = sparse_adamw(groups, recipe="step", switch=3, lr=1e-2)
    train(model, optimizer, 6)
    first, second = weights(model)
    assert first.view(-1, 8).count_nonzero(1).eq(1).all()
    assert second.view(-1, 4).count_nonzero(1).eq(3).all()
    assert torch.equal(optimizer.state[model[0].weight]["variance_step"].cpu(),
                       torch.tensor(3.0))  # fmt: skip
