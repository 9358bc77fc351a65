"""``comparison.md`` and ``comparison.html``: a comparison on one page."""

from collections.abc import Sequence
from dataclasses import dataclass

from step_cli.render.html_pages import filled, inline
from step_cli.render.markdown import escaped
from step_cli.reports import ComparedPair, ComparedRow, CompareReport

METRICS = {"eval_accuracy": "held-out accuracy", "eval_loss": "held-out loss"}
COLUMNS = ("recipe", "pattern", "mean", "sd", "to dense", "seeds", "switch steps")
PAIR_COLUMNS = ("pattern", "better", "than", "difference", "95 % interval", "clear")
NONE = "\u2013"


@dataclass(frozen=True)
class ComparePage:
    """All that the pages show beside the report.

    Attributes:
        report: The comparison.
        facts: Labels and values of the summary.
        options: Recipes with what they took of the configuration.
        means: SVG of the means; empty without a mean.
        curves: SVG of the curves; empty where none were recorded.
    """

    report: CompareReport
    facts: Sequence[tuple[str, str]]
    options: Sequence[tuple[str, str]]
    means: str
    curves: str


def direction(report: CompareReport) -> str:
    """``held-out accuracy, higher is better``."""
    better = "higher" if report.higher_is_better else "lower"
    return f"{METRICS[report.metric]}, {better} is better"


def cells(row: ComparedRow) -> list[str]:
    """A row of the table, in the order of ``COLUMNS``."""
    dense = row.pattern is None
    switches = ", ".join(map(str, row.switch_steps))
    return [
        row.recipe,
        row.pattern or NONE,
        number(row.mean),
        number(row.sd),
        NONE if dense or row.to_dense is None else f"{row.to_dense:+.4f}",
        _seeds(row),
        switches or NONE,
    ]


def pair_cells(pair: ComparedPair) -> list[str]:
    """A row of the table of pairs, in the order of ``PAIR_COLUMNS``."""
    interval = NONE
    if pair.interval is not None:
        interval = f"{pair.interval[0]:+.4f} to {pair.interval[1]:+.4f}"
    clear = NONE if pair.interval is None else "yes" if pair.clear else "no"
    difference = f"{pair.difference:+.4f}"
    return [pair.pattern, pair.better, pair.than, difference, interval, clear]


def number(value: float | None) -> str:
    """Four digits behind the point."""
    return NONE if value is None else f"{value:.4f}"


def _seeds(row: ComparedRow) -> str:
    every = len(row.seeds) + len(row.failed)
    return f"{len(row.seeds)} of {every}" if row.failed else str(every)


def markdown(page: ComparePage) -> str:
    """The page as Markdown, without its drawings."""
    report = page.report
    lines = ["# Recipes compared", "", f"The metric is {direction(report)}.", ""]
    lines += _table(COLUMNS, 2, [cells(row) for row in report.rows])
    if report.failed:
        lines += ["", "Runs that do not count:", ""]
        lines += [f"- {escaped(f.run)}: {escaped(f.reason)}" for f in report.failed]
    if report.pairs:
        lines += ["", "Paired differences over the seeds that both have:", ""]
        lines += _table(PAIR_COLUMNS, 3, [pair_cells(pair) for pair in report.pairs])
    lines.append("")
    lines += [f"- {label}: {escaped(value)}" for label, value in page.facts]
    lines += [f"- options of {name}: {escaped(value)}" for name, value in page.options]
    return "\n".join(lines) + "\n"


def _table(
    columns: Sequence[str], words: int, rows: Sequence[Sequence[str]]
) -> list[str]:
    """A table; the first ``words`` columns are no numbers."""
    rules = ["---" if at < words else "--:" for at in range(len(columns))]
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join(rules) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def html(page: ComparePage, inks: dict[str, str]) -> str:
    """The page.

    Args:
        page: What it shows.
        inks: As in `html_pages.html`.
    """
    drawings = {
        "means": ("Means and their intervals", page.means),
        "curves": ("Held-out curves over the steps", page.curves),
    }
    return filled(
        "compare_page.html",
        page=page,
        report=page.report,
        direction=direction(page.report),
        rows=[(row, cells(row)) for row in page.report.rows],
        pairs=[(pair, pair_cells(pair)) for pair in page.report.pairs],
        columns=COLUMNS,
        pair_columns=PAIR_COLUMNS,
        **{
            name: inline(svg, inks, label) if svg else ""
            for name, (label, svg) in drawings.items()
        },
    )
