"""A layer as a matrix that multiplies rows: for methods that know linear layers only.

A convolution is one as well: its rows are what the kernel sees at each place. Columns
are ordered tap by tap, the channels of one tap side by side, so that N:M groups, which
run along the channels, are consecutive columns.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from step_cli.optim.backward import CONVOLUTIONS, is_conv1d


@dataclass(frozen=True)
class LayerMatrix:
    """How a layer's weight and input become matrices; grouped layers have several.

    Attributes:
        module: ``nn.Linear``, Hugging Face's Conv1D, or a convolution.
    """

    module: nn.Module

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether the module is one of those."""
        return isinstance(module, (nn.Linear, *CONVOLUTIONS)) or is_conv1d(module)

    @property
    def input_axis(self) -> int:
        """The axis of the weight that inputs run along."""
        return 0 if is_conv1d(self.module) else 1

    @property
    def row_key(self) -> tuple[object, ...]:
        """What decides the rows besides the input: layers equal in it share them."""
        if not isinstance(self.module, CONVOLUTIONS):
            return ()
        conv: Any = self.module
        shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation
        return (*shape, conv.padding_mode, conv.groups)

    def of_weight(self, weight: Tensor) -> Tensor:
        """The weight as ``[parts, out, columns]``."""
        if is_conv1d(self.module):
            return weight.t()[None]
        if not isinstance(self.module, CONVOLUTIONS):
            return weight[None]
        out, channels, *taps = weight.shape
        parts = self.module.groups
        split = weight.reshape(parts, out // parts, channels, math.prod(taps))
        return split.transpose(2, 3).flatten(2)

    def to_weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `of_weight`."""
        if is_conv1d(self.module):
            return matrix[0].t()
        if not isinstance(self.module, CONVOLUTIONS):
            return matrix[0]
        conv: Any = self.module
        taps = math.prod(conv.kernel_size)
        parts, out, columns = matrix.shape
        split = matrix.reshape(parts, out, taps, columns // taps)
        shape: tuple[int, ...] = conv.weight.shape
        return split.transpose(2, 3).reshape(shape)

    def of_input(self, x: Tensor) -> Tensor:
        """The input as ``[parts, rows, columns]``: the output is a product with it."""
        if not isinstance(self.module, CONVOLUTIONS):
            return x.reshape(1, -1, x.shape[-1])
        conv: Any = self.module
        batched = x.dim() == len(conv.kernel_size) + 2
        seen = _windows(x if batched else x[None], conv)
        # [n, channels, places..., taps...] to [parts, n * places, taps * channels]
        rank, parts = len(conv.kernel_size), conv.groups
        n, channels, *places = seen.shape[: 2 + rank]
        taps = math.prod(conv.kernel_size)
        split = seen.reshape(n, parts, channels // parts, math.prod(places), taps)
        return split.permute(1, 0, 3, 4, 2).reshape(
            parts, n * math.prod(places), taps * (channels // parts)
        )


def _windows(x: Tensor, conv: Any) -> Tensor:
    """What the kernel sees at each place, ``[n, channels, places..., taps...]``."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(
        zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    ):
        span = dilation * (size - 1) + 1
        x = x.unfold(2 + axis, span, stride)[..., ::dilation]
    return x
