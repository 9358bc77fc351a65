"""Errors a user can cause or mend, each with the exit code of the command."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def naming(
    *,
    file: object = None,
    tensor: str | None = None,
    kind: type[StepError] = StepError,
) -> Iterator[None]:
    """Name the file and tensor in errors of a kind that are raised inside without."""
    try:
        yield
    except kind as error:
        if error.file is None and file is not None:
            error.file = str(file)
        error.tensor = error.tensor or tensor
        raise


class UsageError(StepError):
    """Wrong option, config key or value."""

    exit_code = 2


class NotSparseError(StepError):
    """A model that does not hold the pattern it was trained for."""

    exit_code = 1


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


LISTED = 30  # known names at most that a message lists where none is near


def nearest(name: str, known: Iterable[str], most: int = 1) -> str:
    """The end of a message on an unknown name: what may have been meant.

    Args:
        name: The unknown name.
        known: The names there are.
        most: 1 for the nearest name, else all if they are few. More for that many of
            the nearest, however far they are: for patterns over names from files.
    """
    from difflib import get_close_matches

    # Comparing is quadratic in the length: hostile files have long names, and many.
    names = [one for one in known if len(one) <= 200][:2000]
    close = get_close_matches(name[:200], names, most, 0.5 if most == 1 else 0.0)
    if most > 1:
        return f"; nearest: {', '.join(close)}" if close else ""
    if close:
        return f"; did you mean {close[0]}"
    return f"; use {', '.join(names)}" if 0 < len(names) <= LISTED else ""


SHOWN = 5  # names at most that a message lists of any number


def few(names: Sequence[str], between: str = ", ") -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + more


def exclude_it(names: Sequence[str]) -> str:
    """What to do with a tensor that cannot be pruned, or with many alike.

    Args:
        names: Of one or several tensors. Numbers between dots, of blocks and experts,
            are taken together.
    """
    if len(names) == 1:
        return "--exclude it"
    alike = list(
        dict.fromkeys(re.sub(r"(?:(?<=\.)|^)\d+(?=\.)", "*", name) for name in names)
    )
    options = few([f"--exclude '{name}'" for name in alike], " ")
    return f"exclude all {len(names)} such tensors: {options}"


# What to do where there is no temporary directory.
SET_TMPDIR = "set TMPDIR to a directory that can be written to"

# The extra that brings each library not every command needs.
EXTRA_OF = {
    "torch": "train",
    "matplotlib": "train",
    "jinja2": "train",
    "tomli_w": "train",
    "onnxscript": "export",
    "onnxruntime": "export",
    "transformers": "hf",
    "datasets": "hf",
    "pyarrow": "hf",
    "PIL": "train",
    "scipy": "train",
    "sklearn": "samples",
    "tensorboard": "track",
}
