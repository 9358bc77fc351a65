"""What goes into a model: name, type and shape, as typed or as an ONNX file says."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step_cli.errors import InputError, UsageError

Dimension = int | str  # a number, or the name of a dynamic dimension

DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class GraphInput:
    """One input of a model; a named dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]

    @property
    def dynamic(self) -> bool:
        """Whether any dimension is open."""
        return any(isinstance(size, str) for size in self.shape)

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}:{','.join(map(str, self.shape))}"


def parse_input(text: str) -> GraphInput:
    """Read ``input_ids:int64:batch,seq`` or ``x:float32:1x3x32x32``.

    Raises:
        UsageError: The text is not NAME:DTYPE:SHAPE.
    """
    name, dtype, shape = ["", "", *text.rsplit(":", 2)][-3:]
    if not name or not shape:
        raise UsageError(
            "--input: expected NAME:DTYPE:SHAPE such as input_ids:int64:batch,seq, "
            f"got {text}"
        )
    if dtype not in DTYPES:
        raise UsageError(f"--input: {name}: no dtype {dtype}; use {', '.join(DTYPES)}")
    return GraphInput(name, dtype, _dimensions(name, shape))


def _dimensions(name: str, text: str) -> tuple[Dimension, ...]:
    numbers_only = re.fullmatch(r"[0-9]+(x[0-9]+)*", text)
    words = text.split("x") if numbers_only else text.split(",")
    shape: list[Dimension] = []
    for word in (word.strip() for word in words):
        if word.isascii() and word.isdigit() and int(word) > 0:
            shape.append(int(word))
        elif _NAME.fullmatch(word):
            shape.append(word)
        else:
            raise UsageError(
                f"--input: {name}: expected sizes above 0 or names, such as 1x128 or "
                f"batch,128, got {text}"
            )
    return tuple(shape)


def inputs_of_onnx(path: Path) -> list[GraphInput]:
    """The inputs of an ONNX file, without its weights.

    Raises:
        InputError: An input has no shape, or the file is no ONNX model.
    """
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's own class, which is not public
        raise InputError(f"not an ONNX model: {error}", file=path) from None
    stored = {initializer.name for initializer in graph.initializer}
    return [
        _graph_input(value, path) for value in graph.input if value.name not in stored
    ]


def _graph_input(value: Any, path: Path) -> GraphInput:  # an onnx.ValueInfoProto
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise InputError("this input has no shape", file=path, tensor=value.name)
    shape: list[Dimension] = [
        dimension.dim_value
        if dimension.HasField("dim_value") and dimension.dim_value > 0
        else dimension.dim_param or f"{value.name}_{index}"
        for index, dimension in enumerate(kind.shape.dim)
    ]
    dtype = tensor_dtype_to_np_dtype(kind.elem_type).name
    return GraphInput(value.name, dtype, tuple(shape))
