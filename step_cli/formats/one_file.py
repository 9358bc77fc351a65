"""Which reader a single file is for."""

from pathlib import Path

from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.content import format_of
from step_cli.formats.files.mapped_file import map_file


def open_file(path: Path) -> Checkpoint:
    """Open one file, by its suffix, which must agree with its first bytes.

    Raises:
        InputError: It is missing, corrupt, unsafe, over a limit, or not a checkpoint.
        MissingError: Reading it needs a library that is not installed.
    """
    file = map_file(path)
    kind = format_of(file)
    # Imported where needed, as most runs read one format only.
    if kind == "onnx":
        from step_cli.formats.onnx.reader import open_onnx

        return open_onnx(file)
    if kind == "torch":
        from step_cli.formats.pytorch.reader import open_torch

        return open_torch(file)
    from step_cli.formats.safetensors.reader import open_safetensors

    return open_safetensors(file)
