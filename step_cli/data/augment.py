"""Images as a model wants them: scaled, and in training cropped and flipped at random.

What is drawn follows from the generator alone, whatever the machine or the threads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def normalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes ``[n, 3, h, w]`` as fp32, each colour with ``mean`` 0 and ``std`` 1."""
    shape = (1, len(mean), 1, 1)
    scaled = pixels.float() / 255
    return (scaled - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def crop_and_flip(pixels: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to ``padding`` pixels, and mirror every second one.

    Source: He et al., CVPR 2016, section 4.2.

    Args:
        pixels: ``[n, colours, height, width]``.
        padding: Zeros around an image, of which a window of its size is cut.
        generator: What is drawn from.
    """
    count, _, height, width = pixels.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)  # [n, height]
    across = torch.arange(width)
    columns = left + torch.where(flip, across.flip(0), across)  # [n, width]
    padded = functional.pad(pixels, (padding,) * 4)
    images = torch.arange(count)[:, None, None]
    # Indexed dimensions come first: [n, height, width, colours].
    cut = padded[images, :, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2).contiguous()
