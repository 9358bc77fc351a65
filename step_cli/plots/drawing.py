"""What all drawings share: matplotlib without a screen, colours, files."""

import importlib.util
from pathlib import Path
from typing import Any

from step_cli.errors import MissingError
from step_cli.formats.files.staged import staged

# Colours that stand out from white and from black, and from each other when seen
# without red or green. `INK` and `PAPER` are what a page may exchange.
INK, PAPER, GRID = "#1b1f24", "#fefefe", "#8c959f"
BLUE, PALE, ORANGE, GREEN, RED = "#2f7fc1", "#8fbce0", "#d9821b", "#2a9d6f", "#d1495b"
STYLE = {
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "step-cli",
    "path.simplify_threshold": 1.0,  # of a pixel; half off long curves
}
# What the curves are drawn with, and what stands for it on a page that may be dark.
INKS = {INK: "currentColor", PAPER: "var(--paper)", GRID: "var(--faint)"}


def name_lines(axis: Any, columns: int = 4) -> None:
    """A legend of so many columns above the panel, where it hides nothing."""
    legend = axis.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.6,
    )
    legend.set_in_layout(False)


def require_drawing(*, page: bool = False) -> None:
    """Refuse at the start what would fail at the end.

    Args:
        page: An HTML page is to be written too.

    Raises:
        MissingError: matplotlib, or jinja2 for a page, is not installed.
    """
    for name in ("matplotlib", "jinja2")[: 1 + page]:
        if importlib.util.find_spec(name) is None:
            raise MissingError(f"drawing needs {name}: pip install 'step-cli[train]'")


def pyplot() -> Any:
    """Matplotlib without a screen, drawing the same bytes each time.

    Raises:
        MissingError: matplotlib is not installed.
    """
    require_drawing()
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "step-cli"
    from matplotlib import pyplot as plt

    return plt


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure in the format of its suffix, complete or not at all."""
    suffix = path.suffix.removeprefix(".")
    undated = {"Date": None} if suffix == "svg" else {}
    with staged(path, force=True) as staging:
        figure.savefig(staging, format=suffix, metadata=undated)
    pyplot().close(figure)
