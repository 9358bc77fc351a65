"""``comparison.md`` and ``comparison.html``: a comparison on one page."""

from collections.abc import Sequence
from dataclasses import dataclass

from step_cli.render.html_pages import filled, inline
from step_cli.render.markdown import escaped
from step_cli.reports import ComparedRow, CompareReport

METRICS = {"eval_accuracy": "held-out accuracy", "eval_loss": "held-out loss"}
COLUMNS = ("recipe", "pattern", "mean", "sd", "to dense", "seeds", "switch steps")
PAIR_COLUMNS = ("pattern", "better", "than", "difference", "95 % interval", "clear")
NONE = "\u2013"
FEW = 5  # switch steps that are shown one by one


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


def cells(report: CompareReport) -> list[list[str]]:
    """The rows of the table, in the order of ``COLUMNS``."""
    digits = report.digits
    return [
        [
            row.recipe,
            row.pattern or NONE,
            NONE if row.mean is None else f"{row.mean:.{digits}f}",
            NONE if row.sd is None else f"{row.sd:.{digits}f}",
            NONE
            if row.pattern is None or row.to_dense is None
            else f"{row.to_dense:+.{digits}f}",
            _seeds(row),
            _switches(row.switch_steps),
        ]
        for row in report.rows
    ]


def pair_cells(report: CompareReport) -> list[list[str]]:
    """The rows of the table of pairs, in the order of ``PAIR_COLUMNS``."""
    digits = report.digits
    return [
        [
            pair.pattern,
            pair.better,
            pair.than,
            f"{pair.difference:+.{digits}f}",
            NONE
            if pair.interval is None
            else " to ".join(f"{end:+.{digits}f}" for end in pair.interval),
            NONE if pair.interval is None else "yes" if pair.clear else "no",
        ]
        for pair in report.pairs
    ]


def _switches(steps: Sequence[int]) -> str:
    """The steps, or of many the first and the last."""
    if len(steps) > FEW:
        return f"{min(steps)} to {max(steps)}"
    return ", ".join(map(str, steps)) or NONE


def _seeds(row: ComparedRow) -> str:
    every = len(row.seeds) + len(row.failed)
    return f"{len(row.seeds)} of {every}" if row.failed else str(every)


def markdown(page: ComparePage) -> str:
    """The page as Markdown, without its drawings."""
    report = page.report
    lines = ["# Recipes compared", "", f"The metric is {direction(report)}.", ""]
    lines += _table(COLUMNS, 2, cells(report))
    if report.failed:
        lines += ["", "Runs that do not count:", ""]
        lines += [f"- {escaped(f.run)}: {escaped(f.reason)}" for f in report.failed]
    if report.pairs:
        lines += ["", "Paired differences over the seeds that both have:", ""]
        lines += _table(PAIR_COLUMNS, 3, pair_cells(report))
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
        "Recipes compared \u00b7 step-cli train",
        page=page,
        report=page.report,
        direction=direction(page.report),
        rows=list(zip(page.report.rows, cells(page.report), strict=True)),
        pairs=list(zip(page.report.pairs, pair_cells(page.report), strict=True)),
        columns=COLUMNS,
        pair_columns=PAIR_COLUMNS,
        **{
            name: inline(svg, inks, label) if svg else ""
            for name, (label, svg) in drawings.items()
        },
    )
