"""T-SR-STE: transposable masks that are held, decay, and a dense finish."""

import pytest
import torch
from small_training import build, masters, same, train, weights
from torch import Tensor, nn

from step_cli.errors import UsageError
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw
from step_cli.recipes.step import Step
from step_cli.recipes.t_sr_ste import TSRSTE
from step_cli.recipes.transposable import transposable_mask


def transposable(weight: Tensor) -> bool:
    rows, columns = weight.view(-1, 4), weight.t().reshape(-1, 4)
    return bool(
        (rows.count_nonzero(1) <= 2).all() and (columns.count_nonzero(1) <= 2).all()
    )


def test_the_mask_is_transposable_and_changes_every_so_many_steps() -> None:
    model, optimizer = build(TSRSTE(refresh_steps=4))
    for step in range(13):
        mask, dense = weights(model)[0] != 0, masters(model, optimizer)[0]
        assert transposable(mask)
        if step % 4 == 0:
            held = transposable_mask(dense.abs(), "2:4")
        assert same([mask], [held])
        assert torch.equal(weights(model)[0], dense * held)  # values follow each step
        train(model, optimizer, 1)


def test_the_default_holds_a_mask_for_40_steps() -> None:
    model, optimizer = build("t-sr-ste")
    first = weights(model)[0] != 0
    train(model, optimizer, 39)
    assert same([weights(model)[0] != 0], [first])
    train(model, optimizer, 1)
    assert not same([weights(model)[0] != 0], [first])


def test_pruned_weights_decay_in_the_gradient() -> None:
    dense = torch.arange(1.0, 17).view(4, 4)
    p = nn.Parameter(dense.clone())
    base = torch.optim.SGD([{"params": [p], "pattern": "2:4", "axis": 1}], lr=1.0)
    optimizer = sparse(base, TSRSTE(decay=0.5, mvue="off"))
    pruned = p.detach() == 0
    p.grad = torch.zeros(4, 4)
    optimizer.step()
    found = optimizer.state[p]["dense"]
    assert torch.equal(found, torch.where(pruned, dense / 2, dense))


def test_the_dense_finish_is_the_last_sixth() -> None:
    model, optimizer = build(TSRSTE(finish="dense"), steps=24)
    train(model, optimizer, 19)
    assert optimizer.phase == "mask-learning" and transposable(weights(model)[0])
    before = masters(model, optimizer)
    assert model[0].forward.active
    train(model, optimizer, 1)
    assert (optimizer.phase, optimizer.switch_step) == ("dense", 20)
    assert not model[0].forward.active
    shown = weights(model)
    assert all(weight.count_nonzero() == weight.numel() for weight in shown)
    # Training goes on from the dense weights of the sparse phase.
    moved = [(a - b).abs().max() for a, b in zip(shown, before, strict=True)]
    assert all(float(change) < 0.05 for change in moved)
    train(model, optimizer, 4)
    assert not same(weights(model), shown)
    with optimizer.sparse_weights():
        assert transposable(weights(model)[0])


def test_bf16_parameters_finish_dense_too() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 8).bfloat16()
    optimizer = sparse_adamw(model, recipe=TSRSTE(finish="dense"), total_steps=12)
    for _ in range(12):
        model(torch.randn(4, 16, dtype=torch.bfloat16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.phase == "dense"
    assert model.weight.count_nonzero() == model.weight.numel()
    assert torch.equal(model.weight, optimizer.state[model.weight]["dense"].bfloat16())


def test_step_cannot_wrap_what_ends_dense() -> None:
    with pytest.raises(UsageError, match="ends dense"):
        Step(inner=TSRSTE(finish="dense"))


def test_outputs_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(UsageError, match="blocks of 4x4"):
        sparse_adamw(nn.Linear(16, 10), recipe="t-sr-ste")
