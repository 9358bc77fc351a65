"""What goes into a model: name, type and shape, as typed or as an ONNX file says."""

import re
from dataclasses import dataclass

from step_cli.errors import UsageError

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
