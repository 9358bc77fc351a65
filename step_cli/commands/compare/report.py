"""The report of a comparison from the outcomes of its runs."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from step_cli.commands.compare.outcome import Outcome
from step_cli.commands.compare.runs import DENSE
from step_cli.commands.compare.statistics import apart, mean, paired_difference, sd
from step_cli.reports import ComparedPair, ComparedRow, CompareReport, FailedRun

ACCURACY, LOSS = "eval_accuracy", "eval_loss"
PERPLEXITY = "eval_perplexity"  # of a model that predicts tokens


def report_on(outcomes: Sequence[Outcome], run_dir: str) -> CompareReport:
    """The report.

    Args:
        outcomes: Of all runs, seed by seed.
        run_dir: How the report is to name the directory.
    """
    metric = metric_of(outcomes)
    kinds = dict.fromkeys(outcome.run.kind for outcome in outcomes)
    groups = [[o for o in outcomes if o.run.kind == kind] for kind in kinds]
    dense = next((_mean(g, metric) for g in groups if g[0].run.recipe == DENSE), None)
    rows = [_row(group, metric, dense) for group in groups]
    return CompareReport(
        ok=not any(row.failed for row in rows),
        metric=metric,
        higher_is_better=metric != LOSS,
        rows=rows,
        pairs=list(_pairs(rows, higher_is_better=metric != LOSS)),
        run_dir=run_dir,
    )


def metric_of(outcomes: Sequence[Outcome]) -> str:
    """Accuracy of a model that predicts classes; else, of tokens too, the loss."""
    counted = [outcome.metrics for outcome in outcomes if outcome.reason is None]
    classes = all(ACCURACY in m and PERPLEXITY not in m for m in counted)
    return ACCURACY if counted and classes else LOSS


def _mean(group: Sequence[Outcome], metric: str) -> float | None:
    return mean([o.metrics[metric] for o in group if o.reason is None])


def _row(group: Sequence[Outcome], metric: str, dense: float | None) -> ComparedRow:
    counted = [outcome for outcome in group if outcome.reason is None]
    values = [outcome.metrics[metric] for outcome in counted]
    middle, steps = mean(values), [outcome.switch_step for outcome in counted]
    to_dense = None if middle is None or dense is None else apart(middle, dense)
    return ComparedRow(
        recipe=group[0].run.recipe,
        pattern=group[0].run.pattern,
        seeds=[outcome.run.seed for outcome in counted],
        mean=middle,
        sd=sd(values),
        to_dense=to_dense,
        switch_steps=[step for step in steps if step is not None],
        runs=[outcome.run.name for outcome in counted],
        values=values,
        failed=[
            FailedRun(run=o.run.name, seed=o.run.seed, reason=o.reason)
            for o in group
            if o.reason is not None
        ],
    )


def _pairs(
    rows: Sequence[ComparedRow], *, higher_is_better: bool
) -> Iterator[ComparedPair]:
    """Each two rows of one pattern; dense is a row of every pattern."""
    for pattern in dict.fromkeys(row.pattern for row in rows if row.pattern):
        members = [row for row in rows if row.pattern in (None, pattern)]
        for one, other in combinations(members, 2):
            pair = _pair(one, other, pattern, higher_is_better=higher_is_better)
            if pair is not None:
                yield pair


def _pair(
    one: ComparedRow, other: ComparedRow, pattern: str, *, higher_is_better: bool
) -> ComparedPair | None:
    """None where no seed counts in both; of equal ones the first is named better."""
    first, second = (
        dict(zip(row.seeds, row.values, strict=True)) for row in (one, other)
    )
    found = paired_difference(first, second)
    if found is None:
        return None
    better, than = one, other
    if found.mean != 0 and (found.mean > 0) != higher_is_better:
        better, than = other, one
        found = paired_difference(second, first)
        assert found is not None
    return ComparedPair(
        better=better.recipe,
        than=than.recipe,
        pattern=pattern,
        difference=found.mean,
        interval=found.interval,
        clear=found.clear,
    )
