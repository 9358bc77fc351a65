"""The report of `autoswitch-profile` for people: criteria, why, layers, the block."""

from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from step_cli.render.tables import name, new_table
from step_cli.render.text import one_line
from step_cli.reports import (
    AutoswitchProfileReport,
    CriterionReport,
    LayerReport,
    Spread,
)

LAYERS_SHOWN = 3  # the last to be ready, unless asked for more
Cell = Callable[[CriterionReport], str]


def draw(report: AutoswitchProfileReport, console: Console, *, verbose: bool) -> None:
    """Draw the report; ``verbose`` lists every layer."""
    console.print(_settings(report))
    columns = _columns(report)
    table = new_table("criterion", *columns, right=tuple(set(columns) - {"decided by"}))
    table.columns[0].no_wrap = True  # the other columns give way
    for row in report.criteria:
        table.add_row(row.name, *(cell(row) for cell in columns.values()))
    console.print(table)
    _say(console, f"recommended: {report.recommendation}")
    for line in report.advice:
        _say(console, line)
    if report.layers:
        _layers(report.layers, console, verbose=verbose)
    for title, toml in (
        ("", report.switch_toml),
        ("or, without clipping:", report.raw_toml if verbose else None),
    ):
        if toml is not None:
            console.print(f"\n{title}" if title else "")
            # Unwrapped, as it is there to be copied.
            console.print(Text(toml.rstrip()), soft_wrap=True)


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


def _layers(layers: list[LayerReport], console: Console, *, verbose: bool) -> None:
    columns = ("weights", "ready", "relative to v", "change there")
    table = new_table("last layers to be ready", *columns, right=columns)
    shown = layers if verbose else layers[:LAYERS_SHOWN]
    for layer in shown:
        table.add_row(
            name(layer.name),
            str(layer.d),
            _ready(layer.ready_step),
            _ready(layer.relative_ready_step),
            _number(layer.change, ".3g"),
        )
    console.print()
    console.print(table)
    if len(shown) < len(layers):
        console.print(f"and {len(layers) - len(shown)} more; -v lists them")


def _ready(step: int | None) -> str:
    return "never" if step is None else str(step)


def _say(console: Console, line: str) -> None:
    console.print(Text(one_line(line, longest=2000)))
