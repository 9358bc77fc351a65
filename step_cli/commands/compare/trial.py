"""Whether runs can be trained, found out before the first step; and their memory."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from step_cli.commands.compare.runs import Run
from step_cli.commands.foresight import foresee
from step_cli.data.batch import Dataset
from step_cli.errors import StepError
from step_cli.render.status_line import working_on
from step_cli.training.distributed import Processes
from step_cli.training.memory import translate_memory_errors
from step_cli.training.run_directory import refuse_other_data
from step_cli.training.setup import set_up, start_of
from step_cli.training.weights_record import (
    START,
    TEACHER,
    refuse_other_start,
    refuse_other_teacher,
)


def try_all(
    runs: Sequence[Run],
    data: Dataset,
    processes: Processes,
    begun: Mapping[Path, Run] | None = None,
) -> None:
    """Find out before the first step whether each recipe and pattern can be trained.

    Args:
        runs: Those that are left.
        data: Of all runs.
        processes: The processes that train together.
        begun: All runs that were begun, finished ones too, by their directories.

    Raises:
        StepError: One cannot, or what was begun had other data, other weights to begin
            with or another teacher.
    """
    begun = begun or {}
    with working_on("looking at the data of runs that were begun"):
        for path in begun:
            refuse_other_data(path, data)
    recorded = [path for path in begun if (path / START).exists()]
    for path in recorded[:1]:  # the others began as it did
        with translate_memory_errors(begun[path].config.train):
            refuse_other_start(path, start_of(begun[path].config))
    taught = [path for path in begun if (path / TEACHER).exists()]
    told: set[str | None] = set()
    foreseen: set[str] = set()
    forget()
    for run in {run.kind: run for run in runs}.values():
        with (
            working_on(f"trying {run.name}"),
            naming_run(run),
            translate_memory_errors(run.config.train),
        ):
            quiet = run.pattern in told
            setup = set_up(
                run.config, processes, record=True, data=data, trial=True, quiet=quiet
            )
            if setup.teacher is not None:
                for path in taught:
                    refuse_other_teacher(path, setup.teacher.path, setup.teacher.sha256)
        told.add(run.pattern)
        if run.recipe not in foreseen:
            foresee(run.config)
        foreseen.add(run.recipe)
        del setup
        forget()


@contextmanager
def naming_run(run: Run) -> Iterator[None]:
    """Name the recipe and its pattern in errors that are raised inside."""
    try:
        yield
    except StepError as error:
        at = "" if run.pattern is None else f" at {run.pattern}"
        error.message = f"{run.recipe}{at}: {error.message}"
        raise


@contextmanager
def all_looked_at_later() -> Iterator[None]:
    """Undo in the end that `forget` leaves objects out of the collection."""
    try:
        yield
    finally:
        gc.unfreeze()


def forget(*, compiled: bool = False) -> None:
    """Give back the memory of a run: models and optimizers refer to each other.

    What is left is not looked at again: most of it are the modules of torch.
    """
    gc.collect()
    gc.freeze()
    if compiled:
        torch.compiler.reset()
