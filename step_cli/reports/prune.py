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

    @property
    @override
    def written(self) -> str | None:
        return None if self.dry_run else self.out
