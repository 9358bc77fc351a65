"""Write a safetensors file tensor by tensor, in memory for one chunk at a time."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.formats.safetensors.header import CODES

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorToSave:
    """A tensor whose data comes in pieces.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        chunks: Yields the data in row-major order; called once.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Array]]

    @property
    def size_bytes(self) -> int:
        """Size of its data in bytes."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


def save_safetensors(
    path: Path,
    tensors: Mapping[str, Array | TensorToSave],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``tensors`` to ``path``; the same content gives the same bytes.

    Args:
        path: The file to create or overwrite; `staged` makes that safe.
        tensors: Arrays, or tensors that come in pieces; written widest type first,
            so that each is aligned, then by name.
        metadata: Text for the header.

    Raises:
        OSError: The system refuses a write.
    """
    given = {name: _to_save(tensor) for name, tensor in tensors.items()}
    order = sorted(given, key=lambda name: (-given[name].dtype.itemsize, name))
    with open(path, "wb") as file:
        file.write(header_of({name: given[name] for name in order}, metadata))
        for name in order:
            start = file.tell()
            for chunk in given[name].chunks():
                write_array(file.write, chunk)
            if file.tell() - start != given[name].size_bytes:
                raise ValueError(f"{name}: its chunks do not fill its shape")


def write_array(write: Callable[[memoryview], object], array: Array) -> None:
    """Hand the bytes of ``array`` to ``write``, row-major, without a copy if it is."""
    if array.size:  # a view of no bytes cannot be cast
        write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def header_of(
    tensors: Mapping[str, TensorToSave], metadata: Mapping[str, str] | None
) -> bytes:
    """Length and header of a file that holds ``tensors`` in the given order."""
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = dict(sorted(metadata.items()))
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.size_bytes
        entries[name] = {
            "dtype": CODES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    return packed_header(entries)


def packed_header(entries: Mapping[str, object]) -> bytes:
    """The JSON of a header, padded so that the data starts at a multiple of 8."""
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _to_save(tensor: Array | TensorToSave) -> TensorToSave:
    if isinstance(tensor, TensorToSave):
        return tensor
    return TensorToSave(tensor.dtype, tensor.shape, lambda: [tensor])
