"""The reports of ``train --recipes``."""

import math
from typing import ClassVar

from typing_extensions import override

from step_cli.reports.report import Part, Report


class FailedRun(Part):
    """A run that does not count, and why."""

    run: str
    seed: int
    reason: str


class ComparedRow(Part):
    """A recipe at a pattern over the seeds.

    Attributes:
        pattern: None for dense runs.
        seeds: Those that count; values, switch steps and runs are in their order.
        mean: Of the values; None where no run counts.
        sd: Over n - 1; None below two seeds.
        to_dense: The mean minus that of the dense runs.
        switch_steps: Empty for recipes without a switch.
        runs: Directories, below that of the comparison.
        failed: Runs that do not count.
    """

    recipe: str
    pattern: str | None
    seeds: list[int]
    mean: float | None
    sd: float | None
    to_dense: float | None
    switch_steps: list[int]
    runs: list[str]
    values: list[float]
    failed: list[FailedRun]

    @property
    def title(self) -> str:
        """``step 2:4``, or ``dense``."""
        return self.recipe if self.pattern is None else f"{self.recipe} {self.pattern}"


class ComparedPair(Part):
    """Two recipes at a pattern, over the seeds that both have.

    Attributes:
        difference: Mean of better minus than: negative where lower is better.
        interval: 95 % interval of the difference, paired t; None below two seeds.
        clear: Whether the interval leaves out 0.
    """

    better: str
    than: str
    pattern: str
    difference: float
    interval: tuple[float, float] | None
    clear: bool


class CompareReport(Report):
    """How recipes compare; ``metric`` is the name of a metric of ``train``."""

    schema_id: ClassVar[str] = "step-cli/compare/1"

    metric: str
    higher_is_better: bool
    rows: list[ComparedRow]
    pairs: list[ComparedPair]
    run_dir: str

    @property
    def failed(self) -> list[FailedRun]:
        """The runs that do not count."""
        return [failed for row in self.rows for failed in row.failed]

    @property
    def digits(self) -> int:
        """Behind the point: four of a number near 1, more where all are small."""
        largest = max((abs(row.mean) for row in self.rows if row.mean), default=1.0)
        return max(4, 3 - math.floor(math.log10(largest)))

    @property
    def count(self) -> int:
        """How many runs there are, those that do not count too."""
        return sum(len(row.runs) + len(row.failed) for row in self.rows)

    @property
    @override
    def written(self) -> str | None:
        return self.run_dir


class RunToDo(Part):
    """A run as ``--dry-run`` lists it.

    Attributes:
        state: ``new``, ``resumable`` or ``finished``.
        steps: That are left.
        seconds: That they are likely to take.
    """

    run: str
    recipe: str
    pattern: str | None
    seed: int
    state: str
    steps: int
    seconds: float


class CompareDryRunReport(Report):
    """What a comparison would train, and how long that is likely to take."""

    schema_id: ClassVar[str] = "step-cli/compare-dry-run/1"

    runs: list[RunToDo]
    seconds: float
    run_dir: str
