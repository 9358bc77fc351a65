"""The report of ``autoswitch-profile``."""

from typing import ClassVar

from step_cli.reports.report import Part, Report


class CriterionReport(Part):
    """Where one criterion would switch."""

    name: str
    switch_step: int | None
    reason: str
    clipped: bool
    raw_step: int | None
    post_switch_change: float | None
    threshold: float | None
    value: float | None


class AutoswitchProfileReport(Report):
    """Where each criterion would switch, on one recorded dense run."""

    schema_id: ClassVar[str] = "step-cli/autoswitch-profile/1"

    steps: int
    beta2: float
    eps: float
    window: int
    t_min: int
    t_max: int
    criteria: list[CriterionReport]
    recommended: str | None
    advice: list[str]
