"""What a PyTorch graph lets be permuted, and that outputs stay what they were."""

from pathlib import Path

import pytest
import torch
from channels.networks import Attention, ConvNet, changed_outputs, spread, traced
from torch import Tensor, nn
from torch.nn import functional

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class TwoLayers(nn.Module):
    """Two layers, and what stands between them."""

    def __init__(self, between: nn.Module | None = None, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.between = between or nn.ReLU()
        self.second = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


class Between(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


def test_two_layers_have_one_channel_set_and_inputs_stay() -> None:
    sets, why = traced(TwoLayers(), x=X)
    (channels,) = sets
    assert (channels.leaf.size, channels.layers, channels.within) == (
        16,
        ["second.weight"],
        (),
    )
    assert why == {"first.weight": "it enters the model"}


EQUIVARIANT = {
    "gelu": functional.gelu,
    "softmax": lambda x: x.softmax(-1),
    "mean": lambda x: x - x.mean(-1, keepdim=True),
    "there and back": lambda x: x.view(3, 2, 8).mT.mT.reshape(3, 16),
    "norm": lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True)),
    "matrix": lambda x: (x @ x.t()) @ x,
    "einsum": lambda x: torch.einsum("bi,ci,cj->bj", x, x, x),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
}
NOT = {
    "flip": lambda x: x.flip(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "roll": lambda x: x.roll(1, -1),
    "index": lambda x: x[:, [1, 0, *range(2, 16)]],
    "numbers": lambda x: x * torch.arange(16.0),
    "sort": lambda x: x.sort(-1).values,
    "argmax": lambda x: x + x.argmax(-1, keepdim=True),
    "convolved": lambda x: functional.avg_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "folded": lambda x: x.view(3, 2, 8).mT.reshape(3, 16) + x,
    "step": lambda x: x.repeat_interleave(2, -1)[:, ::2],
    "picked": lambda x: x + x[:, 3:4],
}


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_what_treats_all_channels_alike_lets_them_move(
    name: str, tmp_path: Path
) -> None:
    net = spread(TwoLayers(Between(EQUIVARIANT[name])))
    sets, _ = traced(net, x=X)
    assert len(sets) == 1
    assert changed_outputs(net, {"x": X}, tmp_path) < 1e-5


@pytest.mark.parametrize("name", NOT)
def test_what_tells_channels_apart_keeps_them(name: str, tmp_path: Path) -> None:
    net = spread(TwoLayers(Between(NOT[name])))
    sets, why = traced(net, x=X)
    if sets:  # a part of them may still move
        assert changed_outputs(net, {"x": X}, tmp_path) < 1e-5
        assert all(channels.leaf.size < 16 or channels.within for channels in sets)
    else:
        assert "second.weight" in why


@pytest.mark.parametrize("seed", range(3))
def test_a_network_of_convolutions_computes_what_it_did(
    seed: int, tmp_path: Path
) -> None:
    net = spread(ConvNet(), seed)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    assert changed_outputs(net, {"x": x}, tmp_path, seed) < 1e-5


def test_each_part_of_a_network_of_convolutions_is_found() -> None:
    sets, why = traced(ConvNet(), x=torch.zeros(2, 3, 8, 8))
    layers = {name for channels in sets for name in channels.layers}
    # What is left: the pixels, a weight with one input, one whose groups are places.
    assert set(why) == {"stem.weight", "depthwise.weight", "head.weight"}
    assert {"conv1.weight", "grouped.weight", "conv2.weight"} <= layers


@pytest.mark.parametrize("seed", range(3))
def test_attention_with_one_weight_computes_what_it_did(
    seed: int, tmp_path: Path
) -> None:
    net = spread(Attention(), seed)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(seed))
    assert changed_outputs(net, {"x": x}, tmp_path, seed) < 1e-5


def test_each_head_of_attention_has_its_own_order() -> None:
    sets, _ = traced(Attention(), x=torch.zeros(2, 5, 6))
    by_layer = {name: channels for channels in sets for name in channels.layers}
    heads = by_layer["attention.out_proj.weight"]
    assert heads.leaf.size == 8
    assert [leaf.size for leaf in heads.within] == [4]
    gated = by_layer["down.weight"]
    assert (gated.leaf.size, gated.within) == (48, ())
    residual = by_layer["attention.in_proj_weight"]
    assert residual is by_layer["out.weight"] is by_layer["gates.weight"]


def test_groups_that_would_cross_heads_stay() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 12)
            self.second = nn.Linear(12, 8)

        def forward(self, x: Tensor) -> Tensor:
            heads = self.first(x).view(3, 2, 6).softmax(-1)
            return self.second(heads.reshape(3, 12))

    sets, why = traced(Heads(), x=X)
    assert not sets
    assert why["second.weight"] == "groups of 4 do not fit the parts of its inputs"


def test_a_constant_of_the_model_keeps_its_channels() -> None:
    class Scaled(TwoLayers):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.rand(16), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x) * self.scale)

    sets, why = traced(Scaled(), x=X)
    assert not sets
    assert why["second.weight"] == "it enters the model"


def test_dropout_that_draws_keeps_its_channels() -> None:
    sets, _ = traced(TwoLayers(nn.Dropout()), x=X)
    assert sets
    sets, _ = traced(
        TwoLayers(Between(lambda x: functional.dropout(x, training=True))), x=X
    )
    assert not sets
