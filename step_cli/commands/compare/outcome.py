"""How one run of a comparison stands, and what it has given: read from its files."""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from step_cli.commands.compare.runs import Run
from step_cli.commands.verify import run as verify_nm
from step_cli.config.commands import VerifyConfig
from step_cli.errors import InputError, StepError
from step_cli.formats.files.json_text import read_json
from step_cli.reports import TrainReport
from step_cli.training.checkpoints import has_checkpoint
from step_cli.training.history import read_metrics
from step_cli.training.run_directory import is_finished, refuse_other_config

REPORT_LIMIT = 64 << 20  # bytes of report.json
NEW, RESUMABLE, FINISHED = "new", "resumable", "finished"


@dataclass(frozen=True)
class Outcome:
    """What a run has given.

    Attributes:
        run: The run.
        metrics: Of held-out samples at its end.
        switch_step: None where it has none.
        reason: Why it does not count; None where it does.
    """

    run: Run
    metrics: dict[str, float] = field(default_factory=dict)
    switch_step: int | None = None
    reason: str | None = None


def outcome_of(run: Run, path: Path) -> Outcome:
    """What the finished run in ``path`` has given; weights and records are checked."""
    try:
        if (path / "metrics.jsonl").is_file():  # a curve is all that needs it
            read_metrics(path)
        given = read_json(path / "report.json", "a report", limit_bytes=REPORT_LIMIT)
        report = TrainReport.model_validate(given)
        reason = _reason(report, path)
    except StepError as error:
        return Outcome(run, reason=reason_of(error))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        return Outcome(run, reason=f"report.json: {key} is missing or wrong")
    if reason is not None:
        return Outcome(run, reason=reason)
    step = None if report.switch is None else report.switch.step
    return Outcome(run, report.metrics, step)


def _reason(report: TrainReport, path: Path) -> str | None:
    if not report.ok:
        return report.advice[0] if report.advice else "its report is not ok"
    if report.pattern is None:  # it ends dense
        return None
    checkpoint = verify_nm.run(VerifyConfig(checkpoint=[path])).checkpoints[0]
    if checkpoint.error is not None:
        return checkpoint.error.message
    if not checkpoint.ok:
        broken = sum(layer.violations for layer in checkpoint.layers)
        return f"{broken} groups of its weights break their pattern"
    return None


def reason_of(error: StepError) -> str:
    """The message without its file, as another place gives another one."""
    where = "" if error.tensor is None else f"{error.tensor}: "
    return f"{where}{error.message}"


def state_of(run: Run, path: Path) -> tuple[str, Outcome | None]:
    """How a run stands, and what it has given where it is finished and counts.

    Raises:
        InputError: It was begun with another configuration, or is no run.
    """
    if (path / "config.toml").is_file():
        refuse_other_config(run.config, path)
    elif path.is_dir() and visible(path):  # a run begins with its configuration
        raise InputError("is no run, so it is not replaced; move it away", file=path)
    # The page comes last; without it the process died while it showed the results.
    if is_finished(path) and (path / "report.html").is_file():
        outcome = outcome_of(run, path)
        if outcome.reason is None:
            return FINISHED, outcome
    return (RESUMABLE if has_checkpoint(path) else NEW), None


def visible(path: Path) -> list[Path]:
    """What lies in a directory, but for locks and what is half written."""
    return [each for each in path.iterdir() if not each.name.startswith(".")]
