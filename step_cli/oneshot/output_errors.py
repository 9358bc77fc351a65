"""How far outputs are from those of dense weights, relative to the dense ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from step_cli.oneshot.inputs import Pass, TargetLayer, adder, input_hooks
from step_cli.oneshot.layer_matrix import LayerMatrix


@dataclass(frozen=True)
class Errors:
    """Relative errors |new - dense| / |dense| of an output, bias left out of a layer's.

    Attributes:
        before: Of the pruned weights, on the samples that are fitted to.
        after: Of the fitted ones, on the same.
        held_out_before: Of the pruned weights, on samples held out; None without any.
        held_out_after: Of the fitted ones, on the same.
    """

    before: float
    after: float
    held_out_before: float | None = None
    held_out_after: float | None = None

    def __str__(self) -> str:
        text = f"error {self.before:.4f}, fitted {self.after:.4f}"
        if self.held_out_before is not None:
            text += f"; held out {self.held_out_before:.4f}, {self.held_out_after:.4f}"
        return text


def output_errors(
    dense: Mapping[TargetLayer, Tensor],
    candidates: Sequence[Mapping[TargetLayer, Tensor]],
    passes: Sequence[Pass],
) -> dict[TargetLayer, list[float | None]]:
    """Compare what layers give with several weights, on the inputs they get in passes.

    Args:
        dense: The weight of each layer to compare with.
        candidates: Other weights of the same layers.
        passes: Each runs what holds the layers on one batch.

    Returns:
        For each layer the error of each candidate; None where no pass calls it.
    """
    sums = {
        layer: _Squares(layer, weight, [of[layer] for of in candidates])
        for layer, weight in dense.items()
    }
    with input_hooks({layer: adder(layer, found) for layer, found in sums.items()}):
        for run in passes:
            run()
    return {layer: found.errors() for layer, found in sums.items()}


class _Squares:
    """Sums of squares of what a layer gives, and of how far other weights are off."""

    unused = inputs = 0

    def __init__(
        self, layer: TargetLayer, dense: Tensor, others: Sequence[Tensor]
    ) -> None:
        self._view = LayerMatrix(layer.module)
        self._weights = [dense, *others]
        self._sums = [0.0] * len(self._weights)
        self._called = False

    def add(self, rows: Tensor) -> None:
        """Count in what the layer multiplies, ``[parts, rows, columns]``."""
        self._called = True
        dense = self._matrix(self._weights[0], rows)
        for i, weight in enumerate(self._weights):
            matrix = dense if not i else self._matrix(weight, rows) - dense
            product = rows.to(matrix.dtype) @ matrix.transpose(1, 2)
            self._sums[i] += float(product.square().sum(dtype=torch.float64))

    def _matrix(self, weight: Tensor, rows: Tensor) -> Tensor:
        return self._view.of_weight(weight.to(rows.device).float())

    def errors(self) -> list[float | None]:
        """Relative errors of all but the first; of nothing, none."""
        whole, *others = self._sums
        if not self._called:
            return [None] * len(others)
        return [(square / whole) ** 0.5 if whole else 0.0 for square in others]
