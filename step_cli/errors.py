"""Errors a user can cause or mend, each with the exit code of the command."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class StepError(Exception):
    """Something the user can mend; shown as one line, never as a traceback.

    Args:
        message: What was found and what to do.
        file: The file at fault, if there is one.
        tensor: The tensor at fault, if there is one.
    """

    exit_code: ClassVar[int]

    def __init__(
        self, message: str, *, file: object = None, tensor: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else str(file)
        self.tensor = tensor


class UsageError(StepError):
    """Wrong option, config key or value."""

    exit_code = 2


class NothingSelectedError(StepError):
    """No tensor was selected, or all selected ones were skipped."""

    exit_code = 3


class InputError(StepError):
    """An input is unreadable, corrupt, unsafe or unsupported."""

    exit_code = 4


class OutputError(StepError):
    """An output could not be written."""

    exit_code = 5


class MissingError(StepError):
    """A library, backend or device this machine lacks."""

    exit_code = 6


class NonFiniteError(StepError):
    """NaN or infinity in weights, gradients or loss."""

    exit_code = 7


class StoppedError(BaseException):
    """Stopped on request; no handler of ordinary errors may swallow it.

    Args:
        message: What was stopped, and how to go on.
        exit_code: 75, or 130 after Ctrl-C.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code or STOPPED


BUG = 70  # exit code of an error nobody foresaw
STOPPED = 75  # exit code after SIGTERM
INTERRUPTED = 130  # exit code after Ctrl-C


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest known one, or all."""
    names = list(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}"
    return f"; use {', '.join(map(repr, names))}"


# What to do where there is no temporary directory.
SET_TMPDIR = "set TMPDIR to a directory that can be written to"

# The extra that brings each library not every command needs.
EXTRA_OF = {
    "torch": "train",
    "matplotlib": "train",
    "jinja2": "train",
    "onnxscript": "export",
    "onnxruntime": "export",
    "transformers": "hf",
    "datasets": "hf",
    "pyarrow": "hf",
    "PIL": "train",
    "sklearn": "samples",
    "tensorboard": "track",
}
