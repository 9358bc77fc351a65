"""Statistics of inputs: which layers share them, and how far a pass runs."""

import pytest
import torch
from torch import Tensor, nn

from step_cli.oneshot.inputs import TargetLayer, collect_statistics
from step_cli.oneshot.wanda import InputNorms

X = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])


class Block(nn.Module):
    """Two layers on one input, one on the same tensor changed in place, one last."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.calls, self.runs = calls, 0
        for name in ("one", "two", "three", "last"):
            setattr(self, name, nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        out = self.one(x) + self.two(x)
        for _ in range(self.calls - 1):
            self.two(2 * x)
        out = out + self.three(x.mul_(3))
        out = self.last(out)
        self.runs += 1
        return out


def layers_of(block: Block, *names: str) -> list[TargetLayer]:
    return [TargetLayer(f"{n}.weight", block.get_submodule(n)) for n in names]


@pytest.mark.parametrize("once", [False, True])
def test_layers_share_what_they_get_of_one_tensor(once: bool) -> None:
    block = Block()
    layers = layers_of(block, "one", "two", "three")
    with torch.no_grad():
        seen = collect_statistics(
            layers, InputNorms, [lambda: block(X), lambda: block(X)], once=once
        )
    assert seen["one.weight"] is seen["two.weight"]
    expected = (2 * X.square().sum(0)).sqrt()
    torch.testing.assert_close(seen["one.weight"].norms[0], expected)
    torch.testing.assert_close(seen["three.weight"].norms[0], 3 * expected)
    # Nothing after the last layer is run where it is known to be the end.
    assert block.runs == (0 if once else 1)


def test_a_layer_that_is_called_again_counts_each_call() -> None:
    block = Block(calls=2)
    layers = layers_of(block, "one", "two")
    with torch.no_grad():
        seen = collect_statistics(layers, InputNorms, [lambda: block(X)] * 2)
    norms = X.square().sum(0).sqrt()
    torch.testing.assert_close(seen["one.weight"].norms[0], norms * 2**0.5)
    torch.testing.assert_close(seen["two.weight"].norms[0], norms * 10**0.5)
