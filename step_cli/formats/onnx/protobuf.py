"""The protobuf wire format: where the fields of a message lie in a mapped file.

Only positions are read, so a model of many gigabytes costs no memory, and its tensors
can be viewed, or overwritten in a copy, without building the model.
Source: the encoding page of the Protocol Buffers documentation.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are no protobuf message."""


class Field(NamedTuple):
    """One field of a message; positions are bytes of the file."""

    number: int
    wire: int  # VARINT, FIXED64, LENGTH or FIXED32
    value: int  # of a varint, else 0
    start: int  # of the field, its tag included
    begin: int  # of the payload
    end: int  # of the payload and of the field


def fields(data: memoryview, begin: int, end: int) -> Iterator[Field]:
    """The fields of the message at ``data[begin:end]``.

    Raises:
        WireError: A field does not fit, or is of a kind that ONNX does not use.
    """
    at = begin
    while at < end:
        start = at
        tag, at = varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        value = 0
        if wire == VARINT:
            value, stop = varint(data, at, end)
        elif wire == LENGTH:
            length, at = varint(data, at, end)
            stop = at + length
        elif wire in (FIXED32, FIXED64):
            stop = at + (4 if wire == FIXED32 else 8)
        else:
            raise WireError(f"wire type {wire} at byte {start}")
        if stop > end or number == 0:
            raise WireError(f"field {number} at byte {start} does not fit")
        yield Field(number, wire, value, start, at, stop)
        at = stop


def varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number at ``at`` and the position after it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
        shift += 7
    raise WireError(f"a number at byte {at} does not end")


def encoded_varint(value: int) -> bytes:
    """``value`` in 7 bits a byte, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> int:
    """A varint as the int64 it stands for."""
    return value - 2**64 if value >= 2**63 else value


def varints(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """All numbers of a packed field, which wrap at 64 bits as protobuf's do.

    Raises:
        WireError: The last number does not end, or one is too long.
    """
    ends = np.flatnonzero(packed < 0x80)
    if (len(ends) == 0) != (len(packed) == 0) or (
        len(ends) and ends[-1] != len(packed) - 1
    ):
        raise WireError("a packed number does not end")
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts + 1
    if len(lengths) and lengths.max() > 10:
        raise WireError("a packed number is too long")
    values = np.zeros(len(ends), np.uint64)
    for index in range(int(lengths.max()) if len(lengths) else 0):
        longer = lengths > index
        seven = packed[starts[longer] + index].astype(np.uint64) & np.uint64(0x7F)
        values[longer] |= seven << np.uint64(7 * index)
    return values.view(np.int64)
