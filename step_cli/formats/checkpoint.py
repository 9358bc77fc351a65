"""What a checkpoint is, whatever its format: named tensors, a plan, and notes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from step_cli.formats.files.mapped_file import MappedFile
from step_cli.nm.families import NOTHING_KNOWN, ModelConfig
from step_cli.nm.pattern import Plan
from step_cli.nm.tensor_data import Part, Scale, TensorData
from step_cli.nm.weight_rule import SkipReason


@dataclass(frozen=True)
class ZeroPoint:
    """Which integer code means zero: one for all, or one for each slice of ``axis``."""

    codes: npt.NDArray[np.generic]
    axis: int | None = None


@dataclass(frozen=True)
class Quantized:
    """How the codes of a weight become numbers, as the products of a graph tell it.

    Attributes:
        scales: What they are multiplied by, one after another; None: that is not
            known, or not the same for all products.
        scale_axes: The axes along which scales differ, or may differ.
        zero_given: Whether the file gives a zero point, be it 0.
    """

    scales: tuple[Scale, ...] | None
    scale_axes: frozenset[int]
    zero_given: bool


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file, row by row.

    Attributes:
        file: The file.
        begin: First byte.
        end: One past the last byte.
        order: Its axes from the slowest to the fastest, if they may lie in another
            order.
        strides: Bytes from one element to the next along each axis, if bytes of others
            lie between, or one element is stored for several.
    """

    file: MappedFile
    begin: int
    end: int
    order: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True)
class NamedTensor:
    """One tensor of a file: its description, and its data when read.

    Attributes:
        name: As stored, unescaped.
        dtype: NumPy spelling; ``bfloat16`` and ``float8_*`` too.
        shape: As stored.
        read: Returns the data as a read-only array of ``shape``, mapped where possible.
        axis: The group axis if the file has it (ONNX node), else None: by evidence.
        output_axis: The axis of the outputs if the file has it (ONNX node), else None.
        parts: The parts of it that products use, if the file has them (ONNX nodes);
            empty: all of it.
        skip: Why the file itself rules it out (``consumer``, ``kind``, ``untraced``),
            or None.
        is_weight: True if the file itself marks it as one (ONNX node).
        shared_with: What else uses the stored numbers (an ONNX Gather, an output), in
            words, or None.
        tied_to: The earlier name that shares this storage, or None.
        zero_point: For integer codes, which code means zero.
        quantized: For codes of a file that has it (ONNX nodes), what they stand for.
        place: Where it lies row by row, for those who write a changed copy of the file.
        among: Where its elements lie among others, if not row by row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.generic]]
    axis: int | None = None
    output_axis: int | None = None
    parts: tuple[Part, ...] = ()
    skip: SkipReason | None = None
    is_weight: bool = False
    shared_with: str | None = None
    tied_to: str | None = None
    zero_point: ZeroPoint | None = None
    quantized: Quantized | None = None
    place: Place | None = None
    among: Place | None = None

    def data(self) -> TensorData:
        """The data, the codes that mean zero, and the scales of the others."""
        zero = self.zero_point
        return TensorData(
            self.read(),
            self.dtype,
            None if zero is None else zero.codes,
            None if zero is None else zero.axis,
            () if self.quantized is None else self.quantized.scales or (),
        )


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
        integrity: What showed that the data is undamaged: ``sha256``, ``crc32``, or
            ``unchecked`` where nothing is recorded.
        compressed: Whether tensors are stored compressed, though read as dense ones.
        model_config: What the ``config.json`` beside it tells of the group axes.
        left_dense: Names of tensors that this config says were left dense on purpose.
        metadata: What the user noted in the header of a safetensors file.
        negative_zeros: How many -0.0 were dropped by who compressed them; None where
            that is not recorded.
        key: What the user gave as the keys to the state dict of a torch file, or None.
    """

    path: Path
    format: str
    tensors: list[NamedTensor]
    plan: Plan | None
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    integrity: str = "unchecked"
    compressed: bool = False
    model_config: ModelConfig = NOTHING_KNOWN
    left_dense: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    negative_zeros: int | None = None
    key: str | None = None
