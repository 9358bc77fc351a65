"""What a random graph computes: stored tensors, and what is made of them.

A graph is planned from the product back to the stored tensors. Each value can ``pull``
an array of numbers about its elements back onto its sources, which says where each
element came from; -1 stands for an element that is not used.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Pull = Callable[[Array, int], list[Array]]

# What the contract says of a step; OPEN: it also depends on an input of the graph.
LISTED, EITHER, OPAQUE, OPEN = "listed", "either", "opaque", "open"
CODES = ("int8", "uint8")


def numpy_type(dtype: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


@dataclass(eq=False)
class Stored:
    """A tensor of the file; ``zero`` are the codes that mean zero, 0 for floats."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    zero: Array
    form: str
    data: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def is_codes(self) -> bool:
        return self.dtype in CODES

    def typed(self) -> Array:
        return self.data.astype(numpy_type(self.dtype))


@dataclass(eq=False)
class Value:
    """A value of a graph: ``level`` says in which scope around a product it is made."""

    shape: tuple[int, ...]
    dtype: str
    level: int = 0
    entry: str = "capture"  # or "state": how it comes into the body of a Loop or Scan
    sources: "list[Value]" = field(default_factory=list)


@dataclass(eq=False)
class Runtime(Value):
    """An input of the graph."""

    name: str = ""


@dataclass(eq=False)
class Leaf(Value):
    """The output of a stored tensor."""

    stored: Stored = None  # type: ignore[assignment]


@dataclass(eq=False)
class Made(Value):
    """The output of an operator, whose inputs are ``sources`` and constants."""

    op: str = ""
    kind: str = LISTED
    write: Callable[[Any, list[str]], str] = None  # type: ignore[assignment]
    pull: Pull = None  # type: ignore[assignment]
    inside: frozenset[int] = frozenset()  # what a function holds that this is made in
    bound: bool = False  # to the scope that it is made in
    siblings: "list[Made]" = field(default_factory=list)  # other outputs of its node


@dataclass(frozen=True)
class Path:
    """One way from a stored tensor to an operand, and which elements take it."""

    stored: Stored
    leaf: Leaf
    ids: Array  # of the operand, for each stored element; -1: not used
    steps: tuple[Made, ...]

    @property
    def kind(self) -> str:
        kinds = {step.kind for step in self.steps}
        return next((kind for kind in (OPEN, OPAQUE, EITHER) if kind in kinds), LISTED)


def paths(value: Value, ids: Array, steps: tuple[Made, ...] = ()) -> Iterator[Path]:
    """Every way from stored tensors to ``value``, whose elements are called ``ids``."""
    if isinstance(value, Leaf):
        yield Path(value.stored, value, ids, steps)
    elif isinstance(value, Made):
        for source, part in zip(value.sources, value.pull(ids, -1), strict=True):
            yield from paths(source, part, (*steps, value))


def ancestors(value: Value) -> Iterator[Value]:
    yield value
    for source in value.sources:
        yield from ancestors(source)
