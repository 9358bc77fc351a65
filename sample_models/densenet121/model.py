"""DenseNet121 for 32x32 images: Huang et al., CVPR 2017, with CIFAR's 3x3 stem.

It has 7,048,548 weights for a hundred classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS = (6, 12, 24, 16)  # of each dense block


class Layer(nn.Module):
    """A bottleneck whose output is added to the channels that came in."""

    def __init__(self, width_in: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [batch, width_in, height, width]
        """Return ``[batch, width_in + growth, height, width]``."""
        out = self.conv1(functional.relu(self.norm1(x)))
        out = self.conv2(functional.relu(self.norm2(out)))
        return torch.cat([out, x], 1)


class Transition(nn.Module):
    """Half the channels, half the height and width."""

    def __init__(self, width_in: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width_in)
        self.conv = nn.Conv2d(width_in, width_in // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [batch, width_in, height, width]
        """Return ``[batch, width_in / 2, height / 2, width / 2]``."""
        return functional.avg_pool2d(self.conv(functional.relu(self.norm(x))), 2)


class DenseNet121(nn.Module):
    """Four dense blocks with transitions between them."""

    def __init__(self, classes: int, growth: int, layers: tuple[int, ...]) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        parts: list[nn.Module] = []
        for block, count in enumerate(layers):
            if block:
                parts.append(Transition(width))
                width //= 2
            parts += [Layer(width + n * growth, growth) for n in range(count)]
            width += count * growth
        self.blocks = nn.Sequential(*parts)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:  # [batch, 3, 32, 32]
        """Return class scores, ``[batch, classes]``."""
        x = functional.relu(self.norm(self.blocks(self.stem(pixel_values))))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def build(
    classes: int = 100, growth: int = 32, layers: tuple[int, ...] = LAYERS
) -> nn.Module:
    """The untrained model; ``growth`` is what each layer adds to the channels."""
    return DenseNet121(classes, growth, tuple(layers))


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    return {"pixel_values": torch.randn(1, 3, 32, 32)}
