"""What goes into a model: as typed, as an ONNX file declares it, and as tensors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_cli.errors import InputError, StepError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

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
# Sizes of 0 and 1 are special to the tracer, so named dimensions start at 2.
DYNAMIC_SIZE = 2
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
    except StepError:
        raise
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


def example_tensors(
    inputs: Sequence[GraphInput],
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    highest: int = 2,
) -> dict[str, "Tensor"]:
    """One tensor for each input: normal numbers, small integers, masks of ones.

    Args:
        inputs: What the model takes.
        shapes: Sizes for inputs with named dimensions; without one, each different
            name gets a different size.
        highest: Integers stay below it, as indices into a table must.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    names = {
        size: None for given in inputs for size in given.shape if isinstance(size, str)
    }
    sizes = {name: DYNAMIC_SIZE + 3 * place for place, name in enumerate(names)}
    tensors = {}
    for given in inputs:
        wanted = (shapes or {}).get(given.name)
        shape = wanted or [
            sizes[size] if isinstance(size, str) else size for size in given.shape
        ]
        dtype = getattr(torch, given.dtype)
        if dtype.is_floating_point:
            values = torch.randn(*shape, generator=generator)
        elif "mask" in given.name:
            values = torch.ones(*shape)
        else:
            values = torch.randint(0, highest, tuple(shape), generator=generator)
        tensors[given.name] = values.to(dtype)
    return tensors


def inputs_of_examples(examples: Mapping[str, "Tensor"]) -> list[GraphInput]:
    """The inputs that example tensors stand for; all sizes fixed."""
    return [
        GraphInput(name, str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for name, value in examples.items()
    ]


def all_equal(examples: Mapping[str, "Tensor"]) -> bool:
    """Whether every tensor is constant: a shape to trace with, no test of the maths."""
    return all(bool((value == value.flatten()[0]).all()) for value in examples.values())
