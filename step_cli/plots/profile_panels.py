"""The panels of the drawing of ``autoswitch-profile``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from step_cli.autoswitch.curves import Curves, Floats
from step_cli.plots.drawing import BLUE, GREEN, GRID, INK, ORANGE, PALE, PAPER, RED
from step_cli.reports import AutoswitchProfileReport, CriterionReport

UNIT = "squared gradient"
CHANGE = "|change of v|"
PURPLE, BROWN = "#8e5cc4", "#9a6a43"
COLORS = {
    "autoswitch": RED,
    "autoswitch-geometric": ORANGE,
    "autoswitch-relative": GREEN,
    "relative-norm": PURPLE,
    "staleness": BROWN,
    "fixed": GRID,
}
# Beyond, matplotlib's axes of logarithms overflow.
SMALLEST, LARGEST = 1e-120, 1e180
# Which curve of which panel each criterion tests.
TESTED = {
    "autoswitch": (0, "arithmetic"),
    "autoswitch-geometric": (0, "geometric"),
    "autoswitch-relative": (1, "relative"),
    "relative-norm": (2, "v_l2"),
    "staleness": (2, "v_l1"),
}
LAYER_COLORS = (RED, ORANGE, GREEN, BLUE, PURPLE)


@dataclass(frozen=True)
class LayerCurves:
    """Changes of each layer over the steps that were kept.

    Attributes:
        names: Of the layers.
        step: Counted from 1, [rows].
        change: Per coordinate, mean over the window, [rows, layers].
        relative: Relative to v, [rows, layers].
    """

    names: Sequence[str]
    step: Floats
    change: Floats
    relative: Floats


@dataclass(frozen=True)
class Drawing:
    """What is drawn.

    Attributes:
        report: The results of the criteria.
        curves: Of the first seed.
        others: Of the other seeds.
        layers: Of the first seed; None where none were recorded.
    """

    report: AutoswitchProfileReport
    curves: Curves
    others: Sequence[Curves]
    layers: LayerCurves | None


def draw_change(panel: Any, drawing: Drawing) -> None:
    """Change of v per coordinate against eps, as in the STEP paper's Figure 3."""
    curves, window = drawing.curves, drawing.report.window
    _plot(
        panel,
        curves.step,
        curves.change,
        color=PALE,
        linewidth=0.8,
        label=f"{CHANGE}, mean over weights",
    )
    for number, other in enumerate(drawing.others):
        label = "the same, other seeds" if number == 0 else None
        _plot(
            panel,
            other.step,
            other.arithmetic,
            color=BLUE,
            alpha=0.35,
            linewidth=1,
            label=label,
            zorder=3,
        )
    _plot(
        panel,
        curves.step,
        curves.arithmetic,
        color=BLUE,
        label=f"its mean over {window} steps",
    )
    _plot(
        panel,
        curves.step,
        curves.geometric,
        color=BLUE,
        linestyle="--",
        linewidth=1,
        label="the same, geometric over weights",
    )
    eps = drawing.report.eps
    _draw_threshold(panel, eps, f"eps = {eps:g}")
    panel.set_ylabel(f"change of v\nper weight and step\n[{UNIT}]")


def draw_relative(panel: Any, drawing: Drawing) -> None:
    """Change of v relative to v."""
    curves = drawing.curves
    _plot(
        panel,
        curves.step,
        curves.relative,
        color=GREEN,
        label=f"{CHANGE} / v, each summed over the window",
    )
    for other in drawing.others:
        _plot(panel, other.step, other.relative, color=GREEN, alpha=0.35, linewidth=1)
    bound = _threshold(drawing.report, "autoswitch-relative")
    if bound is None:
        bound = 1 - drawing.report.beta2
    _draw_threshold(panel, bound, f"threshold {bound:.3g}")
    panel.set_ylabel("change of v\nrelative to v\n[per step]")


def draw_norms(panel: Any, drawing: Drawing) -> None:
    """The norms of v."""
    curves = drawing.curves
    _plot(panel, curves.step, curves.v_l1, color=INK, label="L1 norm")
    _plot(panel, curves.step, curves.v_l2, color=GRID, linestyle="--", label="L2 norm")
    panel.set_ylabel(f"norm of v\n[{UNIT}]")


