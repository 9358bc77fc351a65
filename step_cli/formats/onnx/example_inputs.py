"""Tensors to trace a model with, and to compare two runtimes on; seeded."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from step_cli.formats.onnx.inputs import GraphInput

if TYPE_CHECKING:
    from torch import Tensor

# Sizes of 0 and 1 are special to the tracer, so named dimensions start at 2.
DYNAMIC_SIZE = 2


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
