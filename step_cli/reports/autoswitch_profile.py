"""The report of ``autoswitch-profile``."""

from typing import ClassVar

from step_cli.reports.report import Part, Report


class OtherEps(Part):
    """A threshold that would have decided between the clips, and where."""

    eps: float
    switch_step: int


class Spread(Part):
    """A number over several seeds; ``std`` is that of a sample, null for one."""

    count: int
    mean: float
    std: float | None
    min: float
    max: float


class CriterionReport(Part):
    """Where one criterion would switch.

    Attributes:
        reason: ``threshold``, ``t_max``, ``fixed`` or ``never``.
        decided_by: The same, or ``t_min`` or ``window`` where these held back a test
            that passed from the start.
        clipped: t_min, the window or t_max decided.
        v_growth: Largest v of up to 1001 steps after the switch step, over v there.
        margin: How many times the value passes the threshold; below 1, it does not.
        meets_theorem_1: Whether the switch step reaches ``theorem_1_minimum``.
        other_eps: By falling threshold; empty where there is none to choose.
        switch_toml: Makes `train` switch there; null where it never does.
        raw_toml: The same without clipping.
        switch_steps: Over the seeds, where there are several.
        post_switch_changes: The same.
    """

    name: str
    switch_step: int | None
    reason: str
    decided_by: str
    clipped: bool
    raw_step: int | None
    post_switch_change: float | None
    v_growth: float | None
    threshold: float | None
    value: float | None
    margin: float | None
    meets_theorem_1: bool | None
    other_eps: list[OtherEps]
    switch_toml: str | None
    raw_toml: str | None
    switch_steps: Spread | None = None
    post_switch_changes: Spread | None = None


class LayerReport(Part):
    """When the variance of one layer was ready, as AutoSwitch judges it for all.

    Attributes:
        ready_step: By the change per coordinate against eps.
        relative_ready_step: By the change relative to v against 1 - beta2.
        change: Per coordinate, at the recommended switch point.
        relative_change: The same, relative to v.
    """

    name: str
    d: int
    ready_step: int | None
    relative_ready_step: int | None
    change: float | None
    relative_change: float | None


class SeedReport(Part):
    """What one of several seeds gave."""

    seed: int | None
    steps: int
    criteria: list[CriterionReport]


class AutoswitchProfileReport(Report):
    """Where each criterion would switch; with several seeds, that of the first.

    Attributes:
        steps: Recorded and looked at.
        total_steps: Of the training that is to switch; t_min and t_max refer to it.
        layers: The last to be ready first; empty where none were recorded.
        seeds: Empty where there is one.
        run_dir: Where a fresh run was kept.
    """

    schema_id: ClassVar[str] = "step-cli/autoswitch-profile/1"

    steps: int
    total_steps: int
    beta2: float
    eps: float
    window: int
    t_min: int
    t_max: int
    theorem_1_minimum: int
    criteria: list[CriterionReport]
    recommended: str | None
    recommendation: str
    switch_toml: str | None
    raw_toml: str | None
    layers: list[LayerReport]
    seeds: list[SeedReport]
    run_dir: str | None
    advice: list[str]
