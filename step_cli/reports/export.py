"""The report of ``export``."""

from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from step_cli.reports.report import Part, Report, SkippedTensor


class ExportBytes(Part):
    """Sizes in bytes; null where it does not apply."""

    dense: int | None = Field(None, description="All tensors, uncompressed")
    output: int | None = Field(None, description="The files written")
    values: int | None = Field(None, description="Kept values of compressed layers")
    metadata: int | None = Field(None, description="Their sparse metadata")


class Parity(Part):
    """How far ONNX Runtime is from PyTorch, over all outputs."""

    max_abs: float
    max_rel: float = Field(description="max_abs over the largest magnitude")
    ok: bool
    tolerance: float
    output: str = Field(description="The output that differs most")


class ExportLayer(Part):
    """The evidence on one layer: true, false, or null where nothing was observed."""

    name: str
    onnx_name: str | None = None
    pattern: str
    axis: int = Field(description="In the checkpoint")
    pattern_ok: bool | None = None
    eligible: bool | None = None
    chosen: bool | None = None
    tactic: str | None = None
    advice: str | None = None


class SparsityCounts(Part):
    """How many layers one pass of the builder found to be sparse."""

    eligible: int | None
    chosen: int | None


class BackendReport(Part):
    """The library that built the engine, and what became of sparse weights."""

    name: str
    version: str
    compute_capabilities: list[str]
    sparse_weights: Literal["used", "permitted", "ignored"] | None


class BenchReport(Part):
    """Median times of one run in milliseconds, the same file with dense weights too."""

    runtime: str
    sparse_ms: float
    dense_ms: float


class ExportReport(Report):
    """What was written, and what is known of each layer in it."""

    schema_id: ClassVar[str] = "step-cli/export/1"

    to: str
    output: str | None = Field(description="Null if nothing was written")
    bytes: ExportBytes = ExportBytes()
    ratio: float | None = Field(None, description="Dense bytes over output bytes")
    parity: Parity | None = None
    parity_precision: str | None = None
    layers: list[ExportLayer]
    skipped: list[SkippedTensor] = Field([])
    backend: BackendReport | None = None
    negative_zeros: int | None = Field(None, description="-0.0 that return as +0.0")
    precision: str | None = None
    opset: int | None = None
    sha256: dict[str, str] = Field({}, description="Of the files made, by kind")
    sparsity: list[SparsityCounts] = Field([], description="One for each pass")
    build_log: str | None = None
    trtexec: str | None = Field(None, description="The same build, on a GPU machine")
    bench: BenchReport | None = None
    notes: list[str] = Field([])

    @property
    @override
    def written(self) -> str | None:
        return self.output
