"""Layers and blocks fitted to what dense ones give, under masks that stay."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.oneshot import block_fit
from step_cli.oneshot.block_by_block import prune_in_order
from step_cli.oneshot.block_fit import share_of_rate
from step_cli.oneshot.calibration import Calibration
from step_cli.oneshot.forward_pass import Batch
from step_cli.oneshot.inputs import TargetLayer
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.oneshot.least_squares import energies, refit_rows
from step_cli.oneshot.refit import Refit, fitted_and_held_out
from step_cli.oneshot.sparsegpt import InputHessian, sparsegpt_weight
from step_cli.optim.mask import nm_mask

TWO_FOUR = NMPattern(2, 4)


class Block(nn.Module):
    """A residual branch with a norm, and a convolution where ``channels`` says so."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class Convolutions(nn.Module):
    """A plain and a grouped convolution with batch norms, in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def batches_of(*shape: int, count: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(shape[-1], shape[-1], generator=generator)
    return [{"x": torch.randn(*shape, generator=generator) @ mix} for _ in range(count)]


def model_of(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


def layers_of(model: nn.Module) -> list[TargetLayer]:
    return [
        TargetLayer(f"{name}.weight", module)
        for name, module in model.named_modules()
        if LayerMatrix.fits(module)
    ]


class InMemory:
    """`Weights` of a model in memory, each stored in ``dtype``."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.old = {
            layer.name: layer.module.weight.detach().to(dtype)  # type: ignore[union-attr, operator]
            for layer in layers_of(model)
        }
        self.stay: dict[str, str] = {}

    def dense(self, layer: TargetLayer) -> Tensor:
        return self.old[layer.name]

    def left(self, layer: TargetLayer) -> str | None:
        return self.stay.get(layer.name)

    def replace(self, layer: TargetLayer, weight: Tensor) -> None:
        assert weight.dtype == self.dtype
        self.replace_other(layer.module, "weight", weight)

    def dense_others(self, block: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def trainable(self, module: nn.Module, name: str) -> bool:
        return True

    def replace_other(self, module: nn.Module, name: str, value: Tensor) -> None:
        value = value.to(self.dtype).to(torch.float32)
        setattr(module, name, nn.Parameter(value, requires_grad=False))


def magnitude(layer: TargetLayer, seen: None) -> None:
    weight = layer.module.weight
    assert isinstance(weight, nn.Parameter)
    keep = nm_mask(weight.abs(), TWO_FOUR, 1)
    layer.module.weight = nn.Parameter(weight * keep, requires_grad=False)


def sparsegpt(layer: TargetLayer, seen: InputHessian) -> None:
    weight = layer.module.weight
    assert isinstance(weight, nn.Parameter)
    view = LayerMatrix(layer.module)
    new = sparsegpt_weight(weight.detach(), view, seen, NMSpec(TWO_FOUR, 1))
    layer.module.weight = nn.Parameter(new, requires_grad=False)


METHODS: dict[str, tuple[Any, Callable[[TargetLayer, Any], None]]] = {
    "magnitude": (None, magnitude),
    "sparsegpt": (InputHessian, sparsegpt),
}


def pruned(
    model: nn.Module,
    batches: list[Batch],
    kind: Any,
    method: str = "magnitude",
    weights: InMemory | None = None,
) -> Refit:
    make, prune = METHODS[method]
    refit = Refit(kind, model, weights or InMemory(model))
    work = Calibration(model, batches, make, prune, around=refit)
    prune_in_order(work, layers_of(model))
    return refit


def masks(model: nn.Module) -> dict[str, Tensor]:
    return {x.name: x.module.weight != 0 for x in layers_of(model)}  # type: ignore[misc]


CASES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "linear": (Net, (8, 16)),
    "convolutions": (Convolutions, (4, 4, 6, 6)),
}


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layers_error_never_rises_and_is_that_of_what_is_stored(
    case: str, method: str, dtype: torch.dtype
) -> None:
    kind, shape = CASES[case]
    model, batches = model_of(kind), batches_of(*shape)
    weights = InMemory(model, dtype)
    refit = pruned(model, batches, "layer", method, weights)
    layers = layers_of(model)
    assert set(refit.errors) == {layer.name for layer in layers}
    for layer in layers:
        errors = refit.errors[layer.name]
        assert 0 < errors.after < errors.before < 1
        assert errors.held_out_after is not None
        # What is reported is what the weight gives on the inputs it gets now.
        fit = [batch for i, batch in enumerate(batches) if i % 8 != 7]
        weight = layer.module.weight
        assert isinstance(weight, Tensor)
        assert torch.equal(weight, weight.to(dtype).float())
        found = error_now(model, fit, layer, weights.dense(layer))
        assert errors.after == pytest.approx(found, rel=1e-3)
        unseen = error_now(model, batches[7::8], layer, weights.dense(layer))
        assert errors.held_out_after == pytest.approx(unseen, rel=1e-3)


def error_now(
    model: nn.Module, batches: list[Batch], layer: TargetLayer, dense: Tensor
) -> float:
    seen = seen_by(model, batches, layer)
    view, weight = LayerMatrix(layer.module), layer.module.weight
    assert isinstance(weight, Tensor)
    off = whole = 0.0
    parts = zip(
        view.of_weight(dense.float()), view.of_weight(weight), seen.hessian, strict=True
    )
    for old, new, hessian in parts:
        off += float(energies(new - old, hessian).sum())
        whole += float(energies(old, hessian).sum())
    return (off / whole) ** 0.5


