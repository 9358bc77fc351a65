"""Imports point down: `core` knows nothing of files, `formats` nothing of recipes."""

import ast
from pathlib import Path

import pytest

import step_cli

PACKAGE = Path(step_cli.__file__).parent

# Each part may import itself and the parts named here.
LAYERS = {
    "__init__": {"commands", "core", "formats", "optimizers"},  # when a name is used
    "__main__": {"cli", "signals"},
    "cli": {
        "commands", "config", "errors", "failures", "logs", "options", "presentation",
        "processes", "render", "reports", "signals", "streams",
    },
    "failures": {"errors", "presentation", "reports"},
    "presentation": {"errors"},
    "processes": set(),
    "streams": set(),
    "signals": {"errors"},
    "logs": {"render"},
    "commands": {
        "calibration", "config", "core", "data_config", "data_kind", "errors",
        "formats", "models", "permuting", "reports", "samples", "train_config",
        "training",
    },
    "training": {
        "config", "core", "data", "data_config", "errors", "formats", "live", "models",
        "processes",
        "recipes", "render", "reports", "samples", "train_config",
    },
    "calibration": {"core", "data", "errors", "formats", "models"},
    "permuting": {"calibration", "core", "errors", "formats"},
    "live": {"render"},
    "optimizers": {"core", "errors", "recipes"},
    "models": {"errors", "formats", "samples"},
    "data": {"data_config", "data_kind", "errors", "formats", "samples"},
    "data_kind": {"data_config", "errors", "formats"},
    "data_config": {"config", "errors"},
    "samples": {"errors"},
    "recipes": {"core", "errors"},
    "render": {"errors", "formats", "reports"},
    "reports": {"core"},
    "options": {"config", "core", "errors"},
    "train_config": {
        "config", "core", "data_config", "errors", "options", "samples", "toml_text",
    },
    "toml_text": set(),
    "config": {"core", "errors"},
    "formats": {"core", "errors"},
    "core": {"errors"},
    "errors": set(),
}  # fmt: skip


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "step_cli":
                names = [f"step_cli.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("step_cli.")}
    return parts


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    part = part_of(path)
    assert imported_parts(path) - {part} <= LAYERS[part]
