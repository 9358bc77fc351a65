"""``comparison.json``, ``comparison.md`` and ``comparison.html``.

They hold nothing of time, machine or place, so that a comparison that was stopped in
between ends with the same bytes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from step_cli.commands.compare.outcome import Outcome
from step_cli.commands.compare.report import report_on
from step_cli.commands.compare.runs import STEP, Run
from step_cli.commands.compare.statistics import mean_interval
from step_cli.config.train import TrainConfig
from step_cli.plots.compare_plot import MeanPoint, SeedCurve, draw_curves, draw_means
from step_cli.plots.drawing import INKS
from step_cli.render.compare_page import ComparePage, html, markdown
from step_cli.render.status_line import working_on
from step_cli.reports import CompareReport
from step_cli.training.history import History, read_metrics
from step_cli.training.page import last_part
from step_cli.training.records import save_text

HERE = "."  # the directory of the files


@working_on("comparing the runs")
def write_results(run_dir: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the three files, each complete or not at all.

    Raises:
        OutputError: One cannot be written.
    """
    report = report_on(outcomes, HERE)
    page = _page(run_dir, outcomes, report)
    save_text(run_dir / "comparison.md", markdown(page))
    save_text(run_dir / "comparison.html", html(page, INKS))
    save_text(run_dir / "comparison.json", report.document() + "\n")


def _page(
    run_dir: Path, outcomes: Sequence[Outcome], report: CompareReport
) -> ComparePage:
    runs = [outcome.run for outcome in outcomes]
    points = [
        MeanPoint(row, mean_interval(row.values))
        for row in report.rows
        if row.mean is not None
    ]
    curves = [
        _curve(run_dir / outcome.run.name, outcome, report.metric)
        for outcome in outcomes
        if outcome.reason is None
        and (run_dir / outcome.run.name / "metrics.jsonl").is_file()
    ]
    steps = runs[0].config.train.steps
    return ComparePage(
        report=report,
        facts=list(_facts(runs)),
        options=list(_options(runs)),
        means=draw_means(report, points) if points else "",
        curves=draw_curves(report, curves, steps) if curves else "",
    )


def _curve(path: Path, outcome: Outcome, metric: str) -> SeedCurve:
    """What a run has measured of held-out samples."""
    run = outcome.run
    history = History(run.config.train.steps, read_metrics(path), None, None)
    curve = history.curve(metric).downsampled()
    return SeedCurve(
        run.recipe, run.pattern, curve.steps, curve.values, outcome.switch_step
    )


def _facts(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    config = runs[0].config
    train = config.train
    yield "model", last_part(config.model.source)
    if config.model.weights:
        yield "start weights", last_part(config.model.weights)
    yield "data", last_part(config.data.source)
    yield (
        "steps",
        f"{train.steps}, of {train.batch_size * train.grad_accumulation} samples",
    )
    yield "optimizer", f"{train.optimizer}, {_rate(config)}"
    taught = config.distill
    if taught.counts:
        yield (
            "teacher",
            f"{last_part(taught.teacher)}, weight {taught.weight:g}, temperature "
            f"{taught.temperature:g}, from {taught.start}",
        )
    yield "seeds", ", ".join(map(str, dict.fromkeys(run.seed for run in runs)))
    yield "runs", str(len(runs))


def _rate(config: TrainConfig) -> str:
    train = config.train
    words = f"lr {train.lr:g} {train.schedule}"
    words += f", warm-up {train.warmup_steps} steps" if train.warmup_steps else ""
    if train.optimizer == "sgd":
        return f"{words}, momentum {train.momentum:g}"
    return f"{words}, betas {train.betas[0]:g} and {train.betas[1]:g}"


def _options(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """What each recipe took, where that is not its default."""
    for run in {run.recipe: run for run in runs}.values():
        taken: dict[str, Any] = dict(run.config.sparsity.options)
        switch = run.config.switch.model_dump(exclude_defaults=True)
        keys = switch if run.recipe == STEP else switch.keys() & {"step"}
        taken |= {f"switch.{key}": switch[key] for key in keys}
        if taken:
            yield run.recipe, ", ".join(f"{k} = {v}" for k, v in sorted(taken.items()))
