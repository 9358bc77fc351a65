"""The report of ``train``."""

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from step_cli.reports.report import Part, Report


class SwitchPoint(Part):
    """The step t0 after which masks were learned, and what decided it."""

    step: int
    reason: str
    criterion: str


class StaysDense(Part):
    """A layer weight that is not N:M, and why; its share is of all layer weights."""

    name: str
    shape: list[int]
    reason: str
    share: float


class SplitFound(Part):
    """The samples of a split, and how many are of each class, where there are some."""

    samples: int
    classes: dict[str, int] | None = None


class Distilled(Part):
    """The teacher of a run, and both losses of its last step, before their weights."""

    teacher: str
    weight: float
    temperature: float
    first_step: int  # with the teacher
    task_loss: float
    distill_loss: float


class TrainReport(Report):
    """What ``train`` reached; accuracies are shares of 1, losses means per sample."""

    schema_id: ClassVar[str] = "step-cli/train/1"

    recipe: str | None  # None where a checkpoint was evaluated
    pattern: str | None
    steps: int
    switch: SwitchPoint | None
    metrics: dict[str, float]
    dense_metrics: dict[str, float] | None
    density: float
    overall_density: float | None = None  # of all layer weights, chosen or not
    stays_dense: list[StaysDense] = Field([])
    run_dir: str
    parallel: str = "none"
    processes: int = 1
    runtime: str | None = None  # what computed the metrics, if it was not PyTorch
    data: dict[str, SplitFound] = Field({})
    distill: Distilled | None = None  # None where no teacher was at work
    advice: list[str] = Field([])

    @property
    @override
    def written(self) -> str | None:
        return None if self.recipe is None else self.run_dir
