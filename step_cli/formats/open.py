"""One reader for all files: any CHECKPOINT becomes a list of named arrays.

`verify-nm`, `prune` and `export` loop over ``open_checkpoint(path).tensors`` and do
not know which format they read. Reading runs no code from the file, checks every size
before it is used, and maps the data instead of loading it.

A reader is imported where it is needed: a check has no time for the others.
"""

from pathlib import Path

from step_cli.formats.checkpoint import Checkpoint, NamedTensor, ZeroPoint
from step_cli.formats.files.content import format_of
from step_cli.formats.files.mapped_file import MappedFile, is_directory, map_file


def open_checkpoint(path: Path) -> Checkpoint:
    """Open any CHECKPOINT, a file or a directory.

    Raises:
        InputError: It is missing, corrupt, unsafe, over a limit, or not a checkpoint.
        MissingError: Reading it needs a library that is not installed.
    """
    if is_directory(path):
        from step_cli.formats.huggingface.reader import open_directory

        return _with_zero_points(open_directory(path))
    opened = open_file(path)
    if opened.format == "onnx":
        return opened
    if any(tensor.name.endswith(".bitmask") for tensor in opened.tensors):
        from step_cli.formats.compressed.bitmask import unpacked

        opened = unpacked(opened)
    if opened.plan is None:  # a plan would tell every layer and axis
        from step_cli.formats.huggingface.model_config import with_config

<<<<<<< HEAD
        opened = with_config(opened, path.parent)
    return opened
=======
        opened = replace(opened, model_config=model_config_in(path.parent))
    return _with_zero_points(opened)


def _with_zero_points(checkpoint: Checkpoint) -> Checkpoint:
    """The same, where the zero of integer codes is stored beside them as codes.

    As compressed-tensors does: ``NAME_zero_point``, one, or one for each row.
    """
    named = {tensor.name: tensor for tensor in checkpoint.tensors}
    if not any(name.endswith("_zero_point") for name in named):
        return checkpoint
    tensors = []
    for tensor in checkpoint.tensors:
        beside = named.get(f"{tensor.name}_zero_point")
        if beside is not None and tensor.dtype == "int8" and tensor.shape:
            tensor = _with_zero_point(tensor, beside)
        tensors.append(tensor)
    return replace(checkpoint, tensors=tensors)


def _with_zero_point(tensor: NamedTensor, beside: NamedTensor) -> NamedTensor:
    sizes = [size for size in beside.shape if size != 1]
    if beside.dtype != "int8" or sizes not in ([], [tensor.shape[0]]):
        return replace(tensor, skip="kind")  # one for each block of a row
    codes = beside.read().reshape(-1)
    return replace(tensor, zero_point=ZeroPoint(codes, 0 if sizes else None))
>>>>>>> main


def open_file(path: Path) -> Checkpoint:
    """Open one file, by its suffix, which must agree with its first bytes.

    Raises:
        InputError: It is missing, corrupt, unsafe, over a limit, or not a checkpoint.
        MissingError: Reading it needs a library that is not installed.
    """
    file = map_file(path)
    kind = format_of(file)
    if kind == "onnx":
        from step_cli.formats.onnx.reader import open_onnx

        return open_onnx(file)
    if kind == "torch":
        from step_cli.formats.pytorch.reader import open_torch

        return open_torch(file)
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
