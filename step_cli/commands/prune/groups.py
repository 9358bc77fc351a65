"""Finished groups of layers: from the model to the disk, and back after a kill."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from step_cli.commands.prune.stored_model import StoredModel
from step_cli.formats.files.finished import FinishedParts
from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.formats.pytorch.arrays import mapped_tensor
from step_cli.nm.prune import Pruned
from step_cli.oneshot.inputs import TargetLayer
from step_cli.oneshot.refit import Refit


@dataclass
class FinishedGroups:
    """See `Finished`.

    Attributes:
        parts: Where they are kept.
        stored: The model, and what is put aside of it.
        done: What was done to each tensor, by its name.
        refit: What fits them; None: nothing does.
    """

    parts: FinishedParts
    stored: StoredModel
    done: dict[str, Pruned]
    refit: Refit | None

    @property
    def count(self) -> int:
        """How many are finished."""
        return self.parts.count

    def restore(self, number: int, layers: Sequence[TargetLayer]) -> None:
        """See `Finished`."""
        arrays, facts = self.parts.load(number)
        self.stored.take(arrays)
        self.done.update({k: Pruned(**x) for k, x in facts["done"].items()})
        if self.refit is not None:
            self.refit.take_up(facts["refit"])

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
        names = [self.stored.layers[layer.name].tensor.name for layer in layers]
        facts = {
            "done": {name: asdict(self.done[name]) for name in names},
            "refit": {} if self.refit is None else self.refit.facts(layers),
        }
        made, arrays = self.stored.of_group()
        if len(made.places) > len(arrays):  # a fit has replaced what was pruned
            made = self.parts.new_arrays()
            arrays = {name: made.add(array) for name, array in arrays.items()}
        self.parts.finish(made, arrays, facts, inputs)
        self.stored.take(arrays)
