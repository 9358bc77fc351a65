"""How one run of a comparison stands, and what it has given: read from its files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step_cli.commands.compare.runs import Run
from step_cli.commands.verify import run as verify_nm
from step_cli.config.commands import VerifyConfig
from step_cli.errors import StepError
from step_cli.formats.files.json_text import read_json
from step_cli.training.checkpoints import has_checkpoint
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
    """What the finished run in ``path`` has given; its weights are checked."""
    try:
        report = read_json(path / "report.json", "a report", limit_bytes=REPORT_LIMIT)
        reason = _reason(report, path)
    except StepError as error:
        return Outcome(run, reason=reason_of(error))
    if reason is not None:
        return Outcome(run, reason=reason)
    switch = report.get("switch")
    step = None if switch is None else int(switch["step"])
    return Outcome(run, dict(report["metrics"]), step)


def _reason(report: dict[str, Any], path: Path) -> str | None:
    if not report["ok"]:
        advice = report.get("advice") or ["its report is not ok"]
        return str(advice[0])
    missing = [key for key, value in report["metrics"].items() if value is None]
    if missing:
        return f"{missing[0]} is not finite"
    if report["pattern"] is None:  # it ends dense
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
        InputError: It was begun with another configuration.
    """
    if (path / "config.toml").is_file():
        refuse_other_config(run.config, path)
    # The page comes last; without it the process died while it showed the results.
    if is_finished(path) and (path / "report.html").is_file():
        outcome = outcome_of(run, path)
        if outcome.reason is None:
            return FINISHED, outcome
    return (RESUMABLE if has_checkpoint(path) else NEW), None
