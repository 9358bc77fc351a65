"""What commands return: data that `render` shows, and `--json` dumps as it is."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from typing_extensions import override


class Part(BaseModel):
    """A part of a report; its validator is built when first used, to start fast."""

    model_config = ConfigDict(defer_build=True)


class ErrorDetail(Part):
    """One faulty input, as shown on stderr and in the JSON of a failure."""

    exit: int
    file: str | None = None
    tensor: str | None = None
    message: str


class Report(BaseModel):
    """The outcome of a command; a subclass names its schema, ``step-cli/NAME/1``."""

    model_config = ConfigDict(
        ser_json_inf_nan="null", protected_namespaces=(), defer_build=True
    )
    schema_id: ClassVar[str]

    ok: bool

    _format: str | None = PrivateAttr(None)
    _file: Path | None = PrivateAttr(None)

    def asked_for(self, format: str | None, file: Path | None) -> Self:
        """Remember how the user wants it shown: `render` obeys."""
        self._format, self._file = format, file
        return self

    @property
    def asked_format(self) -> str | None:
        """The output format that was asked for, or None: a table."""
        return self._format

    @property
    def asked_file(self) -> Path | None:
        """The file to write the report to, beside showing the table."""
        return self._file

    def document(self) -> str:
        """The JSON document, its schema first; non-finite numbers are null."""
        body = _finite(self.model_dump(mode="json", by_alias=True))
        # ASCII, as names from files may hold what UTF-8 cannot say.
        return json.dumps({"schema": self.schema_id, **body}, indent=2, allow_nan=False)

    @property
    def exit_code(self) -> int:
        """0 when every check passed, 1 when one failed."""
        return 0 if self.ok else 1

    @property
    def problems(self) -> list[ErrorDetail]:
        """Faulty inputs met on the way, each shown as one ``error:`` line."""
        return []


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class SwitchPoint(Part):
    """The step t0 after which masks were learned, and what decided it."""

    step: int
    reason: str
    criterion: str


class TrainReport(Report):
    """What ``train`` reached; accuracies are shares of 1, losses means per sample."""

    schema_id: ClassVar[str] = "step-cli/train/1"

    recipe: str | None  # None where a checkpoint was evaluated
    pattern: str | None
    steps: int
    switch: SwitchPoint | None
    metrics: dict[str, float]
    dense_metrics: dict[str, float] | None
    density: float
    run_dir: str
    advice: list[str] = []


class CriterionReport(Part):
    """Where one criterion would switch."""

    name: str
    switch_step: int | None
    reason: str
    clipped: bool
    raw_step: int | None
    post_switch_change: float | None
    threshold: float | None
    value: float | None


class AutoswitchProfileReport(Report):
    """Where each criterion would switch, on one recorded dense run."""

    schema_id: ClassVar[str] = "step-cli/autoswitch-profile/1"

    steps: int
    beta2: float
    eps: float
    window: int
    t_min: int
    t_max: int
    criteria: list[CriterionReport]
    recommended: str | None
    advice: list[str]


class GroupAt(Part):
    """A group, by the index of its first element."""

    index: list[int]
    nonzeros: int


class MaskDifference(Part):
    """Against --baseline: how many weights one mask keeps and the other drops."""

    count: int | None = Field(description="None if it cannot be compared")
    first_index: list[int] | None
    message: str


class TensorrtView(Part):
    """Whether TensorRT could run a layer sparse; the build decides whether it does."""

    possible: bool
    likely: bool
    advice: str | None


class LayerVerdict(Part):
    """Whether one tensor holds its pattern; counts are of groups and of weights."""

    name: str
    shape: list[int]
    dtype: str
    pattern: str
    axis: int
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
    tensorrt: TensorrtView | None = None
    message: str | None = Field(None, description="Why it is not ok, and what to do")
    notes: list[str] = []


class SkippedTensor(Part):
    """A tensor that was not checked, and why.

    ``selected`` if it should have been; that is not ``ok`` with --strict.
    """

    name: str
    shape: list[int]
    dtype: str
    reason: str
    selected: bool = False
    ok: bool = True


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


class CheckpointVerdict(Part):
    """What was found in one checkpoint."""

    path: str
    format: str | None
    ok: bool
    layers: list[LayerVerdict] = []
    skipped: list[SkippedTensor] = []
    totals: VerifyTotals | None = None
    hints: list[str] = []
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

    @property
    @override
    def exit_code(self) -> int:
        return gravest(verdict.exit_code for verdict in self.checkpoints)

    @property
    @override
    def problems(self) -> list[ErrorDetail]:
        return [v.error for v in self.checkpoints if v.error is not None]


def gravest(codes: Iterable[int]) -> int:
    """The exit code of several findings: the first of 4, 6, 7, 1, 3, 0 among them."""
    return min(codes, key=[4, 6, 7, 1, 3, 0].index)


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
    """How far one layer got: each rung true, false, or null where nothing was seen."""

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
    """What one pass of the builder said of sparse layers."""

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
    skipped: list[SkippedTensor] = []
    backend: BackendReport | None = None
    negative_zeros: int | None = Field(None, description="-0.0 that return as +0.0")
    precision: str | None = None
    opset: int | None = None
    sha256: dict[str, str] = Field({}, description="Of the files made, by kind")
    sparsity: list[SparsityCounts] = Field([], description="One for each pass")
    build_log: str | None = None
    trtexec: str | None = Field(None, description="The same build, on a GPU machine")
    bench: BenchReport | None = None
    notes: list[str] = []


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
