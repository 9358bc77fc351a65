"""S-STE: soft weights with a frozen scale, and a sampled gradient."""

import pytest
import torch
from small_training import build, masters, same, train, weights
from torch import nn

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.recipes.s_ste import SSTE
from step_cli.recipes.soft_threshold import least_squares_scale, soft_threshold
from step_cli.recipes.sparse_adamw import sparse_adamw
from step_cli.recipes.step import Step

PLAN = NMSpec(NMPattern(2, 4), 1)


def test_the_scale_is_that_of_the_first_weights_for_good() -> None:
    torch.manual_seed(0)
    first = nn.Linear(16, 16).weight.detach()
    model, optimizer = build(SSTE())
    scale = optimizer.state[model[0].weight]["scale"]
    assert torch.equal(scale, least_squares_scale(first, PLAN))
    before = scale.clone()
    train(model, optimizer, 10)
    assert torch.equal(optimizer.state[model[0].weight]["scale"], before)


def test_the_model_holds_the_scaled_soft_weights() -> None:
    model, optimizer = build(SSTE())
    train(model, optimizer, 10)
    for module, dense in zip(
        (model[0], model[2]), masters(model, optimizer), strict=True
    ):
        scale = optimizer.state[module.weight]["scale"]
        assert torch.equal(module.weight, soft_threshold(dense, PLAN) * scale)
        assert not torch.equal(module.weight, torch.where(module.weight != 0, dense, 0))


def test_sampling_changes_the_path_but_not_where_it_starts() -> None:
    found = []
    for mvue in ("optimal", "off"):
        model, optimizer = build(SSTE(mvue=mvue))  # type: ignore[arg-type]
        start = weights(model)
        train(model, optimizer, 3)
        found.append((start, weights(model)))
    assert same(found[0][0], found[1][0])
    assert not same(found[0][1], found[1][1])


def test_fp8_rounds_the_forward_pass_too() -> None:
    x = torch.randn(4, 16)
    plain, rounded = (build(SSTE(fp8=fp8))[0](x) for fp8 in (False, True))
    assert not torch.equal(plain, rounded)
    torch.testing.assert_close(plain, rounded, atol=0.1, rtol=0.1)


def test_step_computes_the_scale_at_the_switch() -> None:
    model, optimizer = build(Step(inner=SSTE()), switch=4)
    assert not model[0].forward.active
    train(model, optimizer, 4)
    scale = optimizer.state[model[0].weight]["scale"]
    dense = masters(model, optimizer)[0]
    assert torch.equal(scale, least_squares_scale(dense, PLAN))
    assert model[0].forward.active


def test_weights_loaded_later_have_their_scale_after_adopt() -> None:
    model, optimizer = build(SSTE())
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(16, 16).pow(3))
    optimizer.adopt()
    dense = masters(model, optimizer)[0]
    scale = optimizer.state[model[0].weight]["scale"]
    assert torch.equal(scale, least_squares_scale(dense, PLAN))


def test_a_backward_pass_without_the_module_is_refused() -> None:
    model = nn.Linear(16, 8)
    optimizer = sparse_adamw(model.named_parameters(), recipe="s-ste")
    model(torch.randn(4, 16)).sum().backward()
    with pytest.raises(UsageError, match=r"optimizer\.rewire\(module\)"):
        optimizer.step()
    optimizer.rewire(model)
    optimizer.step()


def test_it_can_do_without_the_module() -> None:
    model = nn.Linear(16, 8)
    optimizer = sparse_adamw(model.named_parameters(), recipe=SSTE(mvue="off"))
    model(torch.randn(4, 16)).sum().backward()
    optimizer.step()
