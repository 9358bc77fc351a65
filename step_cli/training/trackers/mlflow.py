"""MLflow, in the run directory unless ``MLFLOW_TRACKING_URI`` names a store."""

import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from step_cli.formats.quiet import quiet
from step_cli.training.trackers.tracker import PROJECT, Backend, Facts, TrackedRun

STORE = "mlflow.db"  # in the run directory: SQLite
ARTIFACTS = "mlflow-artifacts"  # beside it, made only if somebody adds an artifact
LONGEST = 5000  # characters of a value, of 6000 that MLflow takes
MOST = 100  # values in one call


class MLflow(Backend):
    """One run, with the configuration as parameters."""

    name = "mlflow"
    title = "MLflow"
    package = "mlflow"

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ""

    @override
    def load(self) -> None:
        # It counts its uses over the network unless this is set.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        with quiet():
            importlib.import_module("mlflow")

    @override
    def begin(self, run: TrackedRun, known_as: str | None) -> str:
        mlflow = importlib.import_module("mlflow")
        uri = _given_store() or _own_store(run.directory)
        with quiet():  # it tells each change to the tables of a new store
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            if known_as is not None:
                self._client.update_run(known_as, status="RUNNING")
                self._id = known_as
                return self._id
            name = os.environ.get("MLFLOW_RUN_NAME", run.directory.name)
            made = self._client.create_run(self._experiment(run), run_name=name)
        self._id = str(made.info.run_id)
        self._set_parameters(run.flat_config())
        return self._id

    def _experiment(self, run: TrackedRun) -> str:
        given = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if given:
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = None
        if _given_store() is None:
            place = (run.directory / ARTIFACTS).absolute().as_uri()
        return str(self._client.create_experiment(name, artifact_location=place))

    def _set_parameters(self, values: Mapping[str, Any]) -> None:
        entities = importlib.import_module("mlflow.entities")
        given = [entities.Param(k, f"{v}"[:LONGEST]) for k, v in values.items()]
        for start in range(0, len(given), MOST):
            part = given[start : start + MOST]
            self._client.log_batch(self._id, params=part)

    @override
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        entities = importlib.import_module("mlflow.entities")
        now_ms = int(time.time() * 1000)
        metrics = [
            entities.Metric(tag, float(value), now_ms, step)
            for tag, value in numbers.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    @override
    def say(self, facts: Facts, step: int) -> None:
        numbers = {k: v for k, v in facts.items() if not isinstance(v, str)}
        self.log(numbers, step)
        for tag, value in facts.items():
            if isinstance(value, str):
                self._client.set_tag(self._id, tag, value)

    @override
    def end(self, *, finished: bool) -> None:
        status = "FINISHED" if finished else "KILLED"
        self._client.set_terminated(self._id, status=status)


def _given_store() -> str | None:
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def _own_store(directory: Path) -> str:
    return f"sqlite:///{(directory / STORE).absolute()}"
