"""One weight as a semi-structured tensor of torch: 2:4, for sparse tensor cores.

Types and sizes: `_DTYPE_SHAPE_CONSTRAINTS` of torch/sparse/semi_structured.py, 2.13.
int8 and fp8 tensors exist too, but a Linear layer cannot multiply by them.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUTLASS,
    to_sparse_semi_structured,
)

AMPERE = (8, 0)  # first compute capability with sparse tensor cores
HALF = (torch.float16, torch.bfloat16)
MULTIPLE = 16  # of both sizes, for cuSPARSELt; CUTLASS needs multiples of 32 and 64
LONGEST = 160  # characters of an error of torch that are shown

# cuSPARSELt comes first; builds of torch without it have CUTLASS, for 8.x GPUs.
BACKENDS: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("cuSPARSELt", lambda weight: to_sparse_semi_structured(weight)),
    ("CUTLASS", lambda weight: SparseSemiStructuredTensorCUTLASS.from_dense(weight)),
)


class StaysPlainError(Exception):
    """Why a weight stays the plain tensor it is; for a report, or to be passed over."""


def check_kind(weight: Tensor) -> None:
    """Whether torch has sparse kernels for the type and the sizes of a weight.

    Raises:
        StaysPlainError: It has none.
    """
    if weight.dim() != 2:
        raise StaysPlainError(f"{weight.dim()} axes, and sparse kernels take two")
    if weight.dtype not in HALF:
        raise StaysPlainError(f"{_name(weight.dtype)}: convert it to float16, bfloat16")
    if any(size % MULTIPLE or not size for size in weight.shape):
        sizes = "x".join(map(str, weight.shape))
        raise StaysPlainError(f"{sizes}: both sizes must be multiples of {MULTIPLE}")


def check_device(weight: Tensor) -> None:
    """Whether a weight is on a GPU with sparse tensor cores.

    Raises:
        StaysPlainError: It is not.
    """
    if not weight.is_cuda:
        raise StaysPlainError(f"on {weight.device}: sparse kernels need an NVIDIA GPU")
    found = torch.cuda.get_device_capability(weight.device)
    if found < AMPERE:
        raise StaysPlainError(
            f"compute capability {found[0]}.{found[1]}: sparse kernels need 8.0"
        )


@torch.no_grad()
def semi_structured(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A weight of a Linear layer in the order of the hardware.

    Some machines convert and then cannot multiply, so each is tried in a product.

    Args:
        weight: ``[out, in]``, in each four along axis 1 at most two that are not zero;
            that is not checked.
        bias: ``[out]``, what the layer adds.

    Raises:
        StaysPlainError: Type, size or device have no sparse kernel, or torch refuses.
    """
    check_kind(weight)
    check_device(weight)
    weight = weight.contiguous()
    probe = weight.new_zeros(8, weight.shape[1])
    refusals = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the type a prototype
        for name, convert in BACKENDS:
            try:
                converted = convert(weight)
                functional.linear(probe, converted, bias)
                return converted
            except RuntimeError as error:
                refusals.append(f"{name}: {' '.join(str(error).split())[:LONGEST]}")
    raise StaysPlainError(f"torch cannot multiply by it ({'; '.join(refusals)})")


def is_semi_structured(tensor: Tensor) -> bool:
    """Whether a tensor is in the order of the hardware already."""
    return isinstance(tensor, SparseSemiStructuredTensor)


def backend_of(converted: Tensor) -> str:
    """``cusparselt`` or ``cutlass``: which library multiplies by a tensor."""
    return str(getattr(converted, "BACKEND", ""))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
