"""``comparison.json``, ``comparison.md`` and ``comparison.html``.

They hold nothing of time, machine or place, so that a comparison that was stopped in
between ends with the same bytes.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from step_cli.commands.compare.outcome import Outcome
from step_cli.commands.compare.report import report_on
from step_cli.commands.compare.runs import Run
from step_cli.commands.compare.statistics import mean_interval
from step_cli.config.train import TrainConfig
from step_cli.plots.compare_plot import MeanPoint, SeedCurve, draw_curves, draw_means
from step_cli.plots.drawing import INKS
from step_cli.render.compare_page import ComparePage, html, markdown
from step_cli.reports import CompareReport
from step_cli.training.records import save_text

HERE = "."  # the directory of the files


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
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    points = [(each["step"], each[metric]) for each in records if metric in each]
    return SeedCurve(
        outcome.run.recipe,
        outcome.run.pattern,
        [step for step, _ in points],
        [value for _, value in points],
        outcome.switch_step,
    )


def _facts(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    config = runs[0].config
    train = config.train
    yield "model", _short(config.model.source)
    if config.model.weights:
        yield "start weights", _short(config.model.weights)
    yield "data", _short(config.data.source)
    yield (
        "steps",
        f"{train.steps}, of {train.batch_size * train.grad_accumulation} samples",
    )
    yield "optimizer", f"{train.optimizer}, {_rate(config)}"
    yield "seeds", ", ".join(map(str, dict.fromkeys(run.seed for run in runs)))
    yield "runs", str(len(runs))


def _short(source: str) -> str:
    """The last part of a path, as what is before it tells of the machine."""
    return source.rsplit("/", maxsplit=1)[-1]


def _rate(config: TrainConfig) -> str:
    train = config.train
    words = f"lr {train.lr:g} {train.schedule}"
    words += f", warm-up {train.warmup_steps} steps" if train.warmup_steps else ""
    if train.optimizer == "sgd":
        return f"{words}, momentum {train.momentum:g}"
    return f"{words}, betas {train.betas[0]:g} and {train.betas[1]:g}"


def _options(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """What each recipe took, where that is not its default."""
    for run in {run.recipe: run for run in reversed(runs)}.values():
        taken: dict[str, Any] = dict(run.config.sparsity.options)
        if run.config.switch.step is not None:
            taken["switch.step"] = run.config.switch.step
        if taken:
            yield run.recipe, ", ".join(f"{k} = {v}" for k, v in sorted(taken.items()))
