"""What the documents must not forget."""

import json
import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from step_cli.recipes import RECIPES
from step_cli.training.setup import OPTIMIZER_OPTIONS

DOCS = Path(__file__).parents[1] / "docs"


def section(name: str) -> str:
    """The part of recipes.md under a recipe's heading."""
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"docs/recipes.md has no section '## {name}'"
    return found[1]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_and_each_of_its_options_is_described(name: str) -> None:
    text = section(name)
    options: tuple[Field[Any], ...] = fields(RECIPES[name])  # type: ignore[arg-type]
    for option in options:
        assert f"`{option.name}`" in text, f"{name}: option {option.name}"
        if isinstance(option.default, int | float):
            said = re.search(rf"`{option.name}` \(([\d.e-]+|true|false)\)", text)
            default = str(option.default).lower()
            assert said and json.loads(said[1]) == json.loads(default), option.name
    for told in re.findall(r"^\* `(\w+)`", text, re.M):
        known = {option.name for option in options} | {*OPTIMIZER_OPTIONS}
        assert told in known, f"{name}: there is no option {told}"


def test_the_table_of_recipes_is_whole() -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| \[`([\w-]+)`\]\(#([\w-]+)\)", text, re.M)
    assert [name for name, _ in told] == [link for _, link in told] == list(RECIPES)