def seen_by(model: nn.Module, batches: list[Batch], layer: TargetLayer) -> InputHessian:
    seen = InputHessian()

    def hook(module: nn.Module, args: tuple[Tensor]) -> None:
        seen.add(LayerMatrix(module).of_input(args[0]))

    handle = layer.module.register_forward_pre_hook(hook)
    for batch in batches:
        model(**batch)
    handle.remove()
    return seen


def test_layers_are_fitted_to_inputs_of_the_network_as_it_is_by_then() -> None:
    model, batches = model_of(Net), batches_of(8, 16)
    slow = copy.deepcopy(model)
    dense = InMemory(model).old
    pruned(model, batches, "layer")
    fit = [batch for i, batch in enumerate(batches) if i % 8 != 7]
    groups = [
        ["first"],
        ["blocks.0.up", "blocks.0.down"],
        ["blocks.1.up", "blocks.1.down"],
    ]
    named = {layer.name: layer for layer in layers_of(slow)}
    for group in groups:
        for name in group:  # the layers of a block are pruned together
            magnitude(named[f"{name}.weight"], None)
        for name in group:  # and fitted one after another
            layer, old = named[f"{name}.weight"], dense[f"{name}.weight"]
            weight = layer.module.weight
            assert isinstance(weight, nn.Parameter)
            hessian = seen_by(slow, fit, layer).hessian[0]
            weight.data = refit_rows(old, weight.detach(), hessian).float()
            found = model.get_submodule(name).weight
            torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-5)  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["layer", "block"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_masks_stay_and_the_same_comes_out_twice(case: str, kind: str) -> None:
    make, shape = CASES[case]
    plain, batches = model_of(make), batches_of(*shape)
    for layer in layers_of(plain):
        magnitude(layer, None)
    one, two = model_of(make), model_of(make)
    assert pruned(one, batches, kind).errors == pruned(two, batches, kind).errors
    expected = masks(plain)
    for name, mask in masks(one).items():
        assert torch.equal(mask, expected[name])
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert any(
        not torch.equal(value, one.state_dict()[name])
        for name, value in plain.state_dict().items()
    )


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("case", sorted(CASES))
def test_the_error_of_a_block_falls_on_samples_held_out(case: str, method: str) -> None:
    make, shape = CASES[case]
    model, batches = model_of(make), batches_of(*shape)
    dense = copy.deepcopy(model)
    refit = pruned(model, batches, "block", method)
    names = ["blocks.0", "blocks.1"] if make is Net else ["body.0", "body.1"]
    assert [block.name for block in refit.blocks] == names
    for block in refit.blocks:
        assert block.refitted
        assert block.errors.after < block.errors.before
        assert block.errors.held_out_before is not None
        assert block.errors.held_out_after is not None
        assert block.errors.held_out_after < block.errors.held_out_before
    assert set(refit.errors) == {layer.name for layer in layers_of(model)}
    # Norms and biases are fitted too, statistics of batch norms are not.
    moved = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, dense.state_dict()[name])
    }
    inside = {n for n in dense.state_dict() if not n.startswith("first.")}
    statistics = {n for n in inside if "running" in n or "tracked" in n}
    assert inside - statistics <= moved and not statistics & moved
    assert "first.bias" not in moved


def test_a_block_that_gets_no_better_on_samples_held_out_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block_fit, "RATE", 30.0)  # so large that it diverges
    model, batches = model_of(Net), batches_of(8, 16)
    plain = model_of(Net)
    refit = pruned(model, batches, "block")
    for layer in layers_of(plain):
        magnitude(layer, None)
    assert [block.refitted for block in refit.blocks] == [False, False]
    for block in refit.blocks:
        assert block.errors.after == block.errors.before
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        if not name.startswith("first."):  # in no block: fitted as a layer
            assert torch.equal(state[name], value), name


def test_layers_that_may_not_change_do_not() -> None:
    model, batches = model_of(Net), batches_of(8, 16)
    for kind in ("layer", "block"):
        model = model_of(Net)
        weights = InMemory(model)
        weights.stay["blocks.0.up.weight"] = "another is tied to it"
        refit = pruned(model, batches, kind, weights=weights)
        assert refit.reasons == weights.stay
        assert "blocks.0.up.weight" not in refit.errors
        old = weights.old["blocks.0.up.weight"]
        found = model.get_submodule("blocks.0.up").weight
        assert torch.equal(found, old * nm_mask(old.abs(), TWO_FOUR, 1))  # type: ignore[arg-type]


def test_what_is_held_out() -> None:
    passes: list[Any] = [lambda i=i: i for i in range(17)]
    fit, held_out = fitted_and_held_out(passes)
    assert [run() for run in held_out] == [7, 15] and len(fit) == 15
    fit, held_out = fitted_and_held_out(passes[:3])
    assert [run() for run in held_out] == [2] and len(fit) == 2
    fit, held_out = fitted_and_held_out(passes[:1])
    assert len(fit) == 1 and not held_out


def test_the_rate_rises_and_falls_to_zero() -> None:
    rates = [share_of_rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == max(rates[4:6]) > 0.99
    assert rates[-1] < 1e-3 and rates == rates[:5] + sorted(rates[5:], reverse=True)
