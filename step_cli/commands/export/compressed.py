"""`export --to compressed` and back with `--to dense`, both without torch."""

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (NumPy learns bfloat16 and fp8 from it)
import numpy as np

from step_cli.commands.export.source import Source, size_bytes
from step_cli.config.commands import ExportConfig
from step_cli.errors import InputError, OutputError
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.codec import differing_bits
from step_cli.formats.compressed.writer import save_compressed
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.files.staged import staged
from step_cli.formats.open import open_any_safetensors, open_checkpoint
from step_cli.formats.plan import KEY as PLAN_KEY
from step_cli.formats.plan import plan_json
from step_cli.formats.safetensors.header import CODES
from step_cli.formats.safetensors.writer import TensorToSave, save_safetensors
from step_cli.render.status_line import working_on


@dataclass(frozen=True)
class Compressed:
    """What was written: sizes in bytes, and how many -0.0 will return as +0.0."""

    size_bytes: int
    values_bytes: int
    metadata_bytes: int
    negative_zeros: int


@dataclass(frozen=True)
class Decompressed:
    """What was written: sizes in bytes, and how many -0.0 were +0.0 in the input."""

    size_bytes: int
    dense_bytes: int
    negative_zeros: int | None


def to_compressed(config: ExportConfig, source: Source) -> Compressed:
    """Write kept values and sparse metadata; read back before it is published.

    Raises:
        InputError: A tensor is of a kind that the file cannot hold.
    """
    tensors = source.checkpoint.tensors
    for tensor in tensors:
        if tensor.dtype not in CODES:
            raise InputError(
                f"a safetensors file has no type {tensor.dtype}; convert or remove it",
                file=config.checkpoint,
                tensor=tensor.name,
            )
    with staged(
        config.out,
        force=config.force,
        inputs=source.inputs,
        size_bytes=source.dense_bytes,
    ) as path:
        with working_on(f"writing {config.out}"):
            written = save_compressed(
                path, tensors, source.plan, source.checkpoint.metadata
            )
        zeros = _read_back(path, tensors)
        output = path.stat().st_size
    return Compressed(output, written.values, written.metadata, zeros)


def to_dense(config: ExportConfig) -> Decompressed:
    """Write a compressed checkpoint back as plain safetensors.

    Raises:
        InputError: The checkpoint is not a compressed one.
    """
    with working_on(f"reading {config.checkpoint}"):
        checkpoint = open_checkpoint(config.checkpoint)
    if not checkpoint.compressed:
        raise InputError(
            f"not written by export --to compressed, but {checkpoint.format}",
            file=config.checkpoint,
        )
    size = sum(size_bytes(tensor) for tensor in checkpoint.tensors)
    inputs = [config.checkpoint, *checkpoint.files]
    with staged(config.out, force=config.force, inputs=inputs, size_bytes=size) as path:
        tensors = {tensor.name: _to_save(tensor) for tensor in checkpoint.tensors}
        # transformers refuses a file without a format in its metadata.
        metadata = {"format": "pt", **checkpoint.metadata}
        if checkpoint.plan:
            metadata[PLAN_KEY] = plan_json(checkpoint.plan)
        with working_on(f"writing {config.out}"):
            save_safetensors(path, tensors, metadata)
        _read_back(path, checkpoint.tensors)
        output = path.stat().st_size
    return Decompressed(output, size, checkpoint.negative_zeros)


def _to_save(tensor: NamedTensor) -> TensorToSave:
    return TensorToSave(np.dtype(tensor.dtype), tensor.shape, lambda: [tensor.read()])


@working_on("reading back what was written")
def _read_back(path: Path, tensors: list[NamedTensor]) -> int:
    """Compare what was written with what was meant; return the -0.0 that were lost.

    Raises:
        OutputError: A bit differs, or the file cannot be read.
    """
    zeros = 0
    try:
        written = {t.name: t for t in open_any_safetensors(map_file(path)).tensors}
        for tensor in tensors:
            lost = differing_bits(tensor.read(), written[tensor.name].read())
            if lost is None:
                raise OutputError(
                    "what was written does not read back", tensor=tensor.name
                )
            zeros += lost
    except (InputError, KeyError) as error:
        raise OutputError(f"what was written does not read back: {error}") from None
    return zeros
