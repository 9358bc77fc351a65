"""Every option of every command: type, default, bounds and help, declared once.

The configuration file of `train` is a model of its own, in `train_config.py`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
)

from step_cli.core.pattern import NMPattern
from step_cli.core.selection import parse_axis


def _read_pattern(value: object) -> object:
    return NMPattern.parse(value) if isinstance(value, str) else value


Pattern = Annotated[NMPattern, BeforeValidator(_read_pattern), PlainSerializer(str)]


def _refuse_dense(pattern: NMPattern) -> NMPattern:
    if pattern.dense:
        raise ValueError(f"expected N:M such as 2:4 with N < M, got '{pattern}'")
    return pattern


SparsePattern = Annotated[Pattern, AfterValidator(_refuse_dense)]


def _read_axis(value: object) -> object:
    return parse_axis(value) if isinstance(value, str) else value


AxisOfGlob = Annotated[tuple[str, int], BeforeValidator(_read_axis)]


class Config(BaseModel):
    """A set of options; unknown ones are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def option(
    default: Any, description: str, *, metavar: str | None = None, **bounds: Any
) -> Any:
    """An optional field: ``--its-name`` on the command line."""
    extra: Any = {"metavar": metavar} if metavar else None
    if default is list:
        return Field(
            default_factory=list,
            description=description,
            json_schema_extra=extra,
            **bounds,
        )
    return Field(default, description=description, json_schema_extra=extra, **bounds)


class TrainCommandConfig(Config):
    """Options of ``train``."""

    config: Path = Field(description="Training configuration, a TOML file")
    set: list[str] = option(
        list, "Override one key of the file", metavar="SECTION.KEY=VALUE"
    )
    run_dir: Path | None = option(
        None, "Where the run is written (default: runs/<config name>)"
    )
    evaluate: Path | None = option(
        None, "Print the metrics of this checkpoint; train and write nothing"
    )
    force: bool = option(False, "Replace an existing run directory")


class AutoswitchProfileConfig(Config):
    """Options of ``autoswitch-profile``."""

    source: Path = Field(
        description="A run directory of `train`, or its variance.jsonl"
    )
    criterion: list[str] = option(list, "Criterion to replay (default: all)")
    eps: float | None = option(
        None, "Threshold of both AutoSwitch rules (default: Adam's eps)", gt=0
    )
    beta2: float | None = option(None, "Adam's beta2, where unrecorded", gt=0, lt=1)
    window: int | None = option(
        None, "Steps averaged over (default: round(1 / (1 - beta2)))", ge=1
    )
    t_min: str | None = option(
        None, "Earliest switch, a step or a fraction of the steps (default: 0.1)"
    )
    t_max: str | None = option(
        None, "Latest switch, a step or a fraction of the steps (default: 0.5)"
    )
    plot: Path | None = option(None, "Draw the curves (.svg or .png)")


Method = Literal["magnitude", "random"]

Format = Literal["table", "json", "jsonl", "markdown", "junit", "sarif", "github"]


class VerifyConfig(Config):
    """Options of ``verify-nm``."""

    checkpoint: list[Path] = Field(
        min_length=1,
        description="A file (.safetensors, .onnx, .pt, ...) or a directory",
    )
    nm: SparsePattern | None = option(
        None,
        "Pattern to hold (default: that of the plan; without one, 2:4)",
        metavar="N:M",
    )
    include: list[str] = option(
        list, "Check only tensors with these names", metavar="GLOB"
    )
    exclude: list[str] = option(
        list, "Leave out tensors with these names", metavar="GLOB"
    )
    axis: list[AxisOfGlob] = option(
        list, "Axis the groups run along", metavar="GLOB=AXIS"
    )
    plan: Path | None = option(None, "Plan file, instead of the one stored")
    exact: bool = option(False, "Want exactly N non-zeros, not at most N")
    strict: bool = option(False, "Fail if a selected tensor cannot be checked")
    baseline: Path | None = option(None, "Want the same masks as this checkpoint")
    tensorrt: bool = option(False, "Say whether TensorRT could run each layer sparse")
    format: Format | None = option(None, "How to show the result (default: table)")
    output: Path | None = option(
        None, "File to write the result to; the table still shows"
    )
