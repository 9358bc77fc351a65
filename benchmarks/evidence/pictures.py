"""The two pictures of docs/evidence.md."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.evidence.claims import values
from benchmarks.evidence.grid import PATTERNS, SEEDS, Run, by_switch
from benchmarks.evidence.results import Study
from benchmarks.evidence.tasks import Task
from step_cli.plots.drawing import (
    BLUE,
    GREEN,
    GRID,
    INK,
    ORANGE,
    RED,
    STYLE,
    pyplot,
    save_figure,
)

COLORS = {"asp": GRID, "ste": ORANGE, "sr-ste": RED, "step": BLUE}
COLORS["step-relative"] = GREEN
MARKERS = {"asp": "s", "ste": "^", "sr-ste": "v", "step": "o", "step-relative": "D"}
CRITERIA = {"autoswitch": RED, "autoswitch-relative": GREEN}
UNITS = {
    "eval_accuracy": "held-out accuracy",
    "eval_loss": "held-out loss (nats a byte)",
    "per": "phoneme error rate",
}


def draw_recipes(study: Study, tasks: Sequence[Task], path: Path) -> None:
    """Mean and standard deviation of each recipe at each pattern, a panel a task."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes, legend = _panels(plt, tasks)
        for axis, task in zip(axes, tasks, strict=True):
            for shift, recipe in enumerate(COLORS):
                _line(axis, study, task, recipe, 0.06 * (shift - 2))
            _dense_line(axis, study, task)
            axis.set_xticks(range(len(PATTERNS)), PATTERNS)
            _finish(axis, task, "pattern")
        _name_all(legend, axes)
        save_figure(figure, path)


def draw_switch(study: Study, tasks: Sequence[Task], path: Path) -> None:
    """STEP at 1:4 against its switch point, and where two criteria would switch."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes, legend = _panels(plt, tasks)
        for axis, task in zip(axes, tasks, strict=True):
            points = [
                (100 * switch_share(study, task, label), found)
                for label in by_switch(task.name)
                if (found := known(study, task, label, "1:4"))
            ]
            _errors(axis, points, "STEP 1:4", BLUE, "o")
            _dense_line(axis, study, task)
            for name, color in CRITERIA.items():
                _switched(axis, study, task, name, color)
            axis.set_xlim(0, 100)
            _finish(axis, task, "switch (% of the steps)")
        _name_all(legend, axes)
        save_figure(figure, path)


def known(study: Study, task: Task, label: str, pattern: str) -> list[float]:
    """The metric of each seed that has a result."""
    found = values(study, task.name, (label, pattern))
    return [value for value in found if value is not None]


def switch_share(study: Study, task: Task, label: str) -> float:
    """After which share of its steps a method at 1:4 switched, mean over the seeds."""
    runs = (Run(task.name, label, "1:4", seed) for seed in SEEDS)
    results = [result for run in runs if (result := study.result(run))]
    return fmean(r["switch"]["step"] / r["curve"][-1]["step"] for r in results)


def _panels(plt: Any, tasks: Sequence[Task]) -> tuple[Any, list[Any], Any]:
    """A figure, a panel for each task, and one for the names of the lines."""
    columns = 3
    rows = -(-(len(tasks) + 1) // columns)
    size = (3.4 * columns, 2.9 * rows + 0.3)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False
    )
    flat = list(axes.flat)
    for unused in flat[len(tasks) :]:
        unused.set_axis_off()
    return figure, flat[: len(tasks)], flat[len(tasks)]


def _name_all(legend: Any, axes: Sequence[Any]) -> None:
    """The names of all lines, each once, where no panel is."""
    found = [axis.get_legend_handles_labels() for axis in axes]
    named = {
        label: handle
        for handles, labels in found
        for handle, label in zip(handles, labels, strict=True)
    }
    if named:
        legend.legend(named.values(), named, loc="center left", frameon=False)


def _line(axis: Any, study: Study, task: Task, recipe: str, shift: float) -> None:
    points = [
        (place + shift, found)
        for place, pattern in enumerate(PATTERNS)
        if (found := known(study, task, recipe, pattern))
    ]
    _errors(axis, points, recipe, COLORS[recipe], MARKERS[recipe])


def _errors(
    axis: Any,
    points: Sequence[tuple[float, list[float]]],
    label: str,
    color: str,
    marker: str,
) -> None:
    axis.errorbar(
        [place for place, _ in points],
        [fmean(found) for _, found in points],
        [stdev(found) if len(found) > 1 else 0 for _, found in points],
        label=label,
        color=color,
        marker=marker,
        markersize=4,
        linewidth=1.3,
        capsize=2,
    )


def _dense_line(axis: Any, study: Study, task: Task) -> None:
    found = known(study, task, "dense", "dense")
    if found:
        axis.axhline(fmean(found), color=INK, linestyle="--", label="dense")


def _switched(axis: Any, study: Study, task: Task, name: str, color: str) -> None:
    """Where a criterion would have switched each dense run, unclipped."""
    for seed in SEEDS:
        result = study.result(Run(task.name, "dense", "dense", seed))
        step = result and result["criteria"][name]["raw_step"]
        if result and step:
            place = 100 * step / result["curve"][-1]["step"]
            axis.axvline(place, color=color, linestyle=":", label=name)


def _finish(axis: Any, task: Task, below: str) -> None:
    axis.set_title(task.name, fontsize=10, loc="right")
    axis.set_xlabel(below)
    axis.set_ylabel(UNITS[task.metric])
    if not task.higher_is_better:
        axis.invert_yaxis()
