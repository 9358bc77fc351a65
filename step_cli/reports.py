"""What commands return: data that `render` shows, and `--json` dumps as it is."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field


class ErrorDetail(BaseModel):
    """One faulty input, as shown on stderr and in the JSON of a failure."""

    exit: int
    file: str | None = None
    tensor: str | None = None
    message: str


class Report(BaseModel):
    """The outcome of a command; a subclass names its schema, ``step-cli/NAME/1``."""

    model_config = ConfigDict(ser_json_inf_nan="null", protected_namespaces=())
    schema_id: ClassVar[str]

    ok: bool

    @property
    def exit_code(self) -> int:
        """0 when every check passed, 1 when one failed."""
        return 0 if self.ok else 1

    @property
    def problems(self) -> list[ErrorDetail]:
        """Faulty inputs met on the way, each shown as one ``error:`` line."""
        return []


class SwitchPoint(BaseModel):
    """The step t0 after which masks were learned, and what decided it."""

    step: int
    reason: str
    criterion: str


class TrainReport(Report):
    """What ``train`` reached; accuracies are shares of 1, losses means per sample."""

    schema_id: ClassVar[str] = "step-cli/train/1"

    recipe: str
    pattern: str | None
    steps: int
    switch: SwitchPoint | None
    metrics: dict[str, float]
    dense_metrics: dict[str, float] | None
    density: float
    run_dir: str


class CriterionReport(BaseModel):
    """Where one criterion would switch."""

    name: str
    switch_step: int | None
    reason: str
    clipped: bool
    raw_step: int | None
    post_switch_change: float | None
    threshold: float | None = Field(None, description="What the value is compared with")
    value: float | None = Field(None, description="The value at the switch point")


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
