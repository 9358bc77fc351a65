"""``variance.jsonl``: what each step did to Adam's variance, one line a step.

A first line may say with which settings it was recorded. Needs no torch.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from step_cli.core.autoswitch import VarianceSample
from step_cli.errors import InputError, NonFiniteError

SCHEMA = "step-cli/variance/1"
# Sums of a window of such values, and exp of the logarithm, are still finite.
LARGEST = dict.fromkeys(("v_l1", "v_l2", "dv_l1"), 1e290) | {
    "dv_log": 700.0,
    "step": 2**62,
    "d": 2**62,
}
FIELDS = ("step", "v_l1", "v_l2", "dv_l1", "dv_log", "d")


@dataclass(frozen=True)
class VarianceHeader:
    """The settings of a recording; None where it does not say.

    Attributes:
        beta2: Adam's beta2.
        eps: Adam's eps.
        steps: Steps the training was to have, which fractions refer to.
    """

    beta2: float | None = None
    eps: float | None = None
    steps: int | None = None


def header_line(header: VarianceHeader) -> str:
    """The first line of a recording."""
    return json.dumps({"schema": SCHEMA, **asdict(header)}) + "\n"


def sample_line(sample: VarianceSample) -> str:
    """The line of one step."""
    return json.dumps({name: getattr(sample, name) for name in FIELDS}) + "\n"


def read_header(path: Path) -> VarianceHeader:
    """The settings that the first line tells, if it is a header.

    Raises:
        InputError: The file cannot be read, or was written by a newer step-cli.
    """
    if path.exists() and not path.is_file():
        raise InputError("not a regular file", file=path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = _parse(path, 1, file.readline())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(_reason(error), file=path) from None
    if first is None or "schema" not in first:
        return VarianceHeader()
    if first["schema"] != SCHEMA:
        raise InputError(
            f"line 1: schema {first['schema']!r}, expected {SCHEMA!r}: written by a "
            "newer step-cli, or no variance recording",
            file=path,
        )
    beta2, eps, steps = (first.get(key) for key in ("beta2", "eps", "steps"))
    given = [value for value in (beta2, eps, steps) if value is not None]
    numbers = all(_is_number(value) and 0 < value < 2**62 for value in given)
    if not numbers or (beta2 is not None and not 0 < beta2 < 1):
        raise InputError("line 1: beta2, eps and steps are positive numbers", file=path)
    return VarianceHeader(beta2, eps, None if steps is None else int(steps))


def read_samples(path: Path) -> Iterator[VarianceSample]:
    """The samples in order, one at a time; a torn last line is left out.

    Raises:
        InputError: A line is not a sample, or the steps do not rise.
        NonFiniteError: A value is NaN or infinite.
    """
    last = 0
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            for number, line in enumerate(file, start=1):
                record = _parse(path, number, line)
                if record is None or (number == 1 and "schema" in record):
                    continue
                sample = _sample(path, number, record)
                if sample.step <= last:
                    raise InputError(
                        f"line {number}: step {sample.step} after step {last}, steps "
                        "must rise",
                        file=path,
                    )
                last = sample.step
                yield sample
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(_reason(error), file=path) from None


def _parse(path: Path, number: int, line: str) -> dict[str, Any] | None:
    """The object of a line; None for a last line that a crash has torn."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        if not line.endswith("\n"):
            return None
        raise InputError(f"line {number}: not JSON", file=path) from None
    if not isinstance(record, dict):
        raise InputError(f"line {number}: not a JSON object", file=path)
    return record


def _sample(path: Path, number: int, record: dict[str, Any]) -> VarianceSample:
    missing = [name for name in FIELDS if name not in record]
    if missing:
        raise InputError(f"line {number}: {', '.join(missing)} missing", file=path)
    values = {name: record[name] for name in FIELDS}
    for name, value in values.items():
        if name == "dv_log" and value is None:
            continue
        if not _is_number(value):
            raise InputError(f"line {number}: {name} is not a number", file=path)
        if not abs(value) < LARGEST[name]:  # NaN too
            raise NonFiniteError(
                f"line {number}: {name} is {value!r:.30}, not finite or beyond all "
                "bounds",
                file=path,
            )
        if value < 0 and name != "dv_log":
            raise InputError(f"line {number}: {name} is negative", file=path)
    whole = isinstance(values["step"], int) and isinstance(values["d"], int)
    if not whole or values["d"] < 1:
        raise InputError(f"line {number}: step and d are whole numbers", file=path)
    return VarianceSample(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return (error.strerror or "cannot be read").lower()
    return "not UTF-8 text"
