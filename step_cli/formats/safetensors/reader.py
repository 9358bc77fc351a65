"""A safetensors file as a list of named arrays, mapped and not copied."""

from functools import partial
from typing import Any

import numpy.typing as npt

from step_cli.errors import InputError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor, Place
from step_cli.formats.files.mapped_file import MappedFile
from step_cli.formats.plan import KEY, parse_plan
from step_cli.formats.safetensors.header import Entry, Header, read_header
from step_cli.formats.zero_points import with_zero_points


def open_safetensors(file: MappedFile, header: Header | None = None) -> Checkpoint:
    """The checkpoint in a safetensors file, its tensors as they are stored.

    Args:
        file: The file.
        header: Its header, if that was read already.

    Raises:
        InputError: The header does not hold, or the plan in it.
    """
    header = header or read_header(file)
    text = header.metadata.get(KEY)
    return Checkpoint(
        file.path,
        "safetensors",
        with_zero_points(tensors_of(file, header)),
        None if text is None else parse_plan(text, file=file.path),
        files=(file.path,),
        metadata=header.user_metadata,
    )


def tensors_of(file: MappedFile, header: Header) -> list[NamedTensor]:
    """The tensors of one file, in the order of its header."""
    return [
        NamedTensor(
            name=entry.name,
            dtype=entry.dtype_name,
            shape=entry.shape,
            read=partial(read_entry, file, entry),
            skip="kind" if entry.packed or entry.code == "C64" else None,
            place=Place(file, entry.begin, entry.end),
        )
        for entry in header.entries
    ]


def read_entry(file: MappedFile, entry: Entry) -> npt.NDArray[Any]:
    """The data of one tensor, a read-only view of the mapped file.

    Raises:
        InputError: Its elements are narrower than a byte, or the file has changed.
    """
    if entry.packed:
        raise InputError(
            f"{entry.code} is packed and cannot be read",
            file=file.path,
            tensor=entry.name,
        )
    file.check_unchanged()
    return file.data[entry.begin : entry.end].view(entry.dtype).reshape(entry.shape)
