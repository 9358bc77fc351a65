"""The configuration of `train`: a TOML file, then ``--set``, checked as one model.

Where a number of steps is expected, an integer is a step and a float a fraction of
all steps, rounded to the nearest step.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from step_cli.config.data import DataSection
from step_cli.config.distill import DistillSection, ModelSpec
from step_cli.config.document import read_document
from step_cli.config.options import message_of
from step_cli.config.types import (
    Config,
    Pattern,
    RecipeName,
    Section,
    StepOrFraction,
    Trackers,
    to_step,
)
from step_cli.errors import UsageError, nearest
from step_cli.nm.pattern import NMPattern

CriterionName = Literal[
    "autoswitch",
    "autoswitch-geometric",
    "autoswitch-relative",
    "relative-norm",
    "staleness",
    "fixed",
]


SEEDS = 2**31  # all seeds are below


def _refuse_foreign(value: Any) -> Any:
    """Refuse what is not written down as it was given: times, NaN, infinity."""
    if isinstance(value, Mapping | list):
        parts = value.values() if isinstance(value, Mapping) else value
        for part in parts:
            _refuse_foreign(part)
    elif not isinstance(value, str | int | float) or not _finite(value):
        raise ValueError(f"expected text, true, false or a finite number, got {value}")
    return value


def _finite(value: str | float) -> bool:
    return isinstance(value, str) or math.isfinite(value)


Options = Annotated[dict[str, Any], AfterValidator(_refuse_foreign)]


class ModelSection(Config):
    """Which model is trained."""

    source: ModelSpec = Field(
        description="sample:NAME, Hugging Face directory, file.py:function or "
        "module:function"
    )
    weights: str = Field("", description="Checkpoint to start from")
    options: Options = Field(
        {}, description="Arguments of the function, or values for config.json"
    )


class TrainSection(Section):
    """How it is trained."""

    steps: int = Field(ge=1)
    batch_size: int = Field(64, ge=1)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    schedule: Literal["constant", "linear", "cosine", "inverse-sqrt"] = "cosine"
    lr_end: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Where linear and cosine end"
    )
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    betas: tuple[
        Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]
    ] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd")
    grad_clip: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Largest L2 norm; 0: no clipping"
    )
    grad_accumulation: int = Field(1, ge=1)
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread over all classes"
    )
    seed: int = Field(0, ge=0, lt=SEEDS)
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_every: int = Field(100, ge=1)
    log_every: int = Field(10, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    keep: int = Field(2, ge=1, description="Newest checkpoints kept")
    parallel: Literal["auto", "none", "ddp", "fsdp"] = Field(
        "auto", description="auto: ddp under torchrun"
    )
    compile: bool = Field(False, description="torch.compile the model")
    trackers: Trackers | None = Field(
        None,
        description="Any of tensorboard, wandb, mlflow, trackio; default: tensorboard "
        "where it is installed",
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} exceeds steps {self.steps}"
            )
        if self.lr_end > self.lr:
            raise ValueError(f"lr_end {self.lr_end} exceeds lr {self.lr}")
        return self


def _refuse_dense(pattern: NMPattern) -> NMPattern:
    if pattern.dense:
        raise ValueError(
            f"{pattern} keeps every weight; give N:M with N < M, or recipe 'dense'"
        )
    return pattern


RunPattern = Annotated[Pattern, AfterValidator(_refuse_dense)]


class LayerSection(Config):
    """What the tensors that match a glob are to hold; the first match wins."""

    match: str
    pattern: Pattern | None = Field(None, description="Default: sparsity.pattern")
    axis: int | None = Field(
        None, strict=True, description="Group axis, where the default is wrong"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.pattern is None and self.axis is None:
            raise ValueError("give a pattern, an axis, or both")
        return self


class SparsitySection(Config):
    """Which weights become N:M, and by which recipe."""

    recipe: RecipeName = "step"
    pattern: RunPattern = NMPattern(2, 4)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    plan: str = Field("", description="Plan file")
    options: Options = Field({}, description="Keyword arguments of the recipe")
    layer: tuple[LayerSection, ...] = ()


class SwitchSection(Section):
    """When the recipe's rules change."""

    criterion: CriterionName = "autoswitch"
    step: StepOrFraction | None = None
    eps: float | None = Field(None, gt=0, allow_inf_nan=False)
    window: int | None = Field(None, ge=1, le=10**9)
    t_min: StepOrFraction = 0.1
    t_max: StepOrFraction = 0.5

    @model_validator(mode="after")
    def _fixed_has_a_step(self) -> Self:
        if self.criterion == "fixed" and self.step is None:
            raise ValueError("criterion 'fixed' needs step")
        return self


