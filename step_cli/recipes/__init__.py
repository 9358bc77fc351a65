"""The recipes by the names a user types."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from step_cli.core.recipe import Recipe
from step_cli.errors import UsageError
from step_cli.recipes.asp import ASP
from step_cli.recipes.dense import Dense
from step_cli.recipes.sr_ste import SRSTE
from step_cli.recipes.ste import STE
from step_cli.recipes.step import Step

RECIPES: dict[str, type[Recipe]] = {
    "dense": Dense,
    "ste": STE,
    "sr-ste": SRSTE,
    "asp": ASP,
    "step": Step,
}


def make_recipe(name: str, options: Mapping[str, Any] | None = None) -> Recipe:
    """Make a recipe from its name and keyword arguments.

    ``inner``, where a recipe wraps another, is a name too; options the wrapper does not
    know are handed to it.

    Raises:
        UsageError: No such recipe, or no such option.
    """
    if name not in RECIPES:
        raise UsageError(f"no such recipe {name!r}{_nearest(name, RECIPES)}")
    kind, given = RECIPES[name], dict(options or {})
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if "inner" in known and isinstance(given.get("inner"), str):
        rest = {key: given.pop(key) for key in list(given) if key not in known}
        given["inner"] = make_recipe(given["inner"], rest)
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        raise UsageError(
            f"recipe {name} has no option {unknown!r}{_nearest(unknown, known)}"
        )
    return kind(**given)


def _nearest(name: str, known: Any) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}" if close else f"; use {', '.join(known)}"
