"""Layers whose backward pass a recipe changes."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from step_cli.nm.pattern import NMPattern
from step_cli.optim.backward import Backward, RewiredForward, rewire, to_fp8
from step_cli.recipes.mvue import sample_tokens, token_sampler
from step_cli.recipes.sparse_adamw import sparse_adamw


class Conv1D(nn.Module):
    """As Hugging Face's: a weight of [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8))
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


Conv1D.__module__ = "transformers.pytorch_utils"


def rewired(layer: nn.Module, rule: Backward, axis: int = 1) -> RewiredForward:
    (forward,) = rewire(layer, {layer.weight: (axis, rule)})
    forward.active = True
    return forward


def gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.square().sum().backward()
    assert x.grad is not None
    grads = [p.grad for p in layer.parameters()]
    assert all(g is not None for g in grads)
    return [y.detach(), x.grad, *(g.clone() for g in grads if g is not None)]


def keep_first(weight: Tensor, memory: dict[str, Tensor]) -> Tensor:
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[0] = True
    return mask


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6)])
def test_a_rule_that_changes_nothing_changes_nothing(
    shape: tuple[int, ...], bias: bool
) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 8, bias=bias), torch.randn(shape)
    expected = gradients(layer, x)
    rewired(layer, Backward())
    for found, wanted in zip(gradients(layer, x), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_conv1d_computes_with_its_transpose() -> None:
    torch.manual_seed(0)
    layer, x = Conv1D(), torch.randn(2, 5, 6)
    expected = gradients(layer, x)
    rewired(layer, Backward(), axis=0)
    for found, wanted in zip(gradients(layer, x), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_layer_that_is_not_active_computes_as_it_always_did() -> None:
    layer, x = nn.Linear(6, 8), torch.randn(5, 6)
    expected = gradients(layer, x)
    rewired(layer, Backward(mask=keep_first)).active = False
    pairs = zip(gradients(layer, x), expected, strict=True)
    assert all(torch.equal(found, wanted) for found, wanted in pairs)


def test_only_the_gradient_of_the_weight_is_sampled() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 8), torch.randn(10, 6)  # 10 tokens: no multiple of 4
    y, x_grad, weight_grad, bias_grad = gradients(layer, x)
    rewired(layer, Backward(sample=token_sampler("optimal", NMPattern(2, 4))))
    found = gradients(layer, x)
    for one, other in zip((y, x_grad, bias_grad), (*found[:2], found[3]), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(found[2], weight_grad)
    mean = torch.stack([gradients(layer, x)[2] for _ in range(1500)]).mean(0)
    assert (mean - weight_grad).norm() < 0.06 * weight_grad.norm()


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(6, 8), (5, 6)), (nn.Conv2d(6, 8, 3), (2, 6, 5, 5))]
)
def test_only_the_gradient_of_the_input_is_masked(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer, x = copy.deepcopy(layer), torch.randn(shape)
    y, _, weight_grad, bias_grad = gradients(layer, x)
    twin = copy.deepcopy(layer)
    twin.weight.data[1:] = 0  # type: ignore[union-attr, operator]
    x_again = x.clone().requires_grad_()
    twin(x_again).backward(2 * y)  # the gradient that y^2 sends back
    rewired(layer, Backward(mask=keep_first))
    found = gradients(layer, x)
    wanted = (y, x_again.grad, weight_grad, bias_grad)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


class Shared(nn.Module):
    """Two layers of one weight, or one layer used twice."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 16, bias=False)
        self.second = self.first
        if not twice:
            self.second = nn.Linear(16, 16, bias=False)
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("recipe", ["bi-mask", "s-ste", "t-sr-ste"])
def test_all_layers_that_share_a_weight_change(recipe: str) -> None:
    x, found = torch.randn(8, 16), []
    for twice in (True, False):
        model = Shared(twice=twice)
        sparse_adamw(model, recipe=recipe, lr=1e-2)
        torch.manual_seed(1)
        found.append(gradients(model, x))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_convolution_without_a_mask_is_left_alone() -> None:
    layer = nn.Conv2d(4, 4, 3)
    assert not rewire(layer, {layer.weight: (1, Backward(fp8=True))})


def test_names_stay_and_copies_have_a_forward_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    names = list(model.state_dict())
    (forward,) = rewire(model, {model[0].weight: (1, Backward(fp8=True))})
    forward.active = True
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.zero_()
    x = torch.randn(3, 6)
    assert not torch.allclose(model(x), twin(x))


def test_autocast_reaches_the_products() -> None:
    layer, x = nn.Linear(6, 8), torch.randn(5, 6, requires_grad=True)
    rewired(layer, Backward())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    assert x.grad is not None and x.grad.dtype == torch.float32


# torch's tracer instantiates the autograd function itself, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["mask", "sample"])
def test_a_rewired_model_compiles(kind: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 8), torch.randn(5, 6)
    # With all kept of these few tokens, sampling has no chance in it.
    sample = partial(sample_tokens, pattern=NMPattern(7, 8))
    mask = keep_first if kind == "mask" else None
    rewired(layer, Backward(sample=None if mask else sample, mask=mask))
    eager = gradients(layer, x)
    layer.zero_grad()
    compiled = torch.compile(layer, backend="eager")
    x = x.clone().requires_grad_()
    compiled(x).square().sum().backward()
    torch.testing.assert_close(x.grad, eager[1])
    torch.testing.assert_close(layer.weight.grad, eager[2])


@pytest.mark.parametrize(
    ("dtype", "step"), [(torch.float8_e4m3fn, 2**-4), (torch.float8_e5m2, 2**-3)]
)
def test_fp8_rounds_within_its_precision(dtype: torch.dtype, step: float) -> None:
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 1e-5
    rounded = to_fp8(values, dtype)
    large = values.abs() > values.abs().amax() / 100
    assert ((rounded - values).abs() <= step * values.abs())[large].all()
    assert float(rounded.abs().max()) == pytest.approx(float(values.abs().max()))
    assert not torch.equal(rounded, values)
    assert torch.equal(to_fp8(torch.zeros(3), dtype), torch.zeros(3))


def test_fp8_is_near_the_exact_layer() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32), torch.randn(48, 64)
    exact = gradients(layer, x)
    sample = token_sampler("off", NMPattern(2, 4))
    rewired(layer, Backward(sample=sample, fp8=True))
    for found, wanted in zip(gradients(layer, x), exact, strict=True):
        assert not torch.equal(found, wanted)
        assert (found - wanted).norm() < 0.1 * wanted.norm()


def test_the_approximation_is_for_two_of_four() -> None:
    make = partial(token_sampler, "approximate")
    assert make(NMPattern(2, 4)) is not None and make(NMPattern(4, 4)) is None
    with pytest.raises(Exception, match="is for 2:4, not 1:4"):
        make(NMPattern(1, 4))


class Mixed(nn.Module):
    """Weights of a linear layer, of attention and of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3)
        self.attention = nn.MultiheadAttention(8, 2)
        self.linear = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("recipe", "usual"),
    [
        ("s-ste", "SSTE changes .*: conv.weight, attention.in_proj_weight"),
        ("bi-mask", "BiMask changes .*: attention.in_proj_weight"),
        ("ste", None),
    ],
)
def test_sparse_weights_that_keep_their_usual_backward_pass_are_named(
    recipe: str, usual: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    sparse_adamw(Mixed(), recipe=recipe)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (usual is not None)
    if usual is not None:
        assert re.match(usual, said[0])


def test_where_only_linear_layers_are_sparse_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for recipe in ("s-ste", "t-sr-ste", "bi-mask"):
        sparse_adamw(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), recipe=recipe)
    assert not caplog.records


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (0, 8)])
def test_inputs_of_any_rank_have_their_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    x = torch.randn(shape, requires_grad=True)
    layer(x).square().sum().backward()
    expected = [p.grad.clone() for p in (x, layer.weight, layer.bias)]
    x.grad = layer.weight.grad = layer.bias.grad = None
    rewired(layer, Backward(sample=lambda columns: columns))
    layer(x).square().sum().backward()
    for p, value in zip((x, layer.weight, layer.bias), expected, strict=True):
        torch.testing.assert_close(p.grad, value)
