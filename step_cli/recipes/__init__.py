"""The recipes by the names a user types."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from typing_extensions import override

from step_cli.errors import UsageError, nearest
from step_cli.optim.recipe import DENSE, Phase, Recipe
from step_cli.recipes.asp import ASP
from step_cli.recipes.bi_mask import BiMask
from step_cli.recipes.decaying import DecayingMask, MaskDecay
from step_cli.recipes.domino_search import DominoSearch
from step_cli.recipes.s_ste import SSTE
from step_cli.recipes.sr_ste import SRSTE, STE
from step_cli.recipes.step import Step
from step_cli.recipes.t_sr_ste import TSRSTE


@dataclass(frozen=True)
class Dense(Recipe):
    """No mask at any time: what the other recipes are measured against."""

    @property
    @override
    def before(self) -> Phase:
        return DENSE


RECIPES: dict[str, type[Recipe]] = {
    "dense": Dense,
    "ste": STE,
    "sr-ste": SRSTE,
    "asp": ASP,
    "step": Step,
    "s-ste": SSTE,
    "t-sr-ste": TSRSTE,
    "decaying-mask": DecayingMask,
    "mask-decay": MaskDecay,
    "domino-search": DominoSearch,
    "bi-mask": BiMask,
}


def make_recipe(name: str, options: Mapping[str, Any] | None = None) -> Recipe:
    """Make a recipe from its name and keyword arguments.

    ``inner``, where a recipe wraps another, is a name too; options the wrapper does not
    know are handed to it.

    Raises:
        UsageError: No such recipe or option, or an option's value is wrong.
    """
    if name not in RECIPES:
        raise UsageError(f"no such recipe {name!r}{nearest(name, RECIPES)}")
    kind, given = RECIPES[name], dict(options or {})
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if "inner" in known and isinstance(given.get("inner"), str):
        rest = {key: given.pop(key) for key in list(given) if key not in known}
        given["inner"] = make_recipe(given["inner"], rest)
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        raise UsageError(
            f"recipe {name} has no option {unknown!r}{nearest(unknown, known)}"
        )
    return kind(**given)
