"""Weights & Biases, offline in the run directory unless ``WANDB_MODE`` says more."""

import importlib
import os
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from step_cli.errors import STOPPED
from step_cli.training.trackers.tracker import PROJECT, Backend, Facts, TrackedRun


class Wandb(Backend):
    """One run, whose summary holds the switch point and the final numbers."""

    name = "wandb"
    title = "Weights & Biases"
    package = "wandb"

    def __init__(self) -> None:
        self._run: Any = None

    @override
    def load(self) -> None:
        if _is_offline():  # it reports errors to its makers unless this is set
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        importlib.import_module("wandb")

    @override
    def begin(self, run: TrackedRun, known_as: str | None) -> str:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.directory.name),
            dir=os.environ.get("WANDB_DIR", str(run.directory)),
            id=known_as,
            resume="allow" if known_as and not _is_offline() else None,
            mode=None if os.environ.get("WANDB_MODE") else "offline",
            config={section: dict(values) for section, values in run.config.items()},
            reinit="create_new",  # runs of a comparison come one after the other
            # It would take over stdout, where the report goes, and stderr.
            settings=wandb.Settings(silent=True, console="off"),
        )
        return str(self._run.id)

    @override
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    @override
    def say(self, facts: Facts, step: int) -> None:
        self._run.summary.update(dict(facts))

    @override
    def end(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else STOPPED)


def _is_offline() -> bool:
    return (os.environ.get("WANDB_MODE") or "offline") not in ("online", "shared")
