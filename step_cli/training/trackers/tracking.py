"""Which trackers a run has, from before its first step until its results are there."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from step_cli import torchrun
from step_cli.config.train import TrainConfig
from step_cli.errors import InputError
from step_cli.formats.files.json_text import read_json
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.training.records import save_text
from step_cli.training.trackers.mlflow import MLflow
from step_cli.training.trackers.tensorboard import TensorBoard, tensorboard_is_installed
from step_cli.training.trackers.tracker import (
    Backend,
    TrackedRun,
    Tracker,
    not_installed,
)
from step_cli.training.trackers.trackio import Trackio
from step_cli.training.trackers.wandb import Wandb

logger = logging.getLogger(__name__)

BACKENDS: dict[str, type[Backend]] = {
    backend.name: backend for backend in (TensorBoard, Wandb, MLflow, Trackio)
}
FILE = "trackers.json"  # by what each tracker knows the run
SCHEMA = "step-cli/trackers/1"
LIMIT = 1 << 16  # bytes of the file


def require_trackers(names: Sequence[str] | None) -> None:
    """Import what ``train.trackers`` asks for, before any work is done.

    Only the first process tells trackers anything, so the others need none.

    Raises:
        MissingError: One is not installed.
    """
    for name in names or () if torchrun.rank() == 0 else ():
        backend = BACKENDS[name]()
        try:
            backend.load()
        except ImportError as error:
            raise not_installed(backend, error) from error


@contextmanager
def tracking(
    config: TrainConfig, optimizer: SparseOptimizer, run_dir: Path, after: int
) -> Iterator[list[Tracker]]:
    """The trackers of a run; they are told that it is finished, or was stopped.

    A new run is refused where a tracker that was asked for does not begin it; one that
    goes on does so without it.

    Args:
        config: Of the run; without ``train.trackers`` it is TensorBoard, if installed.
        optimizer: Its switch point is told.
        run_dir: Its directory, where `FILE` keeps by what it is known.
        after: The step it goes on after.

    Raises:
        MissingError: A part of a tracker's library is not installed.
        OutputError: A tracker did not begin the run, or `FILE` cannot be written.
    """
    asked = config.train.trackers
    names = _by_default() if asked is None else list[str](asked)
    document = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    run = TrackedRun(run_dir, document, after)
    known = _known(run_dir) if after else {}
    trackers = [Tracker(BACKENDS[name](), optimizer, run) for name in names]
    try:
        for name, tracker in zip(names, trackers, strict=True):
            required = not after and asked is not None
            tracker.begin(known.get(name), required=required)
        ids = {n: t.run_id for n, t in zip(names, trackers, strict=True) if t.run_id}
        if not known.items() >= ids.items():
            runs = {"schema": SCHEMA, "runs": known | ids}
            save_text(run_dir / FILE, json.dumps(runs, indent=2) + "\n")
        yield trackers
    except BaseException:
        for tracker in trackers:
            tracker.end(finished=False)
        raise
    for tracker in trackers:
        tracker.end(finished=True)


def _by_default() -> list[str]:
    return [TensorBoard.name] if tensorboard_is_installed() else []


def _known(run_dir: Path) -> dict[str, str]:
    """The ids of the run by tracker, as an earlier part of it has kept them."""
    path = run_dir / FILE
    if not path.exists():
        return {}
    try:
        runs = read_json(path, "the ids of trackers", limit_bytes=LIMIT).get("runs")
    except InputError as error:
        logger.warning("new runs of trackers are begun: %s: %s", path, error.message)
        return {}
    pairs = runs.items() if isinstance(runs, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}
