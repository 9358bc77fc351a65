"""The documents for users name only what `import step_cli` offers."""

import re
from pathlib import Path

import pytest

import step_cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
# Keys of metadata in files, which are no names of Python.
KEYS = {"step_cli.compressed", "step_cli.header_sha256", "step_cli.plan"}
IMPORT = re.compile(
    r"\b(?:from\s+(step_cli[\w.]*)\s+import\b|import\s+(step_cli\.[\w.]*))"
)
DOTTED = re.compile(r"\bstep_cli(?:\.\w+)+")


def private_names(text: str) -> list[str]:
    """What a text takes from step_cli that is no public name of the package."""
    found = [a or b for a, b in IMPORT.findall(text) if (a or b) != "step_cli"]
    found += [
        name
        for names in re.findall(r"from step_cli import ([\w, ]+)", text)
        for name in re.split(r",\s*", names.strip())
        if name and name.split(" as ")[0] not in step_cli.__all__
    ]
    found += [
        path
        for path in DOTTED.findall(text)
        if path not in KEYS and path.split(".")[1] not in step_cli.__all__
    ]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_what_is_private(page: Path) -> None:
    assert private_names(page.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("from step_cli import sparse, verify", []),
        ("step_cli.sparse_adamw(model)", []),
        ("the key `step_cli.plan`", []),
        ("from step_cli.nm import kernels", ["step_cli.nm", "step_cli.nm"]),
        ("import step_cli.nm.count", ["step_cli.nm.count", "step_cli.nm.count"]),
        ("from step_cli import nm, sparse", ["nm"]),
        ("raises `step_cli.errors.StepError`", ["step_cli.errors.StepError"]),
        ("step_cli._hidden()", ["step_cli._hidden"]),
    ],
)
def test_the_test_sees_a_private_name(text: str, private: list[str]) -> None:
    assert private_names(text) == private


def test_every_public_name_is_there() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for name in step_cli.__all__:
        if name != "LightningCallback":  # needs Lightning, which users bring
            assert getattr(step_cli, name) is not None
