"""Recipes whose options are checked when they are given, not when training fails."""

from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from step_cli.errors import UsageError
from step_cli.optim.recipe import Recipe

TYPES = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


@dataclass(frozen=True)
class CheckedRecipe(Recipe):
    """A recipe with options; the type of each field sets which values it takes.

    Raises:
        UsageError: A value does not fit its type.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for option in (field.name for field in fields(self)):
            value = _checked(option, getattr(self, option), hints[option])
            object.__setattr__(self, option, value)  # it is frozen


def _checked(option: str, value: Any, kind: Any) -> Any:
    try:
        return TypeAdapter(kind, config=TYPES).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UsageError(f"{option}: {message}, got {value!r}") from None
