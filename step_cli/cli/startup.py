"""What makes --help and verify-nm start fast: most of a short run is its start.

Together they save about 0.1 s; `tests/test_lazy_imports.py` holds what is not imported.
"""

import copy
import gc
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typer import Typer
    from typer.models import CommandInfo


def begin() -> None:
    """Collect no garbage while modules are imported, as nothing becomes garbage."""
    gc.disable()


def prepare(command: str) -> None:
    """Leave out what a process as short as a check has no use for."""
    if command != "verify-nm":
        gc.enable()
        return
    gc.disable()
    # Threads for matrix products, and a search for plugins.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def only(app: "Typer", argv: Sequence[str]) -> "Typer":
    """The app with the given command alone, as Typer builds every one it has."""
    given = [info for info in app.registered_commands if [name_of(info)] == argv[:1]]
    if not given:
        return app
    alone = copy.copy(app)
    alone.registered_commands = given
    return alone


def name_of(command: "CommandInfo") -> str:
    """A command as a user types it."""
    assert command.callback is not None
    return command.callback.__name__.replace("_", "-")


def end() -> None:
    """Spare Python the search for garbage before it ends: 20 ms."""
    gc.freeze()
