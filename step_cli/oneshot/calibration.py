"""What pruning by samples is told: the model, the samples, what to do with layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol

import torch
from torch import Tensor, nn

from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.oneshot.forward_pass import Batch
from step_cli.oneshot.inputs import Pass, S, TargetLayer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Group:
    """Layers that are pruned together, and what runs them.

    Attributes:
        layers: In the order in which the model first runs them.
        passes: Each runs one batch.
        block: What the passes run, and return the output of; None: all of the model.
        once: Whether it is known that no layer is called twice in a pass.
    """

    layers: Sequence[TargetLayer]
    passes: Sequence[Pass]
    block: nn.Module | None = None
    once: bool = False


class Finished(Protocol):
    """Groups of layers that are done for good, also if the process is killed."""

    @property
    def count(self) -> int:
        """How many; they come in the same order in every run."""

    def restore(self, number: int, layers: Sequence[TargetLayer]) -> None:
        """Have the layers of a finished group compute with what was found for them."""

    def inputs(self, number: int) -> list[Tensor]:
        """What left the block of the last finished group, for each batch."""

    def new_inputs(self) -> ArraysOnDisk:
        """Where to put what leaves the block of the group at hand."""

    def finish(
        self, layers: Sequence[TargetLayer], inputs: ArraysOnDisk | None
    ) -> None:
        """Keep what was found for the group at hand."""


def _prune_only(group: Group, prune: Callable[[], None]) -> None:
    prune()


@dataclass(frozen=True)
class Calibration(Generic[S]):
    """A model, the samples it is run on, and how a layer is pruned by its inputs.

    Attributes:
        model: In evaluation mode.
        batches: Arguments of its ``forward``; at least one.
        new_statistics: Makes empty statistics of a layer's inputs; None: they are not
            needed, and ``prune`` gets None.
        prune: Prunes a layer by them; its module computes with the result from then on.
        folder: Where activations are stored; None: where temporary files go.
        around: Called with each group and what prunes it, which it has to call.
        unseen: Called with layers that the model does not run as modules; None: such
            layers are refused.
        device: Where the model computes, and ``prune`` and ``around`` are to.
        finished: Where the results of each group go; None: they stay with ``prune``.
    """

    model: nn.Module
    batches: Sequence[Batch]
    new_statistics: Callable[[], S] | None
    prune: Callable[[TargetLayer, S | None], None]
    folder: Path | None = None
    around: Callable[[Group, Callable[[], None]], None] = _prune_only
    unseen: Callable[[TargetLayer], None] | None = None
    device: torch.device = CPU
    finished: Finished | None = None
