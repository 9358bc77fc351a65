"""What `export` starts from: the checkpoint, its plan, and whether it holds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from step_cli.commands.select import (
    choose,
    plan_that_holds,
    skipped_tensors,
    why_nothing,
)
from step_cli.commands.verify.counted import Counted, count_layers
from step_cli.commands.verify.verdict import verdicts_on
from step_cli.config.commands import ExportConfig
from step_cli.errors import NonFiniteError, NothingSelectedError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.open import open_checkpoint
from step_cli.nm.pattern import Plan
from step_cli.render.status_line import working_on
from step_cli.reports import ExportLayer, LayerVerdict, SkippedTensor


@dataclass(frozen=True)
class Source:
    """A checkpoint whose selected layers were counted.

    Attributes:
        checkpoint: As opened.
        plan: Of the selected layers.
        verdicts: On the selected layers, in the order of their names.
        skipped: All other tensors, each with its reason.
        advice: What to try when layers break their pattern.
    """

    checkpoint: Checkpoint
    plan: Plan
    verdicts: list[LayerVerdict]
    skipped: list[SkippedTensor]
    advice: list[str]

    @property
    def holds(self) -> bool:
        """Whether every selected layer holds its pattern."""
        return all(verdict.ok for verdict in self.verdicts)

    @property
    def inputs(self) -> list[Path]:
        """What no output may overwrite."""
        return [self.checkpoint.path, *self.checkpoint.files]

    @property
    def dense_bytes(self) -> int:
        """Size of all tensors, uncompressed and tied ones counted once."""
        return sum(
            size_bytes(tensor)
            for tensor in self.checkpoint.tensors
            if tensor.tied_to is None
        )

    def layers(self) -> list[ExportLayer]:
        """The selected layers, as the report lists them."""
        return [
            ExportLayer(
                name=verdict.name,
                pattern=verdict.pattern,
                axis=verdict.axis,
                pattern_ok=verdict.ok,
                advice=verdict.message,
            )
            for verdict in self.verdicts
        ]


def size_bytes(tensor: NamedTensor) -> int:
    """Size of a tensor in bytes; packed types count as a byte for each element."""
    import math

    from step_cli.nm.dtypes import numpy_dtype

    try:
        return math.prod(tensor.shape) * numpy_dtype(tensor.dtype).itemsize
    except TypeError:  # a type of torch alone, such as qint8
        return math.prod(tensor.shape)


def open_source(config: ExportConfig) -> Source:
    """Open the checkpoint, select its layers, and count their non-zeros.

    Raises:
        NothingSelectedError: No layer was selected, or all were skipped.
        NonFiniteError: A selected layer holds NaN or infinity.
    """
    with working_on(f"reading {config.checkpoint}"):
        checkpoint = open_checkpoint(config.checkpoint, config.key)
    plan = plan_that_holds(config, checkpoint)
    chosen = choose(config, checkpoint, plan)
    if not chosen.layers:
        raise NothingSelectedError(
            why_nothing(chosen, "export", plan), file=config.checkpoint
        )
    with working_on(f"counting the non-zeros of {config.checkpoint}"):
        counted = count_layers(chosen.layers)
    refuse_nonfinite(counted, config.checkpoint)
    planned = plan is not None and config.nm is None
    verdicts, advice = verdicts_on(counted, planned=planned)
    return Source(
        checkpoint,
        {layer.tensor.name: layer.spec for layer in chosen.layers},
        verdicts,
        skipped_tensors(chosen),
        advice,
    )


def refuse_nonfinite(counted: Sequence[Counted], file: Path) -> None:
    """Raise NonFiniteError for the first layer with NaN or infinity."""
    for layer in counted:
        if layer.counts.nonfinite:
            raise NonFiniteError(
                f"{layer.counts.nonfinite} NaN or infinity, the first at "
                f"{layer.first_nonfinite}; fix the training run first",
                file=file,
                tensor=layer.tensor.name,
            )
