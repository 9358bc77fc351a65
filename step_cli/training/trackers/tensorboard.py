"""TensorBoard: event files in the run directory, and nothing else."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from step_cli.training.trackers.tracker import Backend, Facts, TrackedRun

FOLDER = "tensorboard"  # of the run directory
FLUSH_S = 10  # what a killed run may lose


def tensorboard_is_installed() -> bool:
    """Whether event files can be written here."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard(Backend):
    """Scalars, the switch point and the configuration as texts."""

    name = "tensorboard"
    title = "TensorBoard"
    package = "'step-cli[track]'"

    def __init__(self) -> None:
        self._writer: Any = None

    @override
    def load(self) -> None:
        importlib.import_module("tensorboard")

    @override
    def begin(self, run: TrackedRun, known_as: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was written after the checkpoint is dropped: the steps are taken again.
        resumed = run.after + 1 if run.after else None
        folder = str(run.directory / FOLDER)
        self._writer = SummaryWriter(folder, purge_step=resumed, flush_secs=FLUSH_S)
        if not run.after:
            lines = [f"    {key} = {value}" for key, value in run.flat_config().items()]
            self._writer.add_text("config", "\n".join(lines), 0)

    @override
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for tag, value in numbers.items():
            self._writer.add_scalar(tag, value, step)

    @override
    def say(self, facts: Facts, step: int) -> None:
        for tag, value in facts.items():
            if isinstance(value, str):
                self._writer.add_text(tag, value, step)
            else:
                self._writer.add_scalar(tag, value, step)

    @override
    def switched(self, step: int, reason: str) -> None:
        self._writer.add_text("switch", f"after step {step}: {reason}", step)

    @override
    def end(self, *, finished: bool) -> None:
        self._writer.close()
