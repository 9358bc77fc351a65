"""Whether runs can be trained, found out before the first step; and their memory."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from step_cli.commands.compare.runs import Run
from step_cli.data.batch import Dataset
from step_cli.errors import StepError
from step_cli.training.distributed import Processes
from step_cli.training.memory import translate_memory_errors
from step_cli.training.setup import set_up


def try_all(runs: Sequence[Run], data: Dataset, processes: Processes) -> None:
    """Find out before the first step whether each recipe and pattern can be trained.

    Raises:
        StepError: One cannot.
    """
    told: set[str | None] = set()
    forget()
    for run in {run.kind: run for run in reversed(runs)}.values():
        with _naming(run), translate_memory_errors(run.config.train):
            set_up(
                run.config,
                processes,
                record=True,
                data=data,
                trial=True,
                quiet=run.pattern in told,
            )
        told.add(run.pattern)
        forget()


@contextmanager
def _naming(run: Run) -> Iterator[None]:
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
