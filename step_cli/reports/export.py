"""The report of ``export``."""

from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from step_cli.reports.report import Part, Report, SkippedTensor
from step_cli.reports.verify_nm import TargetView


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


class LayerQuantizers(Part):
    """The codes around one layer; null where it reads, stores or gives numbers."""

    input: str | None
    weight: str | None
    output: str | None = Field(description="Behind its bias and its Relu")
    scales: int | None = Field(description="Of the weight: one, or one per output")


class OutputDifference(Part):
    """How far the quantized graph is from the fp32 one, over all outputs."""

    samples: int
    max_abs: float | None = Field(description="Null if a number is not finite")
    max_rel: float | None = Field(description="max_abs over the largest magnitude")
    mean_abs: float | None
    cosine: float | None


class QuantizationReport(Part):
    """What ``--quantize`` made; null where nothing was compared."""

    codes: Literal["int8", "fp8"]
    layers: int = Field(description="How many were quantized")
    calibration: OutputDifference | None = Field(
        description="On the samples that ranges were measured on"
    )
    held_out: OutputDifference | None = Field(
        description="On samples that they were not; null if there are too few"
    )
    runtime: str | None = Field(description="What ran both graphs")
    fp32_bytes: int = Field(description="Size of the fp32 graph")
    faults: list[str] = Field(description="What is wrong with codes and quantizers")

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and every number that was seen is finite."""
        seen = [one for one in (self.calibration, self.held_out) if one is not None]
        return not self.faults and all(one.max_abs is not None for one in seen)


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
    quantizers: LayerQuantizers | None = None
    zeros_kept: bool | None = Field(
        None, description="Whether every zero of the weight has the code 0"
    )
    targets: dict[str, TargetView] | None = Field(
        None, description="Whether a library has a sparse kernel for it, by its name"
    )


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


class InputShapes(Part):
    """The shapes of one input with named sizes that an engine is built for."""

    input: str
    min: list[int]
    opt: list[int] = Field(description="Kernels are timed at it")
    max: list[int]
    by_default: bool = Field(description="Whether no option named the input")


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
    quantization: QuantizationReport | None = None
    layers: list[ExportLayer]
    skipped: list[SkippedTensor] = Field([])
    backend: BackendReport | None = None
    negative_zeros: int | None = Field(None, description="-0.0 that return as +0.0")
    precision: str | None = None
    opset: int | None = None
    shapes: list[InputShapes] = Field([], description="Of an engine's dynamic inputs")
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
