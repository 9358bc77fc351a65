"""The reports of `train --recipes` for people."""

from typing import TYPE_CHECKING

from step_cli.render.compare_page import (
    COLUMNS,
    PAIR_COLUMNS,
    cells,
    direction,
    pair_cells,
)
from step_cli.render.text import duration, one_line
from step_cli.reports import CompareDryRunReport, CompareReport

if TYPE_CHECKING:
    from step_cli.render.console import AnyConsole


def draw(report: CompareReport, console: "AnyConsole") -> None:
    """Draw the rows, then each two recipes."""
    console.line(direction(report))
    console.table(COLUMNS, cells(report), right=COLUMNS[2:])
    for failed in report.failed:
        console.line(f"{failed.run}: {one_line(failed.reason)}")
    if report.pairs:
        console.line("")
        console.table(PAIR_COLUMNS, pair_cells(report), right=PAIR_COLUMNS[3:5])
    console.line(f"curves and intervals: {one_line(report.run_dir)}/comparison.html")
    counted = report.count - len(report.failed)
    text = f"{counted} of {report.count} runs count: {one_line(report.run_dir)}"
    console.verdict(report.ok, text)


def draw_dry_run(report: CompareDryRunReport, console: "AnyConsole") -> None:
    """Draw what would be trained."""
    columns = ("run", "state", "steps left", "time")
    rows = [
        [run.run, run.state, str(run.steps), duration(run.seconds)]
        for run in report.runs
    ]
    console.table(columns, rows, right=columns[2:])
    left = sum(run.state != "finished" for run in report.runs)
    text = (
        f"{left} of {len(report.runs)} runs to train, about "
        f"{duration(report.seconds)} without what they write; nothing written"
    )
    console.verdict(report.ok, text)
