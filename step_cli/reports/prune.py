"""The report of ``prune``."""

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from step_cli.reports.report import Part, Report, SkippedTensor


class PrunedLayer(Part):
    """What was done to one tensor; ``retained`` is the share of L1 magnitude kept."""

    name: str
    pattern: str
    axis: int
    shape: list[int]
    dtype: str
    density: float
    retained: float
    changed: int = Field(description="Weights set to zero that were not")
    tied_to: str | None = None
    permuted: bool | None = Field(
        None, description="Whether its input channels have another order (--permute)"
    )
    not_permuted: str | None = Field(
        None, description="Why the graph does not let them change places"
    )
    advice: str | None = Field(None, description="Why TensorRT may not run it sparse")
    error_before: float | None = Field(
        None,
        description="With --refit: how far its output is from the dense layer's on the "
        "same inputs, relative to the dense one, on samples it is fitted to",
    )
    error_after: float | None = Field(None, description="The same after the fit")
    held_out_before: float | None = Field(
        None, description="error_before on samples that nothing is fitted to"
    )
    held_out_after: float | None = Field(None, description="The same after the fit")
    not_refitted: str | None = Field(None, description="Why --refit leaves it as it is")


class RefittedBlock(Part):
    """A block of --refit block: errors of its output, relative to the dense block's."""

    name: str
    refitted: bool = Field(
        description="Whether the fit is kept: the error on held-out samples fell"
    )
    error_before: float
    error_after: float
    held_out_before: float | None
    held_out_after: float | None


class PruneTotals(Part):
    """Sums over the layers, tied ones counted once."""

    layers: int
    skipped: int
    elements: int
    nonzeros: int
    density: float
    retained: float
    changed: int
    coverage: float = Field(
        1.0, description="Share pruned of the elements that products may use"
    )


class PruneReport(Report):
    """What ``prune`` wrote; with ``dry_run``, what it would write."""

    schema_id: ClassVar[str] = "step-cli/prune/1"

    out: str = Field(serialization_alias="output")
    method: str
    dry_run: bool
    bytes_needed: int
    bytes_free: int
    layers: list[PrunedLayer]
    skipped: list[SkippedTensor]
    totals: PruneTotals
    refit: str = "none"
    blocks: list[RefittedBlock] = Field(
        default_factory=list, description="With --refit block, in the model's order"
    )
    batch_norms: list[str] | None = Field(
        None, description="Modules whose running statistics were measured anew"
    )

    @property
    @override
    def written(self) -> str | None:
        return None if self.dry_run else self.out
