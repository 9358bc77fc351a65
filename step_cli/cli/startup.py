"""What makes --help and verify-nm start fast: most of a short run is its start.

Together they save about 0.1 s; `tests/test_lazy_imports.py` holds what is not imported.
"""

import copy
import gc
import os
from collections.abc import Sequence

import typer
from typer.models import CommandInfo


def prepare(command: str) -> None:
    """Leave out what a process this short has no use for.

    Garbage is not collected until here, as nothing becomes garbage while modules are
    imported (`step_cli.__main__`); for a check, which is short, it never is.
    """
    if command != "verify-nm":
        gc.enable()
        return
    gc.disable()
    # Threads for matrix products, and a search for plugins.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def only(app: typer.Typer, argv: Sequence[str]) -> typer.Typer:
    """The app with the given command alone, as Typer builds every one it has."""
    given = [info for info in app.registered_commands if [name_of(info)] == argv[:1]]
    if not given:
        return app
    alone = copy.copy(app)
    alone.registered_commands = given
    return alone


def name_of(command: CommandInfo) -> str:
    """A command as a user types it."""
    assert command.callback is not None
    return command.callback.__name__.replace("_", "-")


def end() -> None:
    """Spare Python the search for garbage before it ends: 20 ms."""
    gc.freeze()
