"""Recordings for the tests of `autoswitch-profile`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from autoswitch.variance_streams import samples

from step_cli.autoswitch.autoswitch import VarianceSample
from step_cli.autoswitch.variance_log import VarianceHeader, header_line, sample_line


def record(
    path: Path,
    gradients: Iterable[tuple[float, ...]],
    beta2: float,
    header: bool = True,
    steps: int | None = None,
) -> Path:
    """Write what a slow Adam would record."""
    first = VarianceHeader(beta2, 1e-8, steps) if header else None
    return write(path, samples(gradients, beta2), first)


def write(
    path: Path, stream: Sequence[VarianceSample], header: VarianceHeader | None = None
) -> Path:
    """Write a recording of these samples."""
    first = "" if header is None else header_line(header)
    path.write_text(first + "".join(map(sample_line, stream)), encoding="utf-8")
    return path


def row_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The row of one criterion."""
    (row,) = [row for row in document["criteria"] if row["name"] == name]
    assert isinstance(row, dict)
    return row


def words_of(text: str) -> str:
    """What was said, however it was wrapped."""
    return " ".join(text.split())
