"""Which weights of a stored tensor a transposable mask keeps, a few rows at a time."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from step_cli.nm.groups import Mask
from step_cli.nm.pattern import NMSpec
from step_cli.nm.tensor_data import TensorData, row_pieces, values_of
from step_cli.recipes.transposable import check_blocks, transposable_mask

PIECE = 1 << 22  # weights looked at together


def transposable_keep(
    weights: TensorData,
    spec: NMSpec,
    outputs: int,
    scores: npt.NDArray[Any] | None = None,
) -> Mask:
    """Mark what to keep so that N of M hold along the input and the output axis.

    A block that holds both already is kept as it is.

    Args:
        weights: What to prune.
        spec: The pattern and the input axis.
        outputs: The axis of the outputs.
        scores: What orders the weights, of the same shape; by default magnitude.

    Returns:
        Boolean mask, shape of the weights.

    Raises:
        UsageError: One of the two sizes is not a multiple of M.
    """
    order = matrix_order(weights.array.ndim, outputs, spec.axis)
    matrix = weights.transposed(order)  # [out, in, ...]
    check_blocks(matrix.array.shape, spec.pattern)
    keep = np.empty(weights.array.shape, np.bool_)
    out, m = keep.transpose(order), spec.pattern.m
    for rows in row_pieces(matrix, m, PIECE):
        size = np.abs(values_of(matrix, rows))
        ordered = size if scores is None else scores.transpose(order)[rows]
        mask = transposable_mask(torch.from_numpy(ordered.copy()), spec.pattern).numpy()
        out[rows] = mask | _compliant(size != 0, spec.pattern.n, m)
    return keep


def matrix_order(rank: int, outputs: int, inputs: int) -> tuple[int, ...]:
    """The axes with the output first, the input second, and then the others."""
    return (outputs, inputs, *(i for i in range(rank) if i not in (outputs, inputs)))


def _compliant(nonzero: Mask, n: int, m: int) -> Mask:
    """Where a block of M x M holds N:M along both axes; ``[out, in, ...]``."""
    rows, columns, *rest = nonzero.shape
    blocks = nonzero.reshape(rows // m, m, columns // m, m, *rest)
    along_rows = (blocks.sum(axis=3) <= n).all(axis=1)
    along_columns = (blocks.sum(axis=1) <= n).all(axis=2)
    holds = (along_rows & along_columns)[:, None, :, None]
    return np.broadcast_to(holds, blocks.shape).reshape(nonzero.shape)