def draw_layers(panel: Any, drawing: Drawing, layers: LayerCurves) -> None:
    """Change of each layer; the last to be ready by name."""
    order = [layer.name for layer in drawing.report.layers]
    last = order[: len(LAYER_COLORS)]
    for at, name in enumerate(layers.names):
        if name not in last:
            _plot(
                panel,
                layers.step,
                layers.change[:, at],
                color=GRID,
                alpha=0.5,
                linewidth=0.7,
            )
    for number, name in enumerate(last):
        column = layers.change[:, layers.names.index(name)]
        label = _plain(name) + ("" if number else " (last)")
        color = LAYER_COLORS[number]
        _plot(panel, layers.step, column, color=color, linewidth=1, label=label)
    _draw_threshold(panel, drawing.report.eps, None)
    panel.set_ylabel(f"change of v by layer\nper weight and step\n[{UNIT}]")


def draw_clips(panel: Any, report: AutoswitchProfileReport, *, named: bool) -> None:
    """Grey out the steps at which no criterion may fire by its threshold."""
    label = f"outside {report.t_min} to {report.t_max}: clipped" if named else None
    style = {"color": GRID, "alpha": 0.15, "linewidth": 0, "zorder": 0}
    panel.axvspan(0, report.t_min, **style)
    end = max(report.steps, report.t_max + 1)
    panel.axvspan(report.t_max, end, label=label, **style)
    if report.steps > report.total_steps:
        panel.axvline(
            report.total_steps,
            color=INK,
            linewidth=1,
            alpha=0.6,
            label=f"end of the training: {report.total_steps}" if named else None,
        )


def draw_points(panels: Sequence[Any], drawing: Drawing) -> None:
    """A dot for each criterion, on the curve that it tests."""
    for row in drawing.report.criteria:
        if row.switch_step is None or row.name not in TESTED:
            continue
        number, column = TESTED[row.name]
        at = int((drawing.curves.step <= row.switch_step).sum()) - 1
        value = _positive(getattr(drawing.curves, column))[at]
        panels[number].plot(
            row.switch_step,
            value,
            "o",
            color=COLORS[row.name],
            markeredgecolor=PAPER,
            markersize=7,
            zorder=5,
        )


def draw_switches(panel: Any, report: AutoswitchProfileReport, *, named: bool) -> None:
    """Where each criterion would switch, and the recommended one's window."""
    for row in report.criteria:
        if row.switch_step is None:
            continue
        chosen = row.name == report.recommended
        panel.axvline(
            row.switch_step,
            color=COLORS[row.name],
            linewidth=2.2 if chosen else 1,
            linestyle="-" if chosen else "--",
            label=_label(row, report, chosen=chosen) if named else None,
            zorder=4 if chosen else 2,
        )
        if chosen:
            start = max(0, row.switch_step - report.window)
            label = f"its window of {report.window} steps" if named else None
            panel.axvspan(
                start,
                row.switch_step,
                color=COLORS[row.name],
                alpha=0.12,
                linewidth=0,
                label=label,
            )


def _label(
    row: CriterionReport, report: AutoswitchProfileReport, *, chosen: bool
) -> str:
    spread = ""
    if row.switch_steps is not None and row.switch_steps.min < row.switch_steps.max:
        spread = f", seeds {row.switch_steps.min:g} to {row.switch_steps.max:g}"
    said = f"{row.name}: {row.switch_step} ({row.decided_by}{spread})"
    return f"{said}, recommended" if chosen else said


def _plot(panel: Any, steps: Floats, values: Floats, **style: Any) -> None:
    """Draw a curve, as far as a log axis can show it."""
    panel.plot(steps, _positive(values), **style)


def _draw_threshold(panel: Any, value: float, label: str | None) -> None:
    if SMALLEST < value < LARGEST:
        panel.axhline(value, color=INK, linestyle=":", linewidth=1.2, label=label)


def _threshold(report: AutoswitchProfileReport, name: str) -> float | None:
    return next((row.threshold for row in report.criteria if row.name == name), None)


def _positive(values: Floats) -> Floats:
    """What a log axis can show, with its margins."""
    return np.where((values > SMALLEST) & (values < LARGEST), values, np.nan)


def _plain(name: str) -> str:
    """A name from a file, without what matplotlib would take for a formula."""
    shown = "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")
    return shown if len(shown) <= 40 else f"...{shown[-37:]}"
