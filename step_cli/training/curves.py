"""``curves.svg``: what happened in a run, drawn from its records."""

from pathlib import Path
from typing import Any

from step_cli.plots.drawing import (
    BLUE,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PALE,
    RED,
    STYLE,
    name_lines,
    pyplot,
    save_figure,
)
from step_cli.training.history import CriterionCurve, Curve, History

WIDE = 20  # times: a loss that falls so far is drawn on a logarithmic scale
# What is written beside a panel that shows a metric of held-out samples.
UNITS = {"accuracy": "accuracy (share correct)", "perplexity": "perplexity"}


def draw_curves(path: Path, history: History) -> None:
    """Draw the panels that there is something for, over one axis of steps.

    Args:
        path: The SVG to write.
        history: What the run has recorded.

    Raises:
        MissingError: matplotlib is not installed.
        OutputError: It cannot be written.
    """
    plt = pyplot()
    with plt.rc_context(STYLE):
        panels = [_draw_loss]
        panels += [_draw_parts] if history.curve("distill_loss") else []
        panels += [_metric_panel(name) for name in history.metrics]
        panels += [_draw_criterion] if history.criterion else []
        panels += [_draw_flips] if history.curve("flip_rate") else []
        height = 0.6 + 2.2 * len(panels)
        figure, axes = plt.subplots(
            len(panels),
            sharex=True,
            squeeze=False,
            figsize=(7.5, height),
            layout="constrained",
        )
        # Room for the legends, in shares of the figure and of a panel.
        rect = (0, 0, 0.99, 1 - 0.25 / height)
        figure.get_layout_engine().set(hspace=0.12, rect=rect)
        for number, (draw, axis) in enumerate(zip(panels, axes.flat, strict=True)):
            draw(axis, history)
            _mark_switch(axis, history, named=number == 0)
            name_lines(axis)
        axes.flat[-1].set_xlabel("step")
        axes.flat[-1].set_xlim(0, history.steps)
        save_figure(figure, path)


def _draw_loss(axis: Any, history: History) -> None:
    _plot(axis, history.curve("loss"), "training batches", color=PALE)
    _plot(axis, history.curve("eval_loss"), "held-out", color=BLUE)
    _plot(
        axis,
        history.curve("pruned_eval_loss"),
        "held-out, pruned twin",
        color=ORANGE,
        linestyle="--",
    )
    axis.set_ylabel("loss (mean)")
    _scale(axis, history.curve("loss").values)


def _draw_parts(axis: Any, history: History) -> None:
    """What the loss of training batches is made of, before the weights."""
    task, distill = history.curve("task_loss"), history.curve("distill_loss")
    _plot(axis, task, "of the task", color=BLUE)
    _plot(axis, distill, "to the teacher", color=ORANGE)
    axis.set_ylabel("loss, its parts")
    _scale(axis, task.values + distill.values)


def _scale(axis: Any, values: list[float]) -> None:
    if values and 0 < WIDE * min(values) < max(values):
        axis.set_yscale("log")


def _metric_panel(name: str) -> Any:
    def draw(axis: Any, history: History) -> None:
        _plot(axis, history.curve(f"eval_{name}"), "held-out", color=BLUE)
        pruned = history.curve(f"pruned_eval_{name}")
        _plot(axis, pruned, "held-out, pruned twin", color=ORANGE, linestyle="--")
        axis.set_ylabel(UNITS.get(name, name.replace("_", " ")))

    return draw


def _draw_criterion(axis: Any, history: History) -> None:
    seen = history.criterion
    assert seen is not None
    if seen.name.startswith("autoswitch"):
        _plot(axis, seen.change, "of one step", color=PALE, linewidth=0.8)
    over = f"mean of {seen.window} steps" if seen.window > 1 else seen.name
    _plot(axis, seen.value, over, color=BLUE)
    axis.axhline(
        seen.threshold,
        color=INK,
        linestyle=":",
        linewidth=1.2,
        label=f"threshold {seen.threshold:.3g}",
    )
    if seen.clip:
        t_min, t_max = seen.clip
        label = f"t_min {t_min} to t_max {t_max}"  # where it may switch
        axis.axvspan(t_min, t_max, color=GRID, alpha=0.18, linewidth=0, label=label)
    axis.set_yscale("log")
    axis.set_ylabel(_unit_of(seen))


def _unit_of(seen: CriterionCurve) -> str:
    if seen.name == "autoswitch-relative":
        return "|change of v| / v"
    if seen.name.startswith("autoswitch"):
        return "|change of v| per\ncoordinate and step"
    return f"{seen.name} of v"


def _draw_flips(axis: Any, history: History) -> None:
    flips = history.curve("flip_rate")
    percent = Curve(flips.steps, [100 * value for value in flips.values])
    _plot(axis, percent, "mask entries that flip", color=GREEN)
    axis.set_ylabel("flips in one step (%)")
    axis.set_ylim(bottom=0)


def _plot(axis: Any, curve: Curve, label: str, **style: Any) -> None:
    if curve:
        few = len(curve.steps) < 30
        line = curve.downsampled()
        marker = {"marker": "o", "markersize": 3} if few else {}
        axis.plot(line.steps, line.values, label=label, **marker, **style)


def _mark_switch(axis: Any, history: History, *, named: bool) -> None:
    switch = history.switch
    if switch is not None:
        label = f"switch after {switch.step} ({switch.reason})" if named else None
        axis.axvline(switch.step, color=RED, linewidth=1.3, label=label)
