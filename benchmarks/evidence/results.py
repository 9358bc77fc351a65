"""What the study has measured: one small file for each run."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.evidence.grid import TUNING_SEED, Run, tuning_runs
from benchmarks.evidence.tasks import TASKS, Task

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "evidence"


@dataclass(frozen=True)
class Study:
    """The results below one directory.

    Attributes:
        folder: Where they lie: `TASK/RUN.json`.
    """

    folder: Path = RESULTS
    _read: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def file(self, run: Run) -> Path:
        """Where the result of a run is, or will be."""
        return self.folder / run.task / f"{run.name}.json"

    def result(self, run: Run) -> dict[str, Any] | None:
        """The result of a run; None where it was not made, or by another config."""
        path = self.file(run)
        if path not in self._read:
            if not path.is_file():
                return None
            self._read[path] = json.loads(path.read_text(encoding="utf-8"))
        found = self._read[path]
        return found if found["config"] == TASKS[run.task].digest else None

    def value(self, run: Run) -> float | None:
        """What the run is compared by; None where there is no result."""
        result = self.result(run)
        return None if result is None else result["metrics"][TASKS[run.task].metric]

    def write(self, run: Run, result: dict[str, Any]) -> None:
        """Write a result so that a reader finds all of it or nothing."""
        path = self.file(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
        self._read.pop(path, None)

    def rate(self, task: Task, label: str) -> float | None:
        """The tuned learning rate: the best of the runs that tuned it.

        None while one of them is missing. Of equal ones the first in the order tried.
        Dense training, ASP and STEP take SR-STE's where they have none of their own.
        """
        if label in ("dense", "asp", "step") and label not in task.own_rates:
            label = "sr-ste"
        tried = [
            run
            for run in tuning_runs([task])
            if run.label == label and run.seed == TUNING_SEED
        ]
        values = [self.value(run) for run in tried]
        if None in values:
            return None
        best = max(values) if task.higher_is_better else min(values)
        return tried[values.index(best)].rate

    def missing(self, runs: Iterator[Run]) -> list[Run]:
        """Those without a result."""
        return [run for run in runs if self.result(run) is None]
