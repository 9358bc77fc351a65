"""`export --to compressed`, without torch."""

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (NumPy learns bfloat16 and fp8 from it)

from step_cli.commands.export.source import Source
from step_cli.config.commands import ExportConfig
from step_cli.errors import InputError, OutputError
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.codec import differing_bits
from step_cli.formats.compressed.writer import save_compressed
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.files.staged import staged
from step_cli.formats.open import open_any_safetensors
from step_cli.formats.safetensors.header import CODES
from step_cli.render.status_line import working_on


@dataclass(frozen=True)
class Compressed:
    """What was written: sizes in bytes, and how many -0.0 will return as +0.0."""

    size_bytes: int
    values_bytes: int
    metadata_bytes: int
    negative_zeros: int


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
        zeros = read_back(path, tensors)
        output = path.stat().st_size
    return Compressed(output, written.values, written.metadata, zeros)


@working_on("reading back what was written")
def read_back(path: Path, tensors: list[NamedTensor]) -> int:
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
