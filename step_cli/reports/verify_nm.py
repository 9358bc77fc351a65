"""The report of ``verify-nm``."""

from collections.abc import Iterable
from typing import Any, ClassVar, Self

from pydantic import Field
from typing_extensions import override

from step_cli.reports.report import ErrorDetail, Part, Report, SkippedTensor


class GroupAt(Part):
    """A group, by the index of its first element."""

    index: list[int]
    nonzeros: int


class MaskDifference(Part):
    """Against --baseline: how many weights one mask keeps and the other drops."""

    count: int | None = Field(description="None if it cannot be compared")
    first_index: list[int] | None
    message: str


class TargetView(Part):
    """Whether a library could run a layer sparse; the build decides whether it does."""

    possible: bool
    likely: bool
    advice: str | None


class TensorrtView(TargetView):
    """The same for TensorRT."""


class LayerVerdict(Part):
    """Whether one tensor holds its pattern; counts are of groups and of weights."""

    name: str
    shape: list[int]
    dtype: str
    pattern: str
    axis: int
    axis_from: str = Field("default", description="What tells the axis")
    ok: bool
    groups: int
    violations: int
    elements: int
    nonzeros: int
    density: float
    first_violation: GroupAt | None
    nonfinite: int = 0
    first_nonfinite: list[int] | None = None
    tied_to: str | None = None
    baseline: MaskDifference | None = None
    tensorrt: TensorrtView | None = Field(
        None, description="As in `targets`, where it is asked for"
    )
    targets: dict[str, TargetView] | None = Field(
        None, description="Of each --target, by its name"
    )
    message: str | None = Field(None, description="Why it is not ok, and what to do")
    notes: list[str] = Field([])


class VerifyTotals(Part):
    """Sums over the layers, tied ones counted once."""

    layers: int
    failed: int
    skipped: int
    groups: int
    violations: int
    elements: int
    nonzeros: int
    density: float
    coverage: float = Field(
        1.0, description="Share judged of the elements that products may use"
    )
    uncovered: int = Field(0, description="Elements that could not be judged")


class CheckpointVerdict(Part):
    """What was found in one checkpoint."""

    path: str
    format: str | None
    ok: bool
    layers: list[LayerVerdict] = Field([])
    skipped: list[SkippedTensor] = Field([])
    totals: VerifyTotals | None = None
    hints: list[str] = Field([])
    notes: list[str] = Field([], description="What else to know of the libraries")
    shortfall: str | None = Field(
        None, description="Why the checkpoint fails, if too little could be judged"
    )
    integrity: str | None = Field(
        None, description="How damage was looked for: sha256, crc32, or unchecked"
    )
    error: ErrorDetail | None = None

    @property
    def exit_code(self) -> int:
        """The exit code for this checkpoint alone."""
        if self.error is not None:
            return self.error.exit
        return 0 if self.ok else 1


class VerifyReport(Report):
    """Whether each checkpoint holds its patterns."""

    schema_id: ClassVar[str] = "step-cli/verify-nm/1"

    checkpoints: list[CheckpointVerdict]
    error: ErrorDetail | None = Field(None, description="The gravest of the errors")

    refused: CheckpointVerdict | None = Field(None, exclude=True)

    @classmethod
    def of_refused(cls, path: str, error: ErrorDetail) -> Self:
        """The report where a plan file or baseline is refused: nothing was checked."""
        refused = CheckpointVerdict(path=path, format=None, ok=False, error=error)
        return cls(ok=False, checkpoints=[], error=error, refused=refused)

    @property
    def shown(self) -> list[CheckpointVerdict]:
        """The checkpoints; or, in their place, what they could not be checked by."""
        return self.checkpoints if self.refused is None else [self.refused]

    @override
    def body(self) -> dict[str, Any]:
        body = super().body()
        if self.refused is not None:
            del body["checkpoints"]  # none was looked at, which is not: there are none
        return body

    @property
    @override
    def exit_code(self) -> int:
        return gravest(verdict.exit_code for verdict in self.shown)

    @property
    @override
    def problems(self) -> list[ErrorDetail]:
        return [v.error for v in self.shown if v.error is not None]


def gravest(codes: Iterable[int]) -> int:
    """The exit code of several findings: of 5, 4, 6, 7, 1, 3, 0 the first."""
    return min(codes, key=[5, 4, 6, 7, 1, 3, 0].index)
