"""Instead of matplotlib's curves of a run, in tests that are about something else."""

from pathlib import Path

SVG = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>\n'


def draw_curves(path: Path, history: object) -> None:
    """An empty picture."""
    path.write_text(SVG)


def drawing(*given: object) -> str:
    """The same of a comparison."""
    return SVG
