"""One reader for all files: any CHECKPOINT becomes a list of named arrays.

`verify-nm`, `prune` and `export` loop over ``open_checkpoint(path).tensors`` and do
not know which format they read. Reading runs no code from the file, checks every size
before it is used, and maps the data instead of loading it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from step_cli.core.plan import Plan
from step_cli.formats.mapped_file import MappedFile, is_directory, map_file


@dataclass(frozen=True)
class ZeroPoint:
    """Which integer code means zero: one for all, or one for each slice of ``axis``."""

    codes: npt.NDArray[np.generic]
    axis: int | None = None


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file, row by row.

    Attributes:
        file: The file.
        begin: First byte.
        end: One past the last byte.
        order: Its axes from the slowest to the fastest, if they lie in another order.
    """

    file: MappedFile
    begin: int
    end: int
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class NamedTensor:
    """One tensor of a file: its description, and its data when asked for.

    Attributes:
        name: As stored, unescaped.
        dtype: NumPy spelling; ``bfloat16`` and ``float8_*`` too.
        shape: As stored.
        read: Returns the data as a read-only array of ``shape``, mapped where possible.
        axis: The group axis if the file tells (ONNX node, Conv1D), else None: by rule.
        skip: Why the file itself rules it out (``consumer``, ``kind``), or None.
        is_weight: True if the file itself tells that it is a weight (ONNX node).
        tied_to: The earlier name that shares this storage, or None.
        zero_point: For integer codes, which code means zero.
        place: Where it lies row by row, for those who write a changed copy of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.generic]]
    axis: int | None = None
    skip: str | None = None
    is_weight: bool = False
    tied_to: str | None = None
    zero_point: ZeroPoint | None = None
    place: Place | None = None


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: As the user gave it.
        format: safetensors, compressed, huggingface, torch, onnx or run.
        tensors: In the order of the file.
        plan: The plan stored with the weights, or None.
        notes: What the user should know of how it was read.
        files: The files that were read, for those who must not write onto them.
        integrity: What told that the data is undamaged: ``sha256``, ``crc32``, or
            ``unchecked`` where nothing is recorded.
    """

    path: Path
    format: str
    tensors: list[NamedTensor]
    plan: Plan | None
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    integrity: str = "unchecked"


def open_checkpoint(path: Path) -> Checkpoint:
    """Open any CHECKPOINT, a file or a directory.

    Raises:
        InputError: It is missing, corrupt, unsafe, over a limit, or not a checkpoint.
        MissingError: Reading it needs a library that is not installed.
    """
    if is_directory(path):
        from step_cli.formats.directory import open_directory

        return open_directory(path)
    opened = open_file(path)
    if opened.format != "safetensors":
        return opened
    from step_cli.formats.hf_directory import with_axes

    return replace(opened, tensors=with_axes(path.parent, opened.tensors))


def open_file(path: Path) -> Checkpoint:
    """Open one file, by its suffix, which must agree with its first bytes.

    Raises:
        InputError: As `open_checkpoint`.
        MissingError: As `open_checkpoint`.
    """
    from step_cli.formats.content import format_of

    file = map_file(path)
    kind = format_of(file)
    if kind == "onnx":
        from step_cli.formats.onnx_weights import open_onnx

        return open_onnx(file)
    if kind == "torch":
        from step_cli.formats.torch_file import open_torch

        return open_torch(file)
    from step_cli.formats.safetensors_file import open_safetensors

    return open_safetensors(file)
