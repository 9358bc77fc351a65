"""How large the numbers are that the codes of a quantized tensor stand for."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.errors import NonFiniteError
from step_cli.nm.dtypes import numpy_dtype
from step_cli.nm.tensor_data import TensorData

Array = npt.NDArray[Any]


class CodeSizes:
    """The scales of a tensor: what is common to all of its codes, and what is not.

    Attributes:
        common: What all sizes are multiplied by, which changes no order; 1 for numbers
            that are no codes.
        differ: Whether some codes are multiplied by other numbers than others are.

    Args:
        data: The tensor.
        name: Of the tensor.

    Raises:
        NonFiniteError: Its scale is NaN or infinite.
    """

    def __init__(self, data: TensorData, name: str) -> None:
        self._data, self._name = data, name
        self._scales = tuple(scale for scale in data.scales if scale.axes)
        self.differ = bool(self._scales)
        self.common = 1.0
        for scale in data.scales:
            self.common *= 1.0 if scale.axes else abs(float(scale.values.flat[0]))
        if not math.isfinite(self.common):
            raise self._refused()

    def of(
        self, codes: Array, zero: Array | None, positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The sizes of some codes in fp32, but for ``common``.

        Args:
            codes: Integers, or the bits of floats.
            zero: The codes that mean zero; None: they are floats.
            positions: Row-major, of the codes.

        Raises:
            NonFiniteError: A scale makes one NaN or infinite.
        """
        if zero is None:
            numbers = codes.view(numpy_dtype(self._data.dtype)).astype(np.float32)
        else:
            numbers = (codes.astype(np.int64) - zero).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for scale in self._scales:
                numbers = numbers * scale.at(positions, self._data.array.shape)
        if not np.isfinite(numbers).all():
            raise self._refused()
        sizes: npt.NDArray[np.float32] = np.abs(numbers)
        return sizes

    def _refused(self) -> NonFiniteError:
        return NonFiniteError(
            "its scale makes weights NaN or infinite, which cannot be ordered; "
            "quantize it again",
            tensor=self._name,
        )
