"""The pages about commands: written by the commands, and forgetting none."""

import re
import runpy
from pathlib import Path

import pytest

from step_cli.cli.app import app
from step_cli.config.train import keys_of, load_config
from step_cli.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    command.callback.__name__.replace("_", "-")
    for command in app.registered_commands
    if command.callback
]


def test_the_reference_is_what_the_commands_say() -> None:
    reference = runpy.run_path(str(ROOT / "docs" / "commands.py"))["reference"]
    written = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert written == reference(), "out of date: run `make docs`"


def test_the_tables_are_those_of_the_code() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "coverage.py"))["page"]
    written = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert written == page(), "out of date: run `make docs`"


def test_the_configuration_has_every_key_and_its_example_holds(
    tmp_path: Path,
) -> None:
    page = runpy.run_path(str(ROOT / "docs" / "config.py"))["page"]
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == page(), "out of date: run `make docs`"
    found = re.search(r"^```toml\n(.*?)^```", written, re.M | re.S)
    assert found is not None
    path = tmp_path / "config.toml"
    path.write_text(found[1])
    for name in (key for key, _ in keys_of(load_config(path))):
        section, key = name.split(".")
        rows = written.split(f"## [{section}]\n")[1].split("\n## ")[0]
        assert f"\n| `{key}` |" in rows, name


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_shows_every_command(command: str) -> None:
    assert f"### {command}\n" in README
    assert f"$ step-cli {command} " in README


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_readme_lists_every_recipe(recipe: str) -> None:
    assert re.search(rf"^\| `{recipe}` \|", README, re.M)


def test_the_readme_lists_every_exit_code() -> None:
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 70, 75, 130):
        assert re.search(rf"^\| {code} \|", README, re.M)
