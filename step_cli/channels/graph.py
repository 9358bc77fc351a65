"""The axes of all tensors of a graph, one operator after the other.

`torch_operators` and `onnx_operators` put each operator of their graph in the terms of
`Operator`; `rules` has what it does to the axes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from step_cli.channels.axes import Axis, find, fix, leaf, unify
from step_cli.formats.checkpoint import Checkpoint
from step_cli.nm.weight_rule import SkipReason

TensorAxes = tuple[Axis, ...]
Shape = tuple[int, ...]


@dataclass
class GraphAxes:
    """The axes of the tensors of a graph seen so far.

    Attributes:
        tensors: All of them.
        mixed: Axes whose channels an operator mixes, and the tensor they are of: what
            stands beside them must be in one order along all of them.
    """

    tensors: list[TensorAxes] = field(default_factory=list)
    mixed: list[tuple[TensorAxes, TensorAxes]] = field(default_factory=list)

    def add(self, axes: Iterable[Axis]) -> TensorAxes:
        """A tensor with these axes."""
        tensor = tuple(axes)
        self.tensors.append(tensor)
        return tensor

    def new(self, shape: Sequence[int], fixed: str | None = None) -> TensorAxes:
        """A tensor of which nothing is known, or that must stay as it is."""
        return self.add(leaf(size, fixed) for size in shape)

    def fix(self, tensor: TensorAxes, why: str) -> None:
        """No channel of the tensor may move."""
        for axis in tensor:
            fix(axis, why)

    def same(self, one: TensorAxes, other: TensorAxes) -> None:
        """Two tensors are one."""
        for left, right in zip(one, other, strict=True):
            unify(left, right)

    def unknown(
        self, inputs: Iterable[TensorAxes], shapes: Sequence[Shape], why: str
    ) -> list[TensorAxes]:
        """What an operator makes that may treat each channel in its own way."""
        for tensor in inputs:
            self.fix(tensor, why)
        return [self.new(shape, why) for shape in shapes]


@dataclass(frozen=True)
class Operator:
    """One node of a graph, in terms that do not depend on where it comes from.

    Attributes:
        inputs: Axes of its tensors; None for one that is left out, or a number.
        shapes: Of what it makes.
        axes: That it works on, perhaps counted from the end; None: all.
        keep_axes: Whether what it reduces becomes axes of one channel.
        order: Of a transposition: the axis that comes to each place.
        slices: Axis, start, end and step.
        kept: How many axes come before those of places, such as pixels.
        groups: Of a grouped convolution, or of a norm over groups of channels.
        times: How often each channel is repeated.
        equation: Of an einsum.
        causal: Whether attention masks what comes later.
    """

    inputs: Sequence[TensorAxes | None]
    shapes: Sequence[Shape]
    axes: Sequence[int] | None = None
    keep_axes: bool = False
    order: Sequence[int] = ()
    slices: Sequence[tuple[int, int | None, int | None, int]] = ()
    kept: int = 2
    groups: int = 1
    times: int = 1
    equation: str = ""
    causal: bool = False

    @property
    def shape(self) -> Shape:
        """Of the only result."""
        return self.shapes[0]

    @property
    def x(self) -> TensorAxes:
        """The first input."""
        return self.tensor(0)

    @property
    def tensors(self) -> list[TensorAxes]:
        """All inputs that are there."""
        return [axes for axes in self.inputs if axes is not None]

    def tensor(self, place: int) -> TensorAxes:
        """An input that must be there.

        Raises:
            LookupError: It is not.
        """
        found = self.optional(place)
        if found is None:
            raise LookupError(place)
        return found

    def optional(self, place: int) -> TensorAxes | None:
        """An input, or None."""
        return self.inputs[place] if place < len(self.inputs) else None

    @property
    def along(self) -> list[int]:
        """The axes that it works on, counted from the front."""
        rank = len(self.x)
        given = range(rank) if self.axes is None else self.axes
        return [axis % max(1, rank) for axis in given]

    @property
    def axis(self) -> int:
        """The only one of them."""
        return self.along[0]


Rule = Callable[[GraphAxes, Operator], TensorAxes | list[TensorAxes]]


def apply_rule(
    graph: GraphAxes, rule: Rule, operator: Operator
) -> list[TensorAxes] | None:
    """The axes of what an operator makes; None if the rule does not fit it."""
    made: TensorAxes | list[TensorAxes] = []
    with suppress(LookupError):  # an argument that the rule does not expect
        made = rule(graph, operator)
    results = made if isinstance(made, list) else [made]
    return results if [*map(sizes, results)] == [*operator.shapes] else None


def sizes(tensor: TensorAxes) -> Shape:
    """The shape of a tensor."""
    return tuple(find(axis).size for axis in tensor)


@dataclass(frozen=True)
class Network:
    """A checkpoint's graph, and a way to run it.

    Attributes:
        graph: All tensors of it.
        tensors: The axes of each tensor of the checkpoint that it uses, by name.
        outputs: What it computes, in fp32, with the weights of a checkpoint.
        stay_dense: Why weights of modules that are never pruned stay dense, by name.
    """

    graph: GraphAxes
    tensors: Mapping[str, TensorAxes]
    outputs: Callable[[Checkpoint], list[npt.NDArray[Any]]]
    stay_dense: Mapping[str, SkipReason] = field(default_factory=dict)
