"""One reader for all files: any CHECKPOINT becomes a list of named arrays.

`verify-nm`, `prune` and `export` loop over ``open_checkpoint(path).tensors`` and do
not know which format they read. Reading runs no code from the file, checks every size
before it is used, and maps the data instead of loading it.

A reader is imported where it is needed: a check has no time for the others.
"""

from pathlib import Path

from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.content import format_of, refuse_key
from step_cli.formats.files.mapped_file import MappedFile, is_directory, map_file


def open_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Open any CHECKPOINT, a file or a directory.

    Args:
        path: The CHECKPOINT.
        key: The keys to the state dict in a torch file, joined by dots.

    Raises:
        UsageError: There is a key, but the checkpoint is no torch file.
        InputError: It is missing, corrupt, unsafe, over a limit, or not a checkpoint.
        MissingError: Reading it needs a library that is not installed.
    """
    if is_directory(path):
        from step_cli.formats.huggingface.reader import open_directory

        return open_directory(path, key)
    opened = open_file(path, key)
    if opened.format == "onnx":
        return opened
    if any(tensor.name.endswith(".bitmask") for tensor in opened.tensors):
        from step_cli.formats.compressed.bitmask import unpacked

        opened = unpacked(opened)
    if opened.plan is None:  # a plan would tell every layer and axis
        from step_cli.formats.huggingface.model_config import with_config

        opened = with_config(opened, path.parent)
    return opened


def open_file(path: Path, key: str | None = None) -> Checkpoint:
    """Open one file, by its suffix, which must agree with its first bytes.

    Args:
        path: The file.
        key: As for `open_checkpoint`.

    Raises:
        UsageError: There is a key, but the checkpoint is no torch file.
        InputError: It is missing, corrupt, unsafe, over a limit, or not a checkpoint.
        MissingError: Reading it needs a library that is not installed.
    """
    file = map_file(path)
    kind = format_of(file)
    if kind == "torch":
        from step_cli.formats.pytorch.reader import open_torch

        return open_torch(file, key)
    refuse_key(key, path)
    if kind == "onnx":
        from step_cli.formats.onnx.reader import open_onnx

        return open_onnx(file)
    return open_any_safetensors(file)


def open_any_safetensors(file: MappedFile) -> Checkpoint:
    """The checkpoint in a safetensors file, plain or compressed.

    Raises:
        InputError: The header does not hold, or its entries on the tensors.
    """
    from step_cli.formats.safetensors.header import COMPRESSED_KEY, read_header

    header = read_header(file)
    if COMPRESSED_KEY in header.metadata:
        from step_cli.formats.compressed.reader import open_compressed

        return open_compressed(file, header)
    from step_cli.formats.safetensors.reader import open_safetensors

    return open_safetensors(file, header)
