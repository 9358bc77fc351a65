"""A small residual network for 32 x 32 pixels in colour."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 62


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


class GlyphResNet(nn.Module):
    """Residual blocks between a convolution and a linear head."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.Sequential(
            *(Block(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairs))
        )
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:  # [batch, 3, 32, 32]
        """Return class scores, ``[batch, 62]``."""
        # With the colours of a pixel side by side convolutions are faster here.
        x = pixel_values.contiguous(memory_format=torch.channels_last)
        x = functional.relu(self.stem_norm(self.stem(x)))
        scores: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return scores


def build(widths: tuple[int, ...] = (32, 64, 128)) -> nn.Module:
    """The untrained model, a block for each width."""
    return GlyphResNet(tuple(widths))


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    return {"pixel_values": torch.zeros(1, 3, 32, 32)}
