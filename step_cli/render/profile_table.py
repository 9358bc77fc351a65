"""The report of `autoswitch-profile` for people: criteria, why, layers, the block."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from step_cli.render.text import one_line
from step_cli.reports import (
    AutoswitchProfileReport,
    CriterionReport,
    LayerReport,
    Spread,
)

if TYPE_CHECKING:
    from step_cli.render.console import AnyConsole

LAYERS_SHOWN = 3  # the last to be ready, without -v
Cell = Callable[[CriterionReport], str]


def draw(
    report: AutoswitchProfileReport, console: "AnyConsole", *, verbose: bool
) -> None:
    """Draw the report; ``verbose`` lists every layer."""
    console.paragraph(_settings(report))
    columns = _columns(report)
    rows = [
        [row.name, *(cell(row) for cell in columns.values())] for row in report.criteria
    ]
    console.table(
        ("criterion", *columns),
        rows,
        right=tuple(set(columns) - {"decided by"}),
        whole=("criterion",),
    )
    for text in (f"recommended: {report.recommendation}", *report.advice):
        console.paragraph(one_line(text, longest=2000))
    if report.layers:
        _layers(report.layers, console, verbose=verbose)
    for title, toml in (
        ("", report.switch_toml),
        ("or, without clipping:", report.raw_toml if verbose else None),
    ):
        if toml is not None:
            console.line(f"\n{title}" if title else "")
            console.line(toml)


def _settings(report: AutoswitchProfileReport) -> str:
    seeds = f", {len(report.seeds)} seeds (rows: the first)" if report.seeds else ""
    return (
        f"{report.steps} steps recorded, of a training of {report.total_steps}{seeds}; "
        f"beta2 {report.beta2:g}, eps {report.eps:g}, window {report.window}, clipped "
        f"to {report.t_min}-{report.t_max}, Theorem 1 from step "
        f"{report.theorem_1_minimum} on"
    )


def _columns(report: AutoswitchProfileReport) -> dict[str, Cell]:
    columns: dict[str, Cell] = {
        "switch": lambda row: _number(row.switch_step),
        "unclipped": lambda row: _number(row.raw_step),
        "decided by": lambda row: row.decided_by,
        "margin": lambda row: _number(row.margin, ".3gx"),
    }
    if any(row.post_switch_change is not None for row in report.criteria):
        columns["change after"] = lambda row: _number(row.post_switch_change, ".3g")
    if any(row.v_growth is not None for row in report.criteria):
        columns["v grows to"] = lambda row: _number(row.v_growth, ".3gx")
    if report.seeds:
        several = len(report.seeds)
        columns["over the seeds"] = lambda row: _spread(row.switch_steps, several)
    return columns


def _number(value: float | None, format: str = "d") -> str:
    if value is None:
        return "-"
    unit = "x" if format.endswith("x") else ""
    return f"{value:{format.removesuffix('x')}}{unit}"


def _spread(spread: Spread | None, seeds: int) -> str:
    if spread is None:
        return "-"
    std = "" if spread.std is None else f" ± {spread.std:.2g}"
    some = f" ({spread.count} of {seeds})" if spread.count < seeds else ""
    return f"{spread.mean:.4g}{std}{some}"


def _layers(layers: list[LayerReport], console: "AnyConsole", *, verbose: bool) -> None:
    columns = ("weights", "ready", "relative to v", "change there")
    shown = layers if verbose else layers[:LAYERS_SHOWN]
    rows = [
        [
            one_line(layer.name),
            str(layer.d),
            _ready(layer.ready_step),
            _ready(layer.relative_ready_step),
            _number(layer.change, ".3g"),
        ]
        for layer in shown
    ]
    console.line("")
    console.table(("last layers to be ready", *columns), rows, right=columns)
    if len(shown) < len(layers):
        console.line(f"and {len(layers) - len(shown)} more; -v lists them")


def _ready(step: int | None) -> str:
    return "never" if step is None else str(step)
