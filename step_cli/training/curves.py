"""``curves.svg``: what happened in a run, drawn from its records."""

import json
from pathlib import Path
from typing import Any

from step_cli.errors import MissingError
from step_cli.formats.staged import staged


def draw_curves(run_dir: Path, *, eps: float, switch_step: int | None) -> None:
    """Draw loss, held-out accuracy, variance change and mask flips over the steps.

    Args:
        run_dir: Holds ``metrics.jsonl``; ``curves.svg`` is written there.
        eps: AutoSwitch's threshold, drawn beside the variance change.
        switch_step: The switch point, drawn as a vertical line.

    Raises:
        MissingError: matplotlib is not installed.
    """
    plt = pyplot()
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
    _draw(axes[0][0], records, "loss", "training loss")
    _draw(axes[0][1], records, "eval_accuracy", "held-out accuracy")
    _draw(axes[0][1], records, "pruned_eval_accuracy", "of the pruned twin")
    _draw(axes[1][0], records, "variance_change", "mean |change of v| per step")
    axes[1][0].axhline(eps, color="grey", linestyle=":", label="eps")
    axes[1][0].set_yscale("log")
    _draw(axes[1][1], records, "flip_rate", "share of mask flipped per step")
    for panel in axes.flat:
        if switch_step is not None:
            panel.axvline(switch_step, color="tab:red", linewidth=1, label="switch")
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="small")
    save_figure(figure, run_dir / "curves.svg")


def pyplot() -> Any:
    """Matplotlib without a screen, drawing the same bytes each time.

    Raises:
        MissingError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise MissingError(
            "drawing needs matplotlib: pip install 'step-cli[train]'"
        ) from None
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


def _draw(panel: Any, records: list[dict[str, Any]], key: str, label: str) -> None:
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        panel.plot(steps, values, label=label, marker="." if len(points) < 30 else "")
