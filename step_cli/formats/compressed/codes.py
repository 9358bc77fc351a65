"""Codes and their scales: int8 or fp8 tensors that mean numbers only together.

Beside the codes ``NAME`` stands ``NAME_scale``, a floating tensor: one number for all
of them, one for each output, or one for each block of equal size along each axis. A
code means ``(code - zero point) * scale``; without ``NAME_zero_point`` that point is 0.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy learns bfloat16 and fp8 from it)
import numpy as np
import numpy.typing as npt

from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.flaws import CompressedFileError, Flaw
from step_cli.formats.safetensors.header import CODES
from step_cli.formats.zero_points import ZERO_POINT
from step_cli.nm.pattern import Plan

SCALE = "_scale"
CODE_TYPES = frozenset(
    {"int8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}
)
SCALE_TYPES = frozenset({"float64", "float32", "float16", "bfloat16"})
ZERO_TYPES = frozenset({"int8", "int16", "int32", "int64", *CODE_TYPES})

Array = npt.NDArray[Any]


def scales_of(tensors: Sequence[NamedTensor], plan: Plan) -> dict[str, str]:
    """The name of the scale of each tensor of codes, by the name of the codes.

    A scale or zero point of another shape than those above is not understood: its codes
    are left out, and are bits like any others.

    Args:
        tensors: All of a checkpoint.
        plan: See :func:`output_axis`.
    """
    known = {tensor.name: tensor for tensor in tensors}
    return {
        codes.name: codes.name + SCALE
        for codes in tensors
        if codes.dtype in CODE_TYPES
        and codes.name + SCALE in known
        and _unfit(codes, codes.name + SCALE, known, plan) is None
    }


def checked_scales(
    codes: Mapping[str, tuple[str, str]],
    tensors: Sequence[NamedTensor],
    plan: Plan,
    file: Path,
) -> dict[str, str]:
    """The scale of each tensor of codes, as a file describes them.

    Args:
        codes: The type of each, as safetensors spells it, and the name of its scale.
        tensors: All tensors of the file.
        plan: See :func:`output_axis`.
        file: For messages.

    Raises:
        CompressedFileError: One is not there, or not as it is described.
    """
    known = {tensor.name: tensor for tensor in tensors}
    for name, (kind, scale) in codes.items():
        refuse = partial(CompressedFileError, file=file, tensor=name)
        if name not in known:
            raise refuse(Flaw.CODES_MISSING)
        stored = CODES.get(known[name].dtype, known[name].dtype)
        if stored != kind or known[name].dtype not in CODE_TYPES:
            raise refuse(Flaw.CODES_DISAGREE, wanted=kind, found=stored)
        if scale not in known:
            raise refuse(Flaw.SCALE_MISSING, scale=scale)
        unfit = _unfit(known[name], scale, known, plan)
        if unfit is not None:
            raise refuse(
                Flaw.SCALE_DISAGREES,
                scale=unfit.name,
                found=f"{unfit.dtype} of {list(unfit.shape)}",
                shape=list(known[name].shape),
            )
    return {name: scale for name, (_, scale) in codes.items()}


def output_axis(name: str, plan: Plan) -> int:
    """The axis that a scale of one dimension runs along: 1 where groups run along 0."""
    return 1 if name in plan and plan[name].axis == 0 else 0


def _unfit(
    codes: NamedTensor, scale: str, known: Mapping[str, NamedTensor], plan: Plan
) -> NamedTensor | None:
    """The scale of codes or their zero point, if it cannot be theirs."""
    axis = output_axis(codes.name, plan)
    zero = known.get(codes.name + ZERO_POINT)
    for beside, types in ((known[scale], SCALE_TYPES), (zero, ZERO_TYPES)):
        if beside is not None and (
            beside.dtype not in types or not _divides(beside.shape, codes.shape, axis)
        ):
            return beside
    return None


def _divides(parts: Sequence[int], codes: Sequence[int], axis: int) -> bool:
    if len(codes) < 2 or 0 in codes:
        return False
    if math.prod(parts) == 1:
        return True
    if len(parts) == 1:
        return parts[0] == codes[axis]
    return len(parts) == len(codes) and all(
        part > 0 and whole % part == 0 for part, whole in zip(parts, codes, strict=True)
    )


def numbers_of(
    codes: Array, scale: Array, zero_point: Array | None = None, *, axis: int = 0
) -> npt.NDArray[np.float32]:
    """What codes mean, in fp32.

    Args:
        codes: Of int8 or fp8.
        scale: One for all, ``[outputs]``, or one for each block: of the rank of
            ``codes``, each size a divisor of theirs.
        zero_point: Of the shape of one of these, or None: 0.
        axis: Along which the outputs lie.
    """
    numbers = codes.astype(np.float32)
    if zero_point is not None:
        numbers -= _spread(zero_point.astype(np.float32), codes.shape, axis)
    numbers *= _spread(scale.astype(np.float32), codes.shape, axis)
    return numbers


def _spread(values: Array, shape: Sequence[int], axis: int) -> Array:
    """The values so that they stand beside codes of ``shape``, by broadcasting."""
    if values.size == 1:
        return values.reshape(())
    if values.ndim == 1:
        sizes = [1] * len(shape)
        sizes[axis] = values.size
        return values.reshape(sizes)
    for at, (part, whole) in enumerate(zip(values.shape, shape, strict=True)):
        if part > 1:
            values = values.repeat(whole // part, at)
    return values


def dequantized(
    tensors: Mapping[str, NamedTensor], scales: Mapping[str, str], plan: Plan
) -> dict[str, NamedTensor]:
    """All tensors, codes read as the numbers they mean, in fp32; without their scales.

    Args:
        tensors: By name.
        scales: The name of the scale of each tensor of codes.
        plan: See :func:`output_axis`.
    """
    used = {*scales.values(), *(name + ZERO_POINT for name in scales)}
    found = {}
    for name, tensor in tensors.items():
        if name in scales:
            found[name] = _meant(
                tensor,
                tensors[scales[name]],
                tensors.get(name + ZERO_POINT),
                axis=output_axis(name, plan),
            )
        elif name not in used:
            found[name] = tensor
    return found


def _meant(
    codes: NamedTensor, scale: NamedTensor, zero: NamedTensor | None, *, axis: int
) -> NamedTensor:
    def read() -> Array:
        point = None if zero is None else zero.read()
        return numbers_of(codes.read(), scale.read(), point, axis=axis)

    return NamedTensor(codes.name, "float32", codes.shape, read)
