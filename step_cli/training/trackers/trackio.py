"""Trackio, on this machine unless ``TRACKIO_SPACE_ID`` or ``_SERVER_URL`` is set."""

import contextlib
import importlib
import io
import uuid
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from step_cli.training.trackers.tracker import PROJECT, Backend, Facts, TrackedRun


class Trackio(Backend):
    """One run, found again by its name, so that has a few characters of its own."""

    name = "trackio"
    title = "Trackio"
    package = "trackio"

    def __init__(self) -> None:
        self._trackio: Any = None
        self._run: Any = None

    @override
    def load(self) -> None:
        importlib.import_module("trackio")

    @override
    def begin(self, run: TrackedRun, known_as: str | None) -> str:
        self._trackio = importlib.import_module("trackio")
        name = known_as or f"{run.directory.name}-{uuid.uuid4().hex[:8]}"
        with contextlib.redirect_stdout(io.StringIO()):  # the report goes to stdout
            self._run = self._trackio.init(
                project=PROJECT,
                name=name,
                resume="must" if known_as else "never",
                config={
                    section: dict(values) for section, values in run.config.items()
                },
                embed=False,
            )
        return name

    @override
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    @override
    def say(self, facts: Facts, step: int) -> None:
        self._run.log(dict(facts), step=step)

    @override
    def end(self, *, finished: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()
