"""Finished groups of layers: from the model to the disk, and back after a kill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from step_cli.commands.prune.stored_model import StoredModel
from step_cli.formats.files.finished import FinishedParts
from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.formats.pytorch.arrays import mapped_tensor
from step_cli.oneshot.inputs import TargetLayer


@dataclass
class FinishedGroups:
    """See `Finished`.

    Attributes:
        parts: Where they are kept.
        stored: The model, and what is put aside of it.
        facts: What is to be kept of some layers besides their weights, as JSON has it.
        take: Takes such facts up again.
    """

    parts: FinishedParts
    stored: StoredModel
    facts: Callable[[Sequence[TargetLayer]], dict[str, Any]]
    take: Callable[[dict[str, Any]], None]

    @property
    def count(self) -> int:
        """How many are finished."""
        return self.parts.count

    def restore(self, number: int, layers: Sequence[TargetLayer]) -> None:
        """See `Finished`."""
        arrays, facts = self.parts.load(number)
        self.stored.take(arrays)
        self.take(facts)

    def inputs(self, number: int) -> list[Tensor]:
        """See `Finished`."""
        return [mapped_tensor(array) for array in self.parts.inputs(number)]

    def new_inputs(self) -> ArraysOnDisk:
        """See `Finished`."""
        return self.parts.new_inputs()

    def finish(
        self, layers: Sequence[TargetLayer], inputs: ArraysOnDisk | None
    ) -> None:
        """See `Finished`."""
        made = self.stored.of_group()
        self.stored.take(self.parts.finish(made, self.facts(layers), inputs))
