"""Which int8 code means zero, where a tensor beside the codes says it.

As compressed-tensors stores weights that were quantized with an offset: codes in
``X.weight``, their scales in ``X.weight_scale``, and in ``X.weight_zero_point`` one
code for all of them or one for each row.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from step_cli.formats.checkpoint import NamedTensor, ZeroPoint

ZERO_POINT = "_zero_point"


def with_zero_points(tensors: Sequence[NamedTensor]) -> list[NamedTensor]:
    """The same tensors; int8 ones with the zero point that stands beside them."""
    beside = {t.name: t for t in tensors if t.name.endswith(ZERO_POINT)}
    if not beside:
        return list(tensors)
    return [_with_zero_point(tensor, beside) for tensor in tensors]


def _with_zero_point(
    tensor: NamedTensor, beside: dict[str, NamedTensor]
) -> NamedTensor:
    stored = beside.get(tensor.name + ZERO_POINT)
    if stored is None or tensor.dtype != "int8" or not tensor.shape:
        return tensor
    if not stored.dtype.startswith("int"):
        return replace(tensor, skip="kind")
    codes = stored.read().reshape(-1)
    if not codes.any():
        return tensor
    sizes = [size for size in stored.shape if size != 1]
    if sizes not in ([], [tensor.shape[0]]):
        return replace(tensor, skip="kind")  # one for each block of a row
    return replace(
        tensor, zero_point=ZeroPoint(codes.astype(np.int8), 0 if sizes else None)
    )
