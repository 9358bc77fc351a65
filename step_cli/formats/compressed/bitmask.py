"""Read tensors that old compressed-tensors releases stored as values and a bitmask.

Two formats, which newer releases of that library no longer read. A weight ``X.weight``
lies in the file as

* ``X.shape``: int64, the dense shape, two sizes;
* ``X.bitmask``: uint8, ``[rows, ceil(columns / 8)]``, a set bit where a value is kept,
  the first column in the lowest bit;
* ``X.compressed``: the values in row-major order, for ``sparse-24-bitmask`` as
  ``[rows, columns / 2]``, two of each four columns; for ``sparse-bitmask`` flat;
* ``X.row_offsets``: int64, ``sparse-bitmask`` only: the first value of each row.

Source: compressed-tensors 0.9.4, ``compressors/sparse_compressors``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from step_cli.errors import InputError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.zero_points import with_zero_points
from step_cli.nm.pattern import NMPattern, NMSpec, Plan

SHAPE, BITMASK, VALUES, OFFSETS = ".shape", ".bitmask", ".compressed", ".row_offsets"
TWO_FOUR = NMSpec(NMPattern(2, 4), 1)
BLOCK_ROWS = 1024  # unpacked at a time: a bit takes a byte then


@dataclass(frozen=True)
class Packed:
    """The parts of one weight, their sizes checked against each other."""

    shape: tuple[int, int]
    bitmask: NamedTensor
    values: NamedTensor

    @property
    def is_two_four(self) -> bool:
        """Whether it is stored as 2:4, not as just any sparse tensor."""
        return len(self.values.shape) == 2


def unpacked(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with bitmask tensors read as the dense ones they stand for.

    What is stored as 2:4 gets that plan, unless the checkpoint has one of its own.

    Raises:
        InputError: Parts of a tensor are missing, or disagree.
    """
    stored = {tensor.name: tensor for tensor in checkpoint.tensors}
    bases = [
        tensor.name.removesuffix(BITMASK)
        for tensor in checkpoint.tensors
        if tensor.name.endswith(BITMASK) and tensor.dtype == "uint8"
    ]
    bases = [base for base in bases if {base + SHAPE, base + VALUES} & stored.keys()]
    if not bases:
        return checkpoint
    plan: Plan = {}
    for base in bases:
        packed = _packed(base, stored, checkpoint.path)
        for part in (SHAPE, BITMASK, VALUES, OFFSETS):
            stored.pop(base + part, None)
        # Its first releases kept the whole name, later ones drop the last word.
        name = base if base.endswith(".weight") else f"{base}.weight"
        if name in stored:
            raise InputError(
                "stored both dense and as a bitmask", file=checkpoint.path, tensor=name
            )
        read = partial(_read, packed, checkpoint.path, name)
        stored[name] = NamedTensor(name, packed.values.dtype, packed.shape, read)
        if packed.is_two_four:
            plan[name] = TWO_FOUR
    file = checkpoint.format == "safetensors"
    return replace(
        checkpoint,
        format="compressed" if file else checkpoint.format,
        tensors=with_zero_points(
            sorted(stored.values(), key=lambda tensor: tensor.name)
        ),
        plan=checkpoint.plan or plan or None,
        compressed=True,
        notes=(*checkpoint.notes, f"{len(bases)} tensors of compressed-tensors"),
    )


def _packed(base: str, stored: Mapping[str, NamedTensor], file: Path) -> Packed:
    def refuse(what: str) -> InputError:
        return InputError(what, file=file, tensor=base)

    parts = []
    for part in (SHAPE, BITMASK, VALUES):
        if base + part not in stored:
            raise refuse(f"its part {part!r} is missing; name the whole directory")
        parts.append(stored[base + part])
    sizes, bitmask, values = parts
    if sizes.dtype != "int64" or sizes.shape not in ((2,), (2, 1)):
        raise refuse(
            f"{sizes.dtype} of {list(sizes.shape)} is not a shape of two sizes"
        )
    rows, columns = (int(size) for size in sizes.read().reshape(-1))
    if min(rows, columns) < 1 or bitmask.shape != (rows, -(-columns // 8)):
        raise refuse(
            f"a bitmask of {list(bitmask.shape)} is not one of shape {[rows, columns]}"
        )
    fits = (rows, columns // 2) if columns % 4 == 0 else None
    if len(values.shape) != 1 and values.shape != fits:
        raise refuse(
            f"values of {list(values.shape)} are not half of shape {[rows, columns]}"
        )
    return Packed((rows, columns), bitmask, values)


def _read(packed: Packed, file: Path, name: str) -> npt.NDArray[np.generic]:
    """The dense tensor; all that is not in the bitmask is +0."""
    rows, columns = packed.shape
    values = packed.values.read().reshape(-1)
    bitmask = packed.bitmask.read().view(np.uint8)
    kept = int(np.bitwise_count(bitmask).sum(dtype=np.int64))
    if kept != values.size:
        raise InputError(
            f"the bitmask keeps {kept} values, the file has {values.size}",
            file=file,
            tensor=name,
        )
    if columns % 8 and (bitmask[:, -1] >> np.uint8(columns % 8)).any():
        raise InputError(
            "the bitmask keeps values beyond the last column", file=file, tensor=name
        )
    dense = np.zeros(packed.shape, values.dtype)
    done = 0
    for start in range(0, rows, BLOCK_ROWS):
        flags = np.unpackbits(
            bitmask[start : start + BLOCK_ROWS], 1, count=columns, bitorder="little"
        ).view(np.bool_)
        count = int(np.count_nonzero(flags))
        dense[start : start + BLOCK_ROWS][flags] = values[done : done + count]
        done += count
    dense.flags.writeable = False
    return dense
