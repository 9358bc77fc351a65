"""The Hessian of a layer's squared output error, and the factor of its inverse.

H = 2 X X^T / n over the inputs X, and H^-1 = U^T U with U upper triangular. Of a wide
layer H is the largest thing that pruning holds, so there is one matrix only: U is made
in its upper triangle, while H stays readable in the lower one.

Source: Frantar and Alistarh, ICML 2023, arXiv 2301.00774, section 3 and algorithm 1.
"""

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError

log = logging.getLogger(__name__)

DAMPS = (0.01, 0.1, 1.0)  # of the mean of the diagonal; the authors' is the first
COUNTED = 1024  # columns of H that are counted in by one product
TILE = 512  # rows and columns that are factored together


class SingularError(UsageError):
    """A Hessian is not positive definite, not even with its damping."""


class InputHessian:
    """The running mean of 2 X X^T over calibration tokens, for each part of a layer.

    n counts tokens. The authors count sequences: a factor that changes neither the mask
    nor the update, as damping is relative to the mean of the diagonal.

    Attributes:
        tokens: How many it is the mean of.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._matrix = torch.empty(0)  # [parts, in, in]
        self._holds: Literal["upper", "whole", "factors"] = "upper"
        self._inverses: list[InverseFactor] = []
        self._tiles: list[Tensor] = []  # of H, where factors have overwritten them

    def add(self, rows: Tensor) -> None:
        """Count in what the layer multiplies, ``[parts, tokens, in]``.

        Raises:
            UsageError: Not as many features as the Hessian has.
        """
        parts, new, width = rows.shape
        if not self._matrix.numel():
            dtype = torch.promote_types(rows.dtype, torch.float32)
            self._matrix = rows.new_zeros(parts, width, width, dtype=dtype)
        if self._matrix.shape != (parts, width, width):
            raise UsageError(
                f"the layer has {self._matrix.shape[-1]} inputs, got {width}"
            )
        if not new:
            return
        self._restore()
        count = self.tokens + new
        for matrix, part in zip(self._matrix, rows.to(self._matrix), strict=True):
            _add_upper(matrix, part, old_share=self.tokens / count, scale=2 / count)
        self.tokens, self._holds = count, "upper"

    @property
    def hessian(self) -> Tensor:
        """``[parts, in, in]``, in at least fp32; empty before the first rows."""
        self._restore()
        if self._holds == "upper":
            for matrix in self._matrix:
                _mirror(matrix, upper_to_lower=True)
            self._holds = "whole"
        return self._matrix

    @property
    def unused(self) -> int:
        """How many inputs were zero in every row."""
        self._restore()
        return int((self._matrix.diagonal(dim1=-2, dim2=-1) == 0).sum())

    @property
    def inputs(self) -> int:
        """How many inputs there are."""
        return self._matrix.shape[0] * self._matrix.shape[-1]

    def inverses(self) -> "list[InverseFactor]":
        """The factor of each part's inverse, damped as much as that takes.

        They take the place of the Hessian until that is asked for.

        Raises:
            SingularError: None of `DAMPS` is enough.
            NonFiniteError: The Hessian is NaN or infinite.
        """
        if self._holds != "factors":
            whole = self.hessian
            refuse_nonfinite(whole)
            self._tiles = [_diagonal_tiles(matrix) for matrix in whole]
            self._holds = "factors"
            self._inverses = [
                _damped_enough(matrix, tiles)
                for matrix, tiles in zip(whole, self._tiles, strict=True)
            ]
        return self._inverses

    def _restore(self) -> None:
        if self._holds == "factors":
            for matrix, tiles in zip(self._matrix, self._tiles, strict=True):
                _bring_back(matrix, tiles)
            self._holds, self._inverses, self._tiles = "whole", [], []


@dataclass(frozen=True)
class InverseFactor:
    """What SparseGPT needs of a Hessian.

    Attributes:
        upper: U, ``[in, in]``, positive on its diagonal, with H^-1 = U^T U; what lies
            below the diagonal means nothing.
        unused: Inputs that were never seen, boolean ``[in]``.
    """

    upper: Tensor
    unused: Tensor


def damped(hessian: Tensor, damp: float) -> Tensor:
    """The Hessian that is inverted: 1 for inputs never seen, then ``damp`` added.

    Args:
        hessian: ``[in, in]``.
        damp: Share of the mean of the diagonal that each of its entries is raised by.
    """
    hessian = hessian.clone()
    _damp(hessian, damp)
    return hessian


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper triangular U, positive on its diagonal, with H^-1 = U^T U.

    Raises:
        SingularError: H is not positive definite.
    """
    factor = hessian.clone()
    invert_in_place(factor)
    return factor.triu_()


def refuse_nonfinite(matrix: Tensor) -> None:
    """Refuse weights or Hessians with NaN or infinity, without a copy of them.

    Raises:
        NonFiniteError: It holds some.
    """
    if matrix.numel() and not bool(torch.stack(matrix.aminmax()).isfinite().all()):
        raise NonFiniteError("a weight or the Hessian of the inputs is not finite")


