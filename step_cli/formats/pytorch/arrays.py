"""Between NumPy arrays and torch tensors, bit for bit and in every dtype."""

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Types NumPy lacks travel as integers of the same size.
_FOREIGN = {
    torch.bfloat16: (torch.int16, np.dtype(ml_dtypes.bfloat16)),
    torch.float8_e4m3fn: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn)),
    torch.float8_e5m2: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2)),
    torch.float8_e4m3fnuz: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    torch.float8_e5m2fnuz: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2fnuz)),
}
_BACK = {array: (tensor, carrier) for tensor, (carrier, array) in _FOREIGN.items()}


def to_array(tensor: Tensor) -> npt.NDArray[Any]:
    """The tensor as an array; shares its memory where it lies contiguous on the CPU."""
    own = tensor.detach().cpu().contiguous()
    if own.dtype not in _FOREIGN:
        return own.numpy()
    carrier, dtype = _FOREIGN[own.dtype]
    return own.view(carrier).numpy().view(dtype)


def to_tensor(array: npt.NDArray[Any]) -> Tensor:
    """A copy of the array as a tensor on the CPU."""
    own = np.array(array, order="C", copy=True)
    if own.dtype not in _BACK:
        return torch.from_numpy(own)
    dtype, carrier = _BACK[own.dtype]
    plain = own.view(np.int16 if carrier is torch.int16 else np.uint8)
    return torch.from_numpy(plain).view(dtype)


def mapped_tensor(array: npt.NDArray[Any]) -> Tensor:
    """The array as a tensor that shares its memory, and is not to be written to."""
    if not array.flags.aligned or not array.flags.c_contiguous:
        return to_tensor(array)
    dtype, carrier = _BACK.get(array.dtype, (None, None))
    if dtype is None:
        return _shared(array)
    plain = array.view(np.int16 if carrier is torch.int16 else np.uint8)
    return _shared(plain).view(dtype)


def _shared(array: npt.NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():  # that it must not be written to
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)
