"""The data of ONNX tensors: where it lies, every extent checked before it is read."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from step_cli.errors import InputError
from step_cli.formats.checkpoint import Place
from step_cli.formats.files.mapped_file import MappedFile, map_file
from step_cli.formats.huggingface.directory import inside
from step_cli.formats.onnx.model import Tensor
from step_cli.formats.onnx.protobuf import FIXED32, FIXED64, Field, WireError, varints
from step_cli.formats.onnx.sparse import dense_array

Array = npt.NDArray[Any]

# TensorProto.DataType; None: no number that a weight could hold.
DTYPES: dict[int, np.dtype[Any] | None] = {
    number: None if kind is None else np.dtype(kind)
    for number, kind in {
        1: np.float32,
        2: np.uint8,
        3: np.int8,
        4: np.uint16,
        5: np.int16,
        6: np.int32,
        7: np.int64,
        8: None,  # text
        9: np.bool_,
        10: np.float16,
        11: np.float64,
        12: np.uint32,
        13: np.uint64,
        14: np.complex64,
        15: np.complex128,
        16: ml_dtypes.bfloat16,
        17: ml_dtypes.float8_e4m3fn,
        18: ml_dtypes.float8_e4m3fnuz,
        19: ml_dtypes.float8_e5m2,
        20: ml_dtypes.float8_e5m2fnuz,
        21: ml_dtypes.uint4,
        22: ml_dtypes.int4,
        23: ml_dtypes.float4_e2m1fn,
        24: ml_dtypes.float8_e8m0fnu,
    }.items()
}
NIBBLES = {21, 22, 23}  # two elements a byte
MOST_DIMENSIONS = 64  # of NumPy
_FLOAT_DATA, _INT32_DATA, _DOUBLE_DATA = 4, 5, 10
_FIXED = {_FLOAT_DATA: FIXED32, _DOUBLE_DATA: FIXED64}
# The field that holds each type when it is not raw; int32_data for all others.
_FIELD = {1: 4, 14: 4, 7: 7, 11: 10, 15: 10, 12: 11, 13: 11}


def dtype_name(tensor: Tensor) -> str:
    """The type in NumPy spelling."""
    dtype = DTYPES.get(tensor.data_type)
    if dtype is not None:
        return dtype.name
    return "string" if tensor.data_type == 8 else f"onnx_type_{tensor.data_type}"


@dataclass
class TensorData:
    """Finds the data of the tensors of one model; maps each external file once."""

    file: MappedFile
    external: dict[str, MappedFile] = field(default_factory=dict)

    def place(self, tensor: Tensor) -> Place | None:
        """Where the data lies row by row; None if it is stored number by number.

        Raises:
            InputError: The extents do not fit the shape or the file, or the file lies
                outside the model's directory.
        """
        needed = self._size_bytes(tensor)
        if tensor.values is not None:
            return None
        if tensor.is_external:
            file = self._external_file(tensor)
            return self._external(tensor, file, needed)
        if DTYPES.get(tensor.data_type) is None:
            return None
        if tensor.raw is not None:
            return self._inline(tensor, *tensor.raw, needed)
        number = _FIELD.get(tensor.data_type, _INT32_DATA)
        chunks = tensor.typed.get(number, [])
        if number in _FIXED and len(chunks) == 1:
            return self._inline(tensor, chunks[0].begin, chunks[0].end, needed)
        return None

    def read(self, tensor: Tensor) -> Array:
        """The data, mapped where it lies row by row.

        Raises:
            InputError: As `place`, or the stored numbers do not fill the shape.
        """
        place = self.place(tensor)
        dtype = DTYPES.get(tensor.data_type)
        if dtype is None:
            raise self._refuse(tensor, "its type cannot be read")
        if tensor.values is not None and tensor.indices is not None:
            found = self.read(tensor.values), self.read(tensor.indices)
            try:
                return dense_array(*found, tensor.shape)
            except ValueError as error:
                raise self._refuse(tensor, str(error)) from None
        if place is None:
            try:
                return self._typed(tensor, dtype)
            except WireError as error:
                raise self._refuse(tensor, str(error)) from None
        place.file.check_unchanged()
        data = place.file.data[place.begin : place.end]
        if tensor.data_type in NIBBLES:
            return _unpacked(data, dtype, tensor.shape)
        return data.view(dtype).reshape(tensor.shape)

    def _size_bytes(self, tensor: Tensor) -> int:
        shape = tensor.shape
        if any(size < 0 or size >= 2**63 for size in shape):
            raise self._refuse(tensor, f"shape {shape} has a negative size")
        if len(shape) > MOST_DIMENSIONS:
            raise self._refuse(tensor, f"{len(shape)} dimensions, limit 64")
        dtype = DTYPES.get(tensor.data_type)
        if dtype is None:
            return 0
        count = math.prod(shape)
        halves = tensor.data_type in NIBBLES
        return (count + 1) // 2 if halves else count * dtype.itemsize

    def _inline(self, tensor: Tensor, begin: int, end: int, needed: int) -> Place:
        if end - begin != needed:
            raise self._refuse(
                tensor,
                f"{dtype_name(tensor)} of shape {tensor.shape} needs {needed} bytes, "
                f"it has {end - begin}",
            )
        return Place(self.file, begin, end)

    def _external(self, tensor: Tensor, file: MappedFile, needed: int) -> Place:
        offset = self._number(tensor, "offset", 0)
        length = self._number(tensor, "length", needed)
        if length != needed:
            raise self._refuse(
                tensor,
                f"{dtype_name(tensor)} of shape {tensor.shape} needs {needed} bytes, "
                f"its external data has length {length}",
            )
        if offset + length > file.size:
            raise self._refuse(
                tensor,
                f"external data truncated: needs {offset + length} bytes, "
                f"{file.path.name} has {file.size}",
            )
        return Place(file, offset, offset + length)

    def _external_file(self, tensor: Tensor) -> MappedFile:
        location = tensor.external.get("location", "")
        if location not in self.external:
            path = PurePosixPath(location)
            if not location or path.is_absolute() or ".." in path.parts:
                raise self._refuse(
                    tensor, f"external data outside the model directory: {location!r}"
                )
            directory: Path = self.file.path.parent
            try:
                self.external[location] = map_file(inside(directory, location))
            except InputError as error:
                if "link leaves" in error.message:
                    error.message = "external data outside the model directory"
                error.message = f"{location!r}: {error.message}"
                raise InputError(
                    error.message, file=self.file.path, tensor=tensor.name
                ) from None
        return self.external[location]

    def _number(self, tensor: Tensor, key: str, default: int) -> int:
        text = tensor.external.get(key)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9]{1,20}", text):
            raise self._refuse(tensor, f"external data {key} {text!r:.40} is no size")
        return int(text)

    def _typed(self, tensor: Tensor, dtype: np.dtype[Any]) -> Array:
        """Data stored number by number, as small tensors are by some exporters."""
        number = _FIELD.get(tensor.data_type, _INT32_DATA)
        chunks = tensor.typed.get(number, [])
        parts = [self._numbers(chunk, number) for chunk in chunks]
        found = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        needed = math.prod(tensor.shape)
        nibbles = tensor.data_type in NIBBLES
        if nibbles:
            needed = (needed + 1) // 2
        elif dtype.kind == "c":  # two numbers an element
            needed *= 2
        if len(found) != needed:
            raise self._refuse(
                tensor,
                f"{dtype_name(tensor)} of shape {tensor.shape} needs {needed} numbers, "
                f"it has {len(found)}",
            )
        if nibbles:
            return _unpacked(found.astype(np.uint8), dtype, tensor.shape)
        if number in _FIXED:
            values = found.view(dtype)
        elif dtype.kind in "iub":
            values = found.astype(dtype)
        else:  # the bits of a narrow type, one element a number
            values = found.astype(np.dtype(f"u{dtype.itemsize}")).view(dtype)
        return values.reshape(tensor.shape)

    def _numbers(self, chunk: Field, number: int) -> Array:
        data = self.file.data[chunk.begin : chunk.end]
        if number in _FIXED:
            width = 4 if number == _FLOAT_DATA else 8
            if len(data) % width:
                raise WireError("packed numbers do not end")
            return data.view(f"u{width}")
        return varints(data)

    def _refuse(self, tensor: Tensor, message: str) -> InputError:
        return InputError(message, file=self.file.path, tensor=tensor.name)


def _unpacked(data: Array, dtype: np.dtype[Any], shape: list[int]) -> Array:
    """Two elements a byte, the lower half first, as one element a byte."""
    codes = np.stack([data & 0xF, data >> 4], axis=-1).reshape(-1)
    codes = codes[: math.prod(shape)].reshape(shape)
    if dtype == np.dtype(ml_dtypes.int4):
        return ((codes ^ 8).astype(np.int8) - 8).astype(np.int8)
    if dtype == np.dtype(ml_dtypes.uint4):
        return codes
    return codes.view(dtype)
