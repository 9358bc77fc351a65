"""A tracker is told what a run does; what goes wrong there never ends the run."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from step_cli.errors import MissingError, OutputError, StepError
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.reports import TrainReport
from step_cli.training.callbacks import Callback, switch_numbers, tag_of

logger = logging.getLogger(__name__)

PROJECT = "step-cli"  # where the user's settings of a tracker name none
Facts = Mapping[str, float | str]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run at its start.

    Attributes:
        directory: Of the run; its name is that of the run.
        config: The resolved configuration, by section and key.
        after: The step it goes on after; 0 for a new run.
    """

    directory: Path
    config: Mapping[str, Mapping[str, Any]]
    after: int = 0

    def flat_config(self) -> dict[str, Any]:
        """Every value of the configuration by ``section.key``."""
        return {
            f"{section}.{key}": value
            for section, values in self.config.items()
            for key, value in values.items()
        }


class Backend(ABC):
    """One tracker, as its own library wants to be called; any method may raise.

    Attributes:
        name: In ``train.trackers``.
        title: For people.
        package: What pip installs.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    package: ClassVar[str]

    @abstractmethod
    def load(self) -> None:
        """Import the library.

        Raises:
            ImportError: It is not installed, or not whole.
        """

    @abstractmethod
    def begin(self, run: TrackedRun, known_as: str | None) -> str | None:
        """Begin a run there, or go on with one.

        Args:
            run: What is to be tracked.
            known_as: The id that an earlier part of the run was given.

        Returns:
            Its id, where it can be gone on with.
        """

    @abstractmethod
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers of a step."""

    @abstractmethod
    def say(self, facts: Facts, step: int) -> None:
        """Record what holds for the whole run, and is known since a step."""

    def switched(self, step: int, reason: str) -> None:
        """Record the switch point."""
        self.say({"switch/step": step, "switch/reason": reason}, step)

    @abstractmethod
    def end(self, *, finished: bool) -> None:
        """The run has its results, or it was stopped and may be gone on with."""


class Tracker(Callback):
    """Tells a tracker what is logged, and gives up at the first failure.

    Args:
        backend: The tracker.
        optimizer: Of the run; its switch point is recorded.
        run: What is tracked.
    """

    def __init__(
        self, backend: Backend, optimizer: SparseOptimizer, run: TrackedRun
    ) -> None:
        self._given = backend
        self._backend: Backend | None = None  # before the run begins, and after an end
        self._title, self._optimizer, self._run = backend.title, optimizer, run
        self._marked = run.after > 0 and optimizer.switch_step is not None
        self.run_id: str | None = None  # None where it is not told anything

    def begin(self, known_as: str | None, *, required: bool) -> None:
        """Begin the run there.

        Args:
            known_as: The id of an earlier part of the run.
            required: Raise what goes wrong.

        Raises:
            MissingError: A part of the library is not installed.
            OutputError: The tracker did not begin the run.
        """
        try:
            self.run_id = self._given.begin(self._run, known_as)
        except Exception as error:
            if required:
                raise _refusal(self._given, error) from error
            self._give_up(error)
        else:
            self._backend = self._given

    @override
    def on_log(self, values: Mapping[str, Any]) -> None:
        step = values["step"]
        numbers = {
            tag_of(key): float(value)
            for key, value in values.items()
            if key != "step" and isinstance(value, int | float)
        } | switch_numbers(self._optimizer)
        self._mark_switch()
        self._tell(lambda backend: backend.log(numbers, step))

    def on_report(self, report: TrainReport) -> None:
        """The run has ended with these results."""
        facts = facts_of(report)
        self._mark_switch()
        self._tell(lambda backend: backend.say(facts, report.steps))

    def end(self, *, finished: bool) -> None:
        """The run has its results, or was stopped."""
        self._tell(lambda backend: backend.end(finished=finished))
        self._backend = None

    def _mark_switch(self) -> None:
        step, reason = self._optimizer.switch_step, self._optimizer.switch_reason
        if step is not None and reason is not None and not self._marked:
            self._marked = True
            self._tell(lambda backend: backend.switched(step, reason))

    def _tell(self, act: Callable[[Backend], None]) -> None:
        if self._backend is not None:
            try:
                act(self._backend)
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._backend = None
        logger.warning("no more %s events: %s", self._title, _reason(error))


def facts_of(report: TrainReport) -> dict[str, float | str]:
    """The numbers of a report by the name that trackers show them under."""
    facts: dict[str, float | str] = {"final/steps": report.steps}
    facts |= {f"final/{key}": value for key, value in report.metrics.items()}
    for key, value in (report.dense_metrics or {}).items():
        facts[f"final/dense_{key}"] = value
    facts["final/density"] = report.density
    if report.overall_density is not None:
        facts["final/overall_density"] = report.overall_density
    if report.distill is not None:
        facts["final/task_loss"] = report.distill.task_loss
        facts["final/distill_loss"] = report.distill.distill_loss
    return facts


def not_installed(backend: Backend, error: ImportError) -> MissingError:
    """What to install for a tracker whose library cannot be imported."""
    missing = getattr(error, "name", None) or backend.name
    found = "is not installed" if missing == backend.name else f"lacks {missing}"
    return MissingError(
        f"train.trackers: {backend.name} {found}: pip install {backend.package}, or "
        f"leave {backend.name} out of train.trackers"
    )


def _refusal(backend: Backend, error: Exception) -> StepError:
    if isinstance(error, ImportError):
        return not_installed(backend, error)
    return OutputError(
        f"train.trackers: {backend.title} cannot begin a run: {_reason(error)}; mend "
        f"its settings, or leave {backend.name} out of train.trackers"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    said = str(error).strip() or type(error).__name__
    return f"{said.splitlines()[0]:.200}"