def invert_in_place(matrix: Tensor) -> None:
    """Turn the upper triangle of H, ``[in, in]``, into that of U with H^-1 = U^T U.

    The lower triangle stays H, but for the tiles on the diagonal.

    Raises:
        SingularError: H is not positive definite; then both are spoilt.
    """
    # H = R R^T with R upper, found from the last column to the first; U = R^-1. The
    # paper factors the inverse: the same U, for more work and with more rounding.
    tiles = _tiles_of(matrix)
    for number in reversed(range(len(tiles))):
        _factor_tile(matrix, tiles[: number + 1])
    one = torch.eye(min(TILE, len(matrix)), dtype=matrix.dtype, device=matrix.device)
    for number in range(len(tiles)):
        _invert_tile(matrix, tiles[: number + 1], one)


def _factor_tile(matrix: Tensor, tiles: list[slice]) -> None:
    """Replace the columns of the last of ``tiles`` by R's, and take them from H."""
    *others, tile = tiles
    # R R^T with R upper is the Cholesky factorization of H flipped.
    lower, failed = torch.linalg.cholesky_ex(matrix[tile, tile].flip(0, 1))
    if bool(failed):
        raise SingularError(
            "the Hessian of the inputs is not positive definite; raise damp, or "
            "calibrate with more tokens"
        )
    corner = lower.flip(0, 1)
    matrix[tile, tile] = corner
    above = matrix[: tile.start, tile]
    above.copy_(
        torch.linalg.solve_triangular(corner.t(), above, upper=False, left=False)
    )
    for other in others:
        into = matrix[: other.stop, other]
        into.addmm_(above[: other.stop], above[other].t(), alpha=-1)


def _invert_tile(matrix: Tensor, tiles: list[slice], one: Tensor) -> None:
    """Replace the columns of the last of ``tiles``, R's, by those of R^-1."""
    *others, tile = tiles
    size = tile.stop - tile.start
    corner = torch.linalg.solve_triangular(
        matrix[tile, tile], one[:size, :size], upper=True
    )
    for other in others:  # from the top: the rows below are still R's
        left = slice(other.start, tile.start)
        product = matrix[other, left] @ matrix[left, tile]
        matrix[other, tile] = product.neg_() @ corner
    matrix[tile, tile] = corner


def _tiles_of(matrix: Tensor) -> list[slice]:
    width = len(matrix)
    return [slice(at, min(at + TILE, width)) for at in range(0, width, TILE)]


def _add_upper(matrix: Tensor, part: Tensor, *, old_share: float, scale: float) -> None:
    """Add to the upper triangle alone, which of wide layers is half of the work."""
    width = len(matrix)
    for start in range(0, width, COUNTED):
        stop = min(start + COUNTED, width)
        matrix[:stop, start:stop].addmm_(
            part[:, :stop].t(), part[:, start:stop], beta=old_share, alpha=scale
        )


def _mirror(matrix: Tensor, *, upper_to_lower: bool) -> None:
    for tile in _tiles_of(matrix):
        upper, lower = matrix[: tile.start, tile], matrix[tile, : tile.start]
        if upper_to_lower:
            lower.copy_(upper.t())
        else:
            upper.copy_(lower.t())
    if upper_to_lower:
        for tile in _tiles_of(matrix):
            square = matrix[tile, tile]
            square.copy_(square.triu() + square.triu(1).t())


def _diagonal_tiles(matrix: Tensor) -> Tensor:
    """Copies of the tiles on the diagonal, one below the other."""
    return torch.cat(
        [
            torch.nn.functional.pad(matrix[t, t], (0, TILE - (t.stop - t.start)))
            for t in _tiles_of(matrix)
        ]
    )


def _bring_back(matrix: Tensor, kept: Tensor) -> None:
    """The whole of H again, from its lower triangle and the tiles on its diagonal."""
    for tile in _tiles_of(matrix):
        matrix[tile, tile] = kept[tile, : tile.stop - tile.start]
    _mirror(matrix, upper_to_lower=False)


def _damp(hessian: Tensor, damp: float) -> None:
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damp * diagonal.mean()


def _damped_enough(matrix: Tensor, tiles: Tensor) -> InverseFactor:
    """Damp more where the authors' 1 % leaves the Hessian singular in fp32."""
    unused = matrix.diagonal() == 0
    for damp in DAMPS:
        _damp(matrix, damp)
        try:
            invert_in_place(matrix)
        except SingularError:
            if damp == DAMPS[-1]:
                raise SingularError(
                    "the Hessian of the inputs is not positive definite, also with "
                    f"damping of {damp:g}; give more samples, --exclude this layer, or "
                    "use --method wanda"
                ) from None
            log.info("a Hessian is singular with damping %g, more is used", damp)
            _bring_back(matrix, tiles)
        else:
            break
    return InverseFactor(matrix, unused)
