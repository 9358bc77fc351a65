"""ResNet18 for 32x32 images: He et al., CVPR 2016, with the 3x3 stem used on CIFAR.

It has 11,173,962 weights for ten classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False),
                nn.BatchNorm2d(width_out),
            )

    def forward(self, x: Tensor) -> Tensor:  # [batch, width_in, height, width]
        """Return ``[batch, width_out, height / stride, width / stride]``."""
        out = functional.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class ResNet18(nn.Module):
    """Four stages of two blocks; each but the first halves the image."""

    def __init__(self, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        stages = []
        for before, width in zip((widths[0], *widths), widths, strict=False):
            stride = 1 if not stages else 2
            stages += [Block(before, width, stride), Block(width, width, 1)]
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, pixel_values: Tensor) -> Tensor:  # [batch, 3, 32, 32]
        """Return class scores, ``[batch, classes]``."""
        x = functional.relu(self.stem_norm(self.stem(pixel_values)))
        scores: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return scores


def build(classes: int = 10, width: int = 64) -> nn.Module:
    """The untrained model; ``width`` is that of the first stage."""
    return ResNet18(classes, tuple(width * 2**stage for stage in range(4)))


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    return {"pixel_values": torch.randn(1, 3, 32, 32)}
