"""What an exception means to the user: an exit code and one line."""

from collections.abc import Sequence

import typer

from step_cli.cli.global_options import command_of
from step_cli.errors import (
    BUG,
    EXTRA_OF,
    INTERRUPTED,
    SET_TMPDIR,
    StepError,
    StoppedError,
    nearest,
)
from step_cli.reports import ErrorDetail


def detail_of(
    error: BaseException, argv: Sequence[str], commands: Sequence[str]
) -> ErrorDetail:
    """The exit code of an exception and its one line.

    Args:
        error: What was raised.
        argv: The words of the command line.
        commands: Those there are.
    """
    if isinstance(error, StepError):
        return ErrorDetail.of(error)
    if isinstance(error, StoppedError):
        return ErrorDetail(exit=error.exit_code, message=str(error))
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return ErrorDetail(exit=INTERRUPTED, message="interrupted, nothing written")
    if isinstance(error, typer.TyperException):
        return ErrorDetail(exit=2, message=_usage_message(error, argv, commands))
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF:
        extra = f"pip install 'step-cli[{EXTRA_OF[error.name]}]'"
        return ErrorDetail(exit=6, message=f"{error.name} is not installed: {extra}")
    if isinstance(error, OSError) and error.filename is None:
        reason = (error.strerror or type(error).__name__).lower()
        if "temporary directory" in reason:  # looked for by a library
            reason += f"; {SET_TMPDIR}"
        return ErrorDetail(exit=5, message=f"cannot write: {reason}")
    if isinstance(error, MemoryError):
        needed = str(error).partition(" with shape")[0]  # Unable to allocate 512. MiB
        message = "not enough memory on this machine" + (needed and f": {needed}")
        return ErrorDetail(exit=6, message=message)
    return ErrorDetail(
        exit=BUG,
        message=f"a bug in step-cli: {type(error).__name__}: {error}; "
        "run again with --debug and report the traceback",
    )


def _usage_message(
    error: typer.TyperException, argv: Sequence[str], commands: Sequence[str]
) -> str:
    message = str(getattr(error, "message", "") or error).rstrip(".")
    if isinstance(getattr(error, "option_name", None), str) and "No such" in message:
        name = str(error.option_name)  # type: ignore[attr-defined]
        known = getattr(error, "possibilities", None) or []
        return f"no such option {name}{nearest(name, known)}; see --help"
    if "No such command" in message:
        name = command_of(argv)
        return f"no such command {name!r}{nearest(name, commands)}; see --help"
    return f"{message[:1].lower()}{message[1:] or 'missing command'}; see --help"
