"""Drawings of a comparison: means with their intervals, and curves laid over another.

A recipe has the same colour and mark in every drawing, whatever it is compared with.
The colours are those of Okabe and Ito, which differ without red or green too, a little
darker or lighter so that they stand out from white and from black.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from step_cli.plots.drawing import INK, STYLE, name_lines, pyplot
from step_cli.reports import ComparedRow, CompareReport

# What tells recipes apart: colour, mark, line.
LOOKS = {
    "dense": (INK, "D", (0, (5, 2))),
    "step": ("#2f7fc1", "o", "-"),
    "sr-ste": ("#d9821b", "s", "-"),
    "asp": ("#2a9d6f", "^", "-"),
    "ste": ("#c46ba0", "v", "-"),
    "s-ste": ("#d1553b", "P", "-"),
    "t-sr-ste": ("#4fa9d8", "X", "-"),
    "decaying-mask": ("#9a8a1f", "<", "-"),
    "mask-decay": ("#8b6fd0", ">", "-"),
    "domino-search": ("#8a6a4f", "h", "-"),
    "bi-mask": ("#6f8a92", "*", "-"),
}
LABELS = {
    "eval_accuracy": "held-out accuracy (share correct)",
    "eval_loss": "held-out loss (mean per sample or token)",
}
EARLY = 0.3  # share of the steps whose values do not set the scale of the curves
FEW = 30  # points of a line that are marked
COLUMNS = 5  # of the legend
ROW = 0.22  # inches of a row of it


@dataclass(frozen=True)
class SeedCurve:
    """A metric of held-out samples over the steps of one run.

    Attributes:
        recipe: Its recipe.
        pattern: Its pattern; None for a dense run.
        steps: Where it was measured.
        values: What was measured.
        switch_step: None where it has none.
    """

    recipe: str
    pattern: str | None
    steps: Sequence[int]
    values: Sequence[float]
    switch_step: int | None


@dataclass(frozen=True)
class MeanPoint:
    """The mean of a row and its interval, None below two seeds."""

    row: ComparedRow
    interval: tuple[float, float] | None


def patterns_of(report: CompareReport) -> list[str | None]:
    """The patterns, a panel each; one without a pattern where all runs are dense."""
    found = dict.fromkeys(row.pattern for row in report.rows if row.pattern)
    return list(found) or [None]


def draw_means(report: CompareReport, points: Sequence[MeanPoint]) -> str:
    """Each recipe's mean, interval and single values, a panel for each pattern; SVG.

    Args:
        report: The comparison.
        points: Of its rows that have a mean.

    Raises:
        MissingError: matplotlib is not installed.
    """
    plt, patterns = pyplot(), patterns_of(report)
    dense = next((p for p in points if p.row.pattern is None), None)
    panels = [
        [p for p in points if p.row.pattern == pattern and p is not dense]
        for pattern in patterns
    ]
    heights = [max(1, len(panel)) + 0.6 for panel in panels]
    height = 1.1 + 0.42 * sum(heights)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(panels),
            sharex=True,
            squeeze=False,
            figsize=(7.5, height),
            height_ratios=heights,
            layout="constrained",
        )
        figure.get_layout_engine().set(rect=(0, 0, 0.99, 1 - ROW / height))
        for axis, pattern, panel in zip(axes.flat, patterns, panels, strict=True):
            if dense is not None:
                _dense_line(axis, dense, named=axis is axes.flat[0])
            for place, point in enumerate(panel):
                _mean(axis, point, len(panel) - 1 - place)
            axis.set_yticks(range(len(panel)), [p.row.recipe for p in reversed(panel)])
            axis.set_ylim(-0.6, max(1, len(panel)) - 0.4)
            axis.set_ylabel(pattern or "")
            axis.grid(visible=False, axis="y")
        if dense is not None:
            name_lines(axes.flat[0])
        axes.flat[-1].set_xlabel(LABELS[report.metric])
        if report.higher_is_better:  # no share lies beyond 0 and 1
            left, right = axes.flat[-1].get_xlim()
            axes.flat[-1].set_xlim(max(0.0, left), min(1.0, right))
        return _svg(figure)


def _dense_line(axis: Any, point: MeanPoint, *, named: bool) -> None:
    colour, _, dashes = LOOKS["dense"]
    label = "dense, mean and 95 % interval" if point.interval else "dense"
    label = label if named else ""
    axis.axvline(point.row.mean, color=colour, linestyle=dashes, lw=1.2, label=label)
    if point.interval is not None:
        axis.axvspan(*point.interval, color=colour, alpha=0.1, linewidth=0)


def _mean(axis: Any, point: MeanPoint, place: int) -> None:
    colour, mark, _ = LOOKS[point.row.recipe]
    values = point.row.values
    axis.plot(values, [place + 0.22] * len(values), "|", color=colour, markersize=6)
    if point.interval is not None:
        axis.plot(point.interval, [place, place], color=colour, linewidth=2)
    axis.plot([point.row.mean], [place], mark, color=colour, markersize=7)


def draw_curves(report: CompareReport, curves: Sequence[SeedCurve], steps: int) -> str:
    """The metric over the steps, a panel for each pattern, a line for each seed; SVG.

    Args:
        report: The comparison.
        curves: Of its runs.
        steps: Length of each.

    Raises:
        MissingError: matplotlib is not installed.
    """
    plt, patterns = pyplot(), patterns_of(report)
    with plt.rc_context(STYLE):
        height = 0.7 + 2.4 * len(patterns)
        figure, axes = plt.subplots(
            len(patterns),
            sharex=True,
            sharey=True,
            squeeze=False,
            figsize=(7.5, height),
            layout="constrained",
        )
        names = len({row.recipe for row in report.rows}) + 1
        room = ROW * -(-names // COLUMNS) / height
        figure.get_layout_engine().set(rect=(0, 0, 0.99, 1 - room))
        for axis, pattern in zip(axes.flat, patterns, strict=True):
            shown = [curve for curve in curves if curve.pattern in (None, pattern)]
            _curves(axis, shown)
            axis.set_ylabel(pattern or "")
        figure.supylabel(LABELS[report.metric], fontsize="medium")
        _legend(axes.flat[0], report)
        axes.flat[-1].set_xlabel("step")
        axes.flat[-1].set_xlim(0, steps)
        limits = _limits(curves, steps)
        if limits is not None:
            axes.flat[-1].set_ylim(*limits)
        return _svg(figure)


def _curves(axis: Any, curves: Sequence[SeedCurve]) -> None:
    for curve in curves:
        colour, mark, dashes = LOOKS[curve.recipe]
        few = {"marker": mark, "markersize": 3} if len(curve.steps) < FEW else {}
        axis.plot(
            curve.steps,
            curve.values,
            color=colour,
            linestyle=dashes,
            linewidth=1,
            **few,
        )
        if curve.switch_step:  # one at the very start marks nothing
            axis.axvline(curve.switch_step, color=colour, linestyle=":", linewidth=1.1)


def _legend(axis: Any, report: CompareReport) -> None:
    for recipe in dict.fromkeys(row.recipe for row in report.rows):
        colour, mark, dashes = LOOKS[recipe]
        style = {"marker": mark, "markersize": 4, "linestyle": dashes}
        axis.plot([], [], color=colour, linewidth=1.4, label=recipe, **style)
    if any(step for row in report.rows for step in row.switch_steps):
        axis.plot([], [], color=INK, linestyle=":", linewidth=1.1, label="switch")
    name_lines(axis, COLUMNS)


def _limits(curves: Sequence[SeedCurve], steps: int) -> tuple[float, float] | None:
    """A scale for what comes after the first steps, which would hide it."""
    late = list(_values(curves, EARLY * steps)) or list(_values(curves, 0))
    if not late:
        return None
    margin = 0.05 * (max(late) - min(late)) or 0.01
    return min(late) - margin, max(late) + margin


def _values(curves: Sequence[SeedCurve], after: float) -> Iterator[float]:
    for curve in curves:
        for step, value in zip(curve.steps, curve.values, strict=True):
            if step >= after:
                yield value


def _svg(figure: Any) -> str:
    """The same bytes each time."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    pyplot().close(figure)
    return drawn.getvalue()
