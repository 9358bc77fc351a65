"""A stand-in for the GPU that multiplies by semi-structured tensors of torch."""

from typing import Any

import pytest
import torch
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from step_cli.formats.pytorch import semi_structured


class OnGPU:
    """A tensor as torch's check sees it, but on a GPU."""

    is_cuda = True

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)


def product(
    weight: Any, tokens: torch.Tensor, *, bias: Any = None, **options: Any
) -> torch.Tensor:
    """What the kernel of CUTLASS computes, here by torch's own expansion."""
    found: torch.Tensor = tokens @ weight.to_dense().t()
    return found if bias is None else found + bias


def refuse(*given: Any, **options: Any) -> Any:
    raise RuntimeError("not supported on\nyour machine")


def stand_in(monkeypatch: pytest.MonkeyPatch, *, multiplies: bool = True) -> None:
    """Have CUTLASS's tensors made and multiplied on the CPU.

    The conversion, and the checks of types and sizes, are torch's own; only the check
    for a GPU and the kernel are replaced. cuSPARSELt's tensors still need a GPU.
    """
    kind = SparseSemiStructuredTensorCUTLASS
    check: Any = kind._validate_device_dim_dtype_shape
    instead = classmethod(lambda cls, tensor: check.__func__(cls, OnGPU(tensor)))
    monkeypatch.setattr(kind, "_validate_device_dim_dtype_shape", instead)
    monkeypatch.setattr(kind, "_mm", product if multiplies else refuse)
    monkeypatch.setattr(semi_structured, "check_device", lambda weight: None)
