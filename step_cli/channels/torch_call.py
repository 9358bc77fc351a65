"""An operator of a PyTorch graph as the rules see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from step_cli.channels.flow import Flow, Value


@dataclass(frozen=True)
class Call:
    """An operator with its arguments by name, and the shapes of what it makes."""

    flow: Flow
    arguments: Mapping[str, Any]
    shapes: Sequence[tuple[int, ...]]
    values: Mapping[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the only result."""
        return self.shapes[0]

    def value(self, name: str) -> Value:
        """The axes of an argument that is a tensor."""
        found = self.optional(name)
        if found is None:
            raise KeyError(name)
        return found

    def optional(self, name: str) -> Value | None:
        """The same; None for one left out."""
        found = self.values.get(self.arguments.get(name))
        return found if isinstance(found, tuple) else None

    def listed(self, name: str) -> list[Value]:
        """A list of tensors."""
        return [self.values[node] for node in self.arguments[name]]

    def tensors(self) -> list[Value]:
        """All arguments that are tensors."""
        hashable = [
            a for a in self.arguments.values() if not isinstance(a, list | dict)
        ]
        found = [self.values.get(argument) for argument in hashable]
        return [value for value in found if isinstance(value, tuple)]

    def axes(self, name: str, value: Value) -> list[int]:
        """Numbers of axes, counted from the front; without any, all."""
        given = self.arguments.get(name)
        if given is None or given == []:
            return list(range(len(value)))
        return [axis % len(value) for axis in _listed(given)]

    def axis(self, name: str, value: Value) -> int:
        """The number of an axis, counted from the front."""
        return int(self.arguments[name]) % len(value)


def _listed(given: Any) -> list[int]:
    return list(given) if isinstance(given, list | tuple) else [given]
