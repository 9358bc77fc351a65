"""The header of a safetensors file, with every claim checked before it is used.

Format: 8 bytes of length, that many bytes of JSON, then the data. The library accepts
repeated names and headers of 100 MB, so the header is read by hand.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from step_cli.errors import InputError
from step_cli.formats.files.json_text import json_object
from step_cli.formats.files.mapped_file import MappedFile, in_units
from step_cli.nm.dtypes import numpy_dtype

OWN_METADATA = "step_cli."  # begins the keys of our own metadata
COMPRESSED_KEY = "step_cli.compressed"  # metadata of `export --to compressed`

LONGEST_HEADER = 16 << 20  # bytes
MOST_TENSORS = 200_000
MOST_DIMENSIONS = 64  # of NumPy
LARGEST_SIZE = 2**63 - 1  # of one dimension

# Name in NumPy's spelling, and bits of one element.
DTYPES = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "U16": ("uint16", 16),
    "I16": ("int16", 16),
    "U32": ("uint32", 32),
    "I32": ("int32", 32),
    "U64": ("uint64", 64),
    "I64": ("int64", 64),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F32": ("float32", 32),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F4": ("float4_e2m1fn", 4),
    "F6_E2M3": ("float6_e2m3fn", 6),
    "F6_E3M2": ("float6_e3m2fn", 6),
}
CODES = {name: code for code, (name, _) in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a header.

    Attributes:
        name: As stored.
        code: The format's own name of the type, such as ``BF16``.
        shape: As stored.
        begin: First byte, counted from the start of the file.
        end: One past the last byte.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type; of packed types that of one unpacked element."""
        return numpy_dtype(self.dtype_name)

    @property
    def dtype_name(self) -> str:
        """The type in NumPy's spelling, known without a library."""
        return DTYPES[self.code][0]

    @property
    def packed(self) -> bool:
        """Whether elements are narrower than a byte and cannot be viewed."""
        return DTYPES[self.code][1] < 8


@dataclass(frozen=True)
class Header:
    """What is in the header of a safetensors file."""

    entries: list[Entry]  # in the order of the header
    metadata: dict[str, str]
    data_start: int  # byte of the file

    @property
    def user_metadata(self) -> dict[str, str]:
        """What the user or another program noted, without our own entries."""
        own = OWN_METADATA
        return {k: v for k, v in self.metadata.items() if not k.startswith(own)}


def read_header(file: MappedFile) -> Header:
    """Read and check the header of ``file``.

    Raises:
        InputError: A limit, the JSON, an entry or the extents are wrong.
    """
    start = 8 + _header_length(file)
    document = _parse(file.data[8:start].tobytes(), file)
    metadata = document.pop("__metadata__", None)
    if metadata is None:  # absent, or null, which the reference reader allows
        metadata = {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise InputError("__metadata__ is not a map of text to text", file=file.path)
    entries = [_entry(name, value, start, file) for name, value in document.items()]
    _check_extents(entries, start, file)
    return Header(entries, metadata, start)


def _header_length(file: MappedFile) -> int:
    if file.size < 8:
        raise InputError(
            f"truncated: needs 8 bytes of header length, file has {file.size}",
            file=file.path,
        )
    length = int.from_bytes(file.head(8), "little")
    if length + 8 > file.size:
        raise InputError(
            f"header length {length} does not fit: truncated, or no safetensors; "
            f"needs {length + 8} bytes, file has {file.size}",
            file=file.path,
        )
    if length > LONGEST_HEADER:
        raise InputError(
            f"header {in_units(length)}, limit {in_units(LONGEST_HEADER)}",
            file=file.path,
        )
    return length


def _parse(raw: bytes, file: MappedFile) -> dict[str, Any]:
    # Counted before parsing, as Python needs about 100 bytes for each of these.
    tensors, lists = raw.count(b'"data_offsets"'), raw.count(b"[") + raw.count(b"{")
    if tensors > MOST_TENSORS or lists > 4 * MOST_TENSORS:
        raise InputError(
            f"header of {max(tensors, lists // 3)} tensors, limit {MOST_TENSORS}",
            file=file.path,
        )
    return json_object(raw, "header", file=file.path)


def _entry(name: str, value: object, start: int, file: MappedFile) -> Entry:
    def refuse(what: str) -> InputError:
        return InputError(what, file=file.path, tensor=name)

    try:
        name.encode()
    except UnicodeEncodeError:
        raise refuse("its name is not text (a lone surrogate)") from None
    if not isinstance(value, dict):
        raise refuse("its entry is not an object")
    code, shape = value.get("dtype"), value.get("shape")
    offsets = value.get("data_offsets")
    if not isinstance(code, str) or code not in DTYPES:
        raise refuse(f"unknown dtype {code!r:.40}")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise refuse(f"shape {shape!r:.60} is not a list of sizes >= 0")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"data_offsets {offsets!r:.60} are not two rising offsets")
    needed = -(-math.prod(shape) * DTYPES[code][1] // 8)
    if needed != offsets[1] - offsets[0]:
        raise refuse(
            f"{code} of shape {shape!r:.60} needs {needed} bytes, "
            f"data_offsets give {offsets[1] - offsets[0]}"
        )
    return Entry(name, code, tuple(shape), start + offsets[0], start + offsets[1])


def _sizes(value: object) -> TypeGuard[list[int]]:
    """Whether it is a list of sizes; ``True`` and ``2.0`` are not."""
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size <= LARGEST_SIZE for size in value
    )


def _check_extents(entries: list[Entry], start: int, file: MappedFile) -> None:
    """Each byte of the data belongs to exactly one tensor."""
    reached = start
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != reached:
            found = (
                "overlaps the one before it"
                if entry.begin < reached
                else "leaves a gap"
            )
            raise InputError(
                f"data_offsets {found}: starts at {entry.begin - start}, "
                f"expected {reached - start}",
                file=file.path,
                tensor=entry.name,
            )
        reached = entry.end
    if reached > file.size:
        raise InputError(
            f"truncated: needs {reached} bytes, file has {file.size}", file=file.path
        )
    if reached < file.size:
        raise InputError(
            f"{file.size - reached} bytes after the last tensor belong to none",
            file=file.path,
        )
