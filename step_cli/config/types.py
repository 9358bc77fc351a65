"""What options and configuration keys may hold, each with a message of its own."""

import contextlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
)

from step_cli.errors import OutputError, nearest
from step_cli.nm.pattern import NMPattern
from step_cli.nm.selection import parse_axis

T = TypeVar("T")


def _read_pattern(value: object) -> object:
    if isinstance(value, NMPattern):
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected N:M such as 2:4, got {value!r:.80}")
    return NMPattern.parse(value)


Pattern = Annotated[NMPattern, BeforeValidator(_read_pattern), PlainSerializer(str)]


def _refuse_dense(pattern: NMPattern) -> NMPattern:
    if pattern.dense:
        raise ValueError(f"expected N:M such as 2:4 with N < M, got '{pattern}'")
    return pattern


SparsePattern = Annotated[Pattern, AfterValidator(_refuse_dense)]


def _apart(value: object) -> object:
    """The parts of a text between its commas."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise ValueError(f"expected names with commas between, got {value!r:.80}")
    return parts


def _refuse_twice(values: tuple[T, ...]) -> tuple[T, ...]:
    twice = next((each for each in values if values.count(each) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice")
    return values


# Those of `recipes.RECIPES`, which imports torch.
RECIPE_NAMES = (
    "dense", "ste", "sr-ste", "asp", "step", "s-ste", "t-sr-ste", "decaying-mask",
    "mask-decay", "domino-search", "bi-mask",
)  # fmt: skip


def _refuse_unknown(name: str) -> str:
    if name not in RECIPE_NAMES:
        raise ValueError(f"no such recipe {name!r}{nearest(name, RECIPE_NAMES)}")
    return name


RecipeName = Annotated[str, AfterValidator(_refuse_unknown)]
_OnlyOnce = AfterValidator(_refuse_twice)
Recipes = Annotated[tuple[RecipeName, ...], BeforeValidator(_apart), _OnlyOnce]
Patterns = Annotated[tuple[SparsePattern, ...], BeforeValidator(_apart), _OnlyOnce]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Trackers = Annotated[tuple[TrackerName, ...], BeforeValidator(_apart), _OnlyOnce]


def refuse_directory(value: object) -> object:
    """Refuse a name that ends like a directory's, which a path would forget."""
    if isinstance(value, str) and value.endswith(("/", os.sep)):
        raise OutputError("names a directory, and a file is to be written", file=value)
    return value


OutputFile = Annotated[Path, BeforeValidator(refuse_directory)]


def _read_axis(value: object) -> object:
    return parse_axis(value) if isinstance(value, str) else value


AxisOfGlob = Annotated[tuple[str, int], BeforeValidator(_read_axis)]


def read_step(value: object) -> object:
    """Read ``300`` as a step and ``0.25`` as a fraction, from TOML or the shell."""
    number = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = json.loads(value)
    is_step = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    if is_step or (isinstance(number, float) and 0 <= number <= 1):
        return number
    raise ValueError(
        f"expected a step such as 300, or a fraction from 0.0 to 1.0, got {value!r}"
    )


StepOrFraction = Annotated[int | float, BeforeValidator(read_step)]


def to_step(value: int | float, steps: int) -> int:
    """A step from a step or a fraction of ``steps``, rounded to the nearest."""
    return value if isinstance(value, int) else round(value * steps)


NUMBERS = (int, float, int | None, float | None)


class Config(BaseModel):
    """A set of options; unknown ones are errors, values never change."""

    # Built when first used: a command line needs one config of many.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Section(Config):
    """A section of a configuration file, in which ``true`` is no number."""

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind in NUMBERS:
            raise ValueError(f"expected a number, got {str(value).lower()}")
        return value


def _nothing() -> list[Any]:
    # `list` itself would do, but pydantic takes 6 ms to look at its signature.
    return []


def option(
    default: Any, description: str, *, metavar: str | None = None, **bounds: Any
) -> Any:
    """An optional field: ``--its-name`` on the command line."""
    extra: Any = {"metavar": metavar} if metavar else None
    if default is list:
        return Field(
            default_factory=_nothing,
            description=description,
            json_schema_extra=extra,
            **bounds,
        )
    return Field(default, description=description, json_schema_extra=extra, **bounds)
