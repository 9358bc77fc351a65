"""Commands, configurations and code that the documents show can be read as such."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from step_cli.cli.app import app
from step_cli.config import options
from step_cli.config.types import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^    .+\n)+", re.M)
# What may stand before a command: a prompt, or the keys of a CI configuration.
BEFORE = re.compile(r"^(?:\$ |(?:- )?(?:run|script|entry): )")
STARTS = re.compile(r"^(?:step-cli|(?:torchrun|python) .*-m step_cli) ")


def blocks(page: Path, kind: str | None = None) -> list[str]:
    """The blocks of code of a page, of one language if ``kind`` is given."""
    text = page.read_text("utf-8")
    found = [body for name, body in FENCE.findall(text) if kind in (None, name)]
    return found if kind else found + INDENTED.findall(FENCE.sub("", text))


def commands(text: str) -> list[str]:
    """The commands of step-cli in a block, each in one line."""
    lines = re.sub(r" *\\\n *", " ", text).splitlines()
    return [
        line
        for line in (BEFORE.sub("", x.strip()) for x in lines)
        if STARTS.match(line)
    ]


def shown() -> list[object]:
    return [
        pytest.param(command, id=f"{page.name}: {command}")
        for page in PAGES
        for block in blocks(page)
        for command in commands(block)
        if not command.startswith("step-cli --")
    ]


class Read(Exception):
    """A command line was accepted; the command does not run."""


@pytest.fixture
def reads_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    validate = options._validated

    def validated(model: type[Config], given: dict[str, object]) -> Config:
        validate(model, given)
        raise Read

    monkeypatch.setattr(options, "_validated", validated)
    monkeypatch.chdir(tmp_path)


def read(command: str) -> None:
    words = shlex.split(command, comments=True)
    start = words.index("step_cli") if "step_cli" in words else 0
    app(words[start + 1 :], standalone_mode=False)


@pytest.mark.usefixtures("reads_only")
@pytest.mark.parametrize("command", shown())
def test_a_command_that_is_shown_is_accepted(command: str) -> None:
    with pytest.raises(Read):
        read(command)


@pytest.mark.usefixtures("reads_only")
@pytest.mark.parametrize(
    "command",
    [
        "step-cli verify-nm a.safetensors --nmm 2:4",
        "step-cli prune a.safetensors",
        "torchrun --nproc-per-node 8 -m step_cli train c.toml --seeds none",
    ],
)
def test_a_command_that_is_wrong_is_not_accepted(command: str) -> None:
    with pytest.raises(Exception) as refused:  # Typer's errors, or ours
        read(command)
    assert refused.type is not Read


def test_every_command_is_shown_somewhere() -> None:
    text = "\n".join(str(item.values[0]) for item in shown())  # type: ignore[attr-defined]
    for name in ("train", "autoswitch-profile", "prune", "verify-nm", "export"):
        assert f"step-cli {name} " in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_and_configurations_are_well_formed(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")
    for document in blocks(page, "toml"):
        assert tomllib.loads(document)
