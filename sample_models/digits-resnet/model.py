"""A small residual network for 8x8 grey-scale digits."""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (32, 64, 128)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [batch, width_in, height, width]
        """Return ``[batch, width_out, height / stride, width / stride]``."""
        out = functional.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class DigitsResNet(nn.Module):
    """Three blocks between a convolution and a linear head, 0.3 M weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(WIDTHS[0])
        self.blocks = nn.Sequential(
            Block(WIDTHS[0], WIDTHS[0], 1),
            Block(WIDTHS[0], WIDTHS[1], 2),
            Block(WIDTHS[1], WIDTHS[2], 2),
        )
        self.head = nn.Linear(WIDTHS[2], 10)

    def forward(self, pixels: Tensor) -> Tensor:  # [batch, 1, 8, 8]
        """Return class scores, ``[batch, 10]``."""
        x = functional.relu(self.stem_norm(self.stem(pixels)))
        x = self.blocks(x).mean((2, 3))
        scores: Tensor = self.head(x)
        return scores


def build() -> nn.Module:
    """The untrained model."""
    return DigitsResNet()


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    return {"pixels": torch.zeros(1, 1, 8, 8)}
