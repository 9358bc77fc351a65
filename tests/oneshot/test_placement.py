"""Modules that move to a device when they run; on a CPU, copies stand for a device."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.oneshot import placement
from step_cli.oneshot.block_by_block import prune_in_order
from step_cli.oneshot.calibration import Calibration
from step_cli.oneshot.inputs import TargetLayer
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.oneshot.placement import Placement
from step_cli.oneshot.sparsegpt import InputHessian, sparsegpt_weight
from step_cli.oneshot.wanda import InputNorms, wanda_keep

CPU = torch.device("cpu")
SPEC = NMSpec(NMPattern(2, 4), 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 4, bias=False)
        self.tied = nn.Linear(8, 4, bias=False)
        self.tied.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x) + self.tied(x)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is "on the device": copies that were made for it."""
    made: list[Tensor] = []

    def is_on(device: torch.device, value: Tensor) -> bool:
        if any(value.data_ptr() == copy.data_ptr() for copy in made):
            return True
        copy = value.detach().clone()
        made.append(copy)
        value.to = lambda *args: copy  # type: ignore[method-assign, assignment]
        value.detach = lambda: value  # type: ignore[method-assign]
        return False

    monkeypatch.setattr(placement, "_is_on", is_on)
    return made


def built() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def values(model: nn.Module) -> dict[str, int]:
    return {name: id(value) for name, value in model.named_parameters()}


def test_blocks_move_while_they_run_and_the_rest_once(copies: list[Tensor]) -> None:
    model = built()
    before, there = values(model), []
    model.blocks[1].register_forward_hook(
        lambda *_: there.append(
            [values(model)[f"blocks.{i}.weight"] != before[f"blocks.{i}.weight"]
             for i in range(3)]
        )
    )  # fmt: skip
    x = torch.randn(2, 8)
    expected = model(x)
    there.clear()
    work = Placement(model, CPU, [list(model.blocks)])
    with work.active():
        assert values(model)["stem.weight"] != before["stem.weight"]
        assert model.head.weight is model.tied.weight  # still one
        assert torch.equal(model(x), expected)
        assert there == [[False, True, False]]
        with work.held(model.blocks[0]):
            model(x)
            assert values(model)["blocks.0.weight"] != before["blocks.0.weight"]
        assert there[1:] == [[True, True, False]]
        assert values(model)["blocks.0.weight"] == before["blocks.0.weight"]
    assert values(model) == before


def test_what_got_another_value_meanwhile_keeps_it(copies: list[Tensor]) -> None:
    model = built()
    work = Placement(model, CPU, [list(model.blocks)])
    new = nn.Parameter(torch.zeros(8, 8), requires_grad=False)
    block = model.blocks[0]
    with work.active(), work.held(block):
        block.weight = new
        block(torch.ones(1, 8))
        assert block.weight is not new  # it moved as well
        assert block.weight.eq(0).all()
    assert block.weight is new


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_pruning_by_way_of_a_device_changes_no_bit(
    method: str, request: pytest.FixtureRequest
) -> None:
    def pruned() -> dict[str, Tensor]:
        model = built()

        def prune(layer: TargetLayer, seen: Any) -> None:
            weight, view = layer.module.weight, LayerMatrix(layer.module)
            assert isinstance(weight, Tensor)
            if method == "wanda":
                keep = torch.from_numpy(wanda_keep(weight.data, view, seen, SPEC))
                new = weight.data * keep
            else:
                new = sparsegpt_weight(weight.data, view, seen, SPEC)
            layer.module.weight = nn.Parameter(new, requires_grad=False)

        make: Any = InputNorms if method == "wanda" else InputHessian
        names = ["stem", *(f"blocks.{i}" for i in range(3))]
        layers = [TargetLayer(f"{n}.weight", model.get_submodule(n)) for n in names]
        generator = torch.Generator().manual_seed(1)
        batches = [{"x": torch.randn(9, 8, generator=generator)} for _ in range(2)]
        prune_in_order(Calibration(model, batches, make, prune, device=CPU), layers)
        return {name: value.clone() for name, value in model.state_dict().items()}

    plain = pruned()
    made = request.getfixturevalue("copies")
    moved = pruned()
    assert made  # the other path was taken
    assert all(torch.equal(moved[name], value) for name, value in plain.items())
