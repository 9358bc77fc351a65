"""Comparisons of seconds: a small net on scikit-learn's digits."""

import json
from pathlib import Path
from typing import Any

from small_run import CONFIG, NET, set_words

from step_cli.commands.compare import page  # noqa: F401 (its drawings stay empty)

RECIPES = ("--recipes", "dense,asp,sr-ste,step")
FILES = ("comparison.json", "comparison.md", "comparison.html")


def words(folder: Path, *more: str) -> list[str]:
    """A command line of `train` without its directory; ``more`` is for ``--set``."""
    net = folder / "net.py"
    net.write_text(NET)
    return ["train", str(CONFIG), *set_words(net, *more)]


def read(run_dir: Path) -> dict[str, Any]:
    document = json.loads((run_dir / "comparison.json").read_text())
    assert isinstance(document, dict)
    return document


def files(run_dir: Path) -> dict[str, bytes]:
    return {name: (run_dir / name).read_bytes() for name in FILES}


def runs(run_dir: Path) -> list[str]:
    """The runs whose results are there."""
    return sorted(path.parent.name for path in run_dir.glob("*/report.html"))
