"""S-STE: soft thresholding by hand and its continuity, a frozen scale, sampling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import build, masters, same, train, weights
from torch import Tensor, nn

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.optim.mask import nm_mask
from step_cli.recipes.s_ste import SSTE, least_squares_scale, soft_threshold
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


def soft(*values: float) -> list[float]:
    return soft_threshold(torch.tensor([values], dtype=torch.float64), PLAN)[0].tolist()


def scale(*values: float) -> float:
    return float(least_squares_scale(torch.tensor([values]).double(), PLAN))


def test_the_worked_groups() -> None:
    assert soft(0.1, -0.4, 0.3, 0.9) == pytest.approx([0, -0.1, 0, 0.6])
    assert soft(1, -1, 0.5, 2) == pytest.approx([0, 0, 0, 1])
    assert soft(0.2, 0.5, 0.5, 0.9) == pytest.approx([0, 0, 0, 0.4])


def test_the_worked_scales() -> None:
    assert scale(0.1, -0.4, 0.3, 0.9) == pytest.approx(0.58 / 0.37)
    both = (0.1, -0.4, 0.3, 0.9, 1, -1, 0.5, 2)
    assert scale(*both) == pytest.approx(2.58 / 1.37)


def test_weights_of_one_magnitude_have_scale_1() -> None:
    assert scale(0.5, -0.5, 0.5, 0.5) == scale(0, 0, 0, 0) == 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("2:4", 1.483), ("1:2", 1.375), ("4:8", 1.565), ("1:4", 1.89), ("1:16", 3.15)],
)
def test_the_scale_of_gaussian_weights(pattern: str, expected: float) -> None:
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    plan = NMSpec(NMPattern.parse(pattern), 1)
    assert float(least_squares_scale(weight, plan)) == pytest.approx(expected, rel=0.01)


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, NMSpec]:
    m = draw(st.integers(1, 8))
    plan = NMSpec(NMPattern(draw(st.integers(1, m)), m), 1)
    sizes = st.floats(-4, 4) | st.sampled_from([0.0, 0.5, -0.5, 1.0])
    values = draw(st.lists(sizes, min_size=2 * m, max_size=2 * m))
    return torch.tensor([values], dtype=torch.float64), plan


@given(groups(), st.integers(0, 1000), st.floats(1e-6, 1))
@settings(max_examples=150)
def test_s_moves_at_most_twice_as_far_as_the_weights(
    case: tuple[Tensor, NMSpec], seed: int, size: float
) -> None:
    weight, plan = case
    generator = torch.Generator().manual_seed(seed)
    moved = torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 0.5
    moved *= size
    change = soft_threshold(weight + moved, plan) - soft_threshold(weight, plan)
    assert change.abs().max() <= 2 * moved.abs().max() + 1e-12


@given(groups())
@settings(max_examples=100)
def test_s_lies_within_the_hard_mask_and_scales(case: tuple[Tensor, NMSpec]) -> None:
    weight, plan = case
    found = soft_threshold(weight, plan)
    assert not found[~nm_mask(weight.abs(), plan.pattern, 1)].any()
    assert torch.allclose(soft_threshold(-3 * weight, plan), -3 * found)
    beta = least_squares_scale(weight, plan)
    assert beta >= 1 - 1e-12
    torch.testing.assert_close(least_squares_scale(-3 * weight, plan), beta)


def test_a_swap_of_order_moves_s_little_and_the_hard_mask_much() -> None:
    one = torch.tensor([[0.1, 0.5, 0.5001, 0.9]], dtype=torch.float64)
    other = torch.tensor([[0.1, 0.5001, 0.5, 0.9]], dtype=torch.float64)
    change = (soft_threshold(one, PLAN) - soft_threshold(other, PLAN)).abs().max()
    assert float(change) == pytest.approx(1e-4)
    hard = [w * nm_mask(w.abs(), "2:4", 1) for w in (one, other)]
    assert float((hard[0] - hard[1]).abs().max()) == pytest.approx(0.5001)


def test_n_equal_to_m_is_the_weight_bit_for_bit() -> None:
    weight = torch.randn(4, 8)
    plan = NMSpec(NMPattern(4, 4), 1)
    assert torch.equal(soft_threshold(weight, plan), weight)
    assert float(least_squares_scale(weight, plan)) == 1


def test_conv1d_groups_run_along_the_first_axis() -> None:
    weight = torch.randn(8, 6)
    flipped = soft_threshold(weight, NMSpec(NMPattern(2, 4), 0))
    assert torch.equal(flipped, soft_threshold(weight.t(), PLAN).t())
