"""What a failed build means: the library's words become one error with one exit code.

The library rarely raises: it returns None, False or -1, and logs. Texts recorded from
TensorRT-RTX 1.7.1.
"""

import signal
from collections.abc import Sequence

from step_cli.errors import InputError, MissingError, StepError, UsageError

_KNOWN: tuple[tuple[str, type[StepError], str], ...] = (
    (
        "Network must have at least one output",
        InputError,
        "the model has no layers or no output; export it again",
    ),
    (
        "Failed to open file",
        InputError,
        "its external data file is missing; keep it beside the .onnx",
    ),
    ("Input file cannot be found", InputError, "no such file"),
    (
        "no optimization profile has been defined",
        UsageError,
        "an input has a dynamic size; give --min, --opt and --max",
    ),
    (
        "MIN<=OPT<=MAX",
        UsageError,
        "the shapes of an input are not in order; expected min <= opt <= max",
    ),
    (
        "is missing dimensions in profile",
        UsageError,
        "an input has no shapes; give --min, --opt and --max for it",
    ),
    (
        "Dimension mismatch for tensor",
        UsageError,
        "--min, --opt or --max does not fit the fixed sizes of the model",
    ),
    (
        "Plugin not found",
        InputError,
        "the model has an operator that this TensorRT does not know",
    ),
    (
        "HW-specific datatypes",
        InputError,
        "the target lacks a data type of the model; pick a newer "
        "--compute-capability or another --precision",
    ),
    (
        "within workspace limit",
        UsageError,
        "a layer needs more workspace; raise --workspace",
    ),
    ("out of memory", MissingError, "the builder ran out of memory"),
    (
        "factory function returned nullptr",
        MissingError,
        "TensorRT found no GPU; build on a machine that has one",
    ),
    (
        "cudaError",
        MissingError,
        "the builder needs a GPU; build on a machine that has one",
    ),
    (
        "CHECK(status == CUDA_SUCCESS)",
        MissingError,
        "the builder needs a GPU; build on a machine that has one",
    ),
)


def explain(records: Sequence[str], *, file: object) -> StepError:
    """The error behind the library's records, the first known one.

    Args:
        records: What was printed to stderr, then the ERROR records, in order.
        file: The ONNX file, as the user knows it.
    """
    text = "\n".join(records)
    for words, kind, meaning in _KNOWN:
        if words in text:
            return kind(
                f"{meaning} (the builder's log: {_line(records, words)})", file=file
            )
    said = records[-1] if records else "nothing"
    return InputError(
        f"TensorRT cannot build this model (the builder's log: {_short(said)})",
        file=file,
    )


def crashed(signal_number: int, *, file: object) -> StepError:
    """The error of a builder that died from a signal."""
    if signal_number == signal.SIGKILL:
        return MissingError(
            "the builder was killed, most likely for lack of memory; "
            "build on a machine with more",
            file=file,
        )
    return InputError(
        f"the builder crashed on this model (signal {signal_number}); "
        "run again with -v for its last words",
        file=file,
    )


def _line(records: Sequence[str], words: str) -> str:
    record = next(record for record in records if words in record)
    return _short(record)


def _short(record: str) -> str:
    line = " ".join(record.split())
    return line if len(line) <= 200 else line[:197] + "..."
