"""A node as the rules for operators see it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.formats.onnx.model import Node
from step_cli.formats.onnx.weights.scopes import Scope
from step_cli.formats.onnx.weights.views import View
from step_cli.formats.onnx.weights.zero_points import ZeroInput

Array = npt.NDArray[Any]

MOST_NUMBERS = 4096  # of a constant that is a shape, axes or sizes
MOST_CODES = 1 << 24  # of a zero point or a scale


@dataclass(frozen=True, eq=False)
class NodeStep:
    """A node, its inputs and its attributes.

    Attributes:
        scope: Where it stands.
        node: The node.
        index: Which of its outputs is asked for.
        views: What each input looks like; None: it cannot be followed.
        small: A constant by its name, if it has at most so many elements.
    """

    scope: Scope
    node: Node
    index: int
    views: list[View | None]
    small: Callable[[Scope, str, int], Array | None]

    @property
    def outputs(self) -> int:
        """How many there are."""
        return len(self.node.outputs)

    def number(self, name: str) -> int | None:
        """An integer attribute."""
        attribute = self.scope.attribute(self.node, name)
        return None if attribute is None else attribute.integer

    def numbers(self, name: str, index: int | None = None) -> list[int] | None:
        """Integers of an attribute, or of a constant input."""
        attribute = self.scope.attribute(self.node, name)
        if attribute is not None:
            return attribute.integers
        if index is None or not self._input(index):
            return None
        found = self.small(self.scope, self._input(index), MOST_NUMBERS)
        if found is None or found.ndim > 1 or found.dtype.kind not in "iu":
            return None
        return [int(number) for number in found.reshape(-1)]

    def given(self, name: str, index: int) -> bool:
        """Whether that attribute, or that input, is there at all."""
        attribute = self.scope.attribute(self.node, name)
        return attribute is not None or bool(self._input(index))

    def zero(self, index: int) -> ZeroInput:
        """The zero point at an input; 0 where there is none."""
        name = self._input(index)
        if not name:
            return ZeroInput("", np.zeros((), np.int8), is_given=False)
        source = self.scope.find(name)
        codes = self.small(self.scope, name, MOST_CODES)
        return ZeroInput(None if source is None else id(source), codes)

    def constant(self, index: int) -> Array | None:
        """The numbers of a stored input, such as a scale; None: it is computed."""
        name = self._input(index)
        return self.small(self.scope, name, MOST_CODES) if name else None

    def _input(self, index: int) -> str:
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) else ""