class TrainConfig(Config):
    """One training run; ``compare`` holds options of recipes for ``--recipes``."""

    model: ModelSection
    data: DataSection
    train: TrainSection
    sparsity: SparsitySection = SparsitySection()
    distill: DistillSection = DistillSection()
    switch: SwitchSection = SwitchSection()
    compare: dict[RecipeName, Options] | None = None

    @model_validator(mode="after")
    def _switch_lies_within(self) -> Self:
        steps = self.train.steps
        t_min, t_max = self.clip
        if not t_min <= t_max:
            raise ValueError(f"switch.t_min {t_min} lies after switch.t_max {t_max}")
        if t_min >= steps:
            raise ValueError(f"switch.t_min {t_min} is not before steps {steps}")
        step = to_step(self.switch.step or 0, steps)
        if step > steps:
            raise ValueError(f"switch.step {step} is never reached in {steps} steps")
        return self

    @model_validator(mode="after")
    def _teacher_comes_in_time(self) -> Self:
        steps = self.train.steps
        without = self.distill.steps_without(steps)
        if without is not None and without >= steps:
            raise ValueError(f"distill.from {without} is not before steps {steps}")
        return self

    @property
    def clip(self) -> tuple[int, int]:
        """T_min and T_max in steps."""
        steps = self.train.steps
        return to_step(self.switch.t_min, steps), to_step(self.switch.t_max, steps)


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a configuration file, then apply ``section.key=value`` overrides.

    Raises:
        InputError: The file cannot be read.
        UsageError: It is not TOML, or a key or value is wrong.
    """
    document = read_document(path, overrides)
    try:
        return TrainConfig.model_validate(document)
    except ValidationError as error:
        raise UsageError(_first_complaint(error), file=path) from None


def with_seed(config: TrainConfig, number: int) -> TrainConfig:
    """The configuration with the ``number``-th of the seeds from ``train.seed`` on."""
    seed = {"seed": config.train.seed + number}
    return config.model_copy(update={"train": config.train.model_copy(update=seed)})


def refuse_high_seeds(config: TrainConfig, count: int) -> None:
    """Refuse ``--seeds`` where not all of them are seeds.

    Raises:
        UsageError: The last is too high.
    """
    if config.train.seed + count > SEEDS:
        raise UsageError(
            f"--seeds: from {config.train.seed} on, not all are below {SEEDS}"
        )


def _first_complaint(error: ValidationError) -> str:
    details = error.errors()
    unknown = [item for item in details if item["type"] == "extra_forbidden"]
    detail = (unknown or details)[0]
    # Branches of a union are types, not keys.
    path = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        known = _keys(path[:-1])
        return f"unknown key {'.'.join(path)}{nearest(path[-1], known)}"
    where = ".".join(part for part in path if part.isidentifier())
    if detail["type"] == "missing" and path[-1].isidentifier():
        return f"{where} is missing"
    return f"{where}: {message_of(detail)}" if where else message_of(detail)


def _keys(path: Sequence[str]) -> list[str]:
    """The keys of the section at ``path``."""
    model: Any = TrainConfig
    for part in path:
        if part.isdecimal():
            continue
        model = model.model_fields[part].annotation
        if not isinstance(model, type) or not issubclass(model, BaseModel):
            model = LayerSection
    return [field.alias or name for name, field in model.model_fields.items()]


def keys_of(config: TrainConfig) -> Iterator[tuple[str, Any]]:
    """Every ``section.key`` of the configuration with its value."""
    for section, values in config.model_dump(mode="json", by_alias=True).items():
        for key, value in (values or {}).items():
            yield f"{section}.{key}", value


def to_toml(config: TrainConfig) -> str:
    """The resolved configuration as TOML, which alone reproduces the run."""
    import tomli_w

    document = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return tomli_w.dumps(document)
