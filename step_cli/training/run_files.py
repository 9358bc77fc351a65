"""The files of a run directory: records while it runs, results at its end."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from typing_extensions import override

from step_cli.autoswitch.autoswitch import VarianceSample
from step_cli.autoswitch.variance_log import (
    VarianceHeader,
    header_line,
    layers_due,
    sample_line,
)
from step_cli.errors import OutputError
from step_cli.formats.files.staged import staged


class LineRecord:
    """A file of JSON lines, each flushed when it is written.

    Args:
        path: The file.
        header: Its first line, or nothing.
        after: The step to go on after; what was recorded later is cut off.

    Raises:
        OutputError: It cannot be written; also by :meth:`write`.
    """

    def __init__(self, path: Path, header: str = "", after: int = 0) -> None:
        save_text(path, header + _up_to(path, after))
        try:
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError((error.strerror or "").lower(), file=path) from None

    def write(self, line: str) -> None:
        """Record one step; ``line`` ends with its line end."""
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{(error.strerror or 'cannot write').lower()}", file=self._file.name
            ) from None

    def close(self) -> None:
        """No more is recorded."""
        self._file.close()


class Unrecorded:
    """What a process does that leaves recording to another: it measures as that does.

    Args:
        header: First line of ``variance.jsonl``.
    """

    def __init__(self, header: VarianceHeader) -> None:
        self._header = header

    def wants_layers(self, step: int) -> bool:
        """Whether ``step`` is to be recorded layer by layer too."""
        return layers_due(self._header, step)

    def metrics(self, values: dict[str, Any]) -> None:
        """Record one logged step."""

    def variance(
        self, sample: VarianceSample, layers: Sequence[tuple[float, float]] = ()
    ) -> None:
        """Record one step in which the variance was updated."""


class Records(Unrecorded):
    """``metrics.jsonl`` and ``variance.jsonl``, one flushed line at a time.

    Args:
        run_dir: Where they are.
        header: First line of ``variance.jsonl``.
        after: The step to go on after; what was recorded later is cut off.
    """

    def __init__(self, run_dir: Path, header: VarianceHeader, after: int = 0) -> None:
        super().__init__(header)
        self._metrics = LineRecord(run_dir / "metrics.jsonl", after=after)
        first = header_line(header)
        self._variance = LineRecord(run_dir / "variance.jsonl", first, after)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._metrics.close()
        self._variance.close()

    @override
    def metrics(self, values: dict[str, Any]) -> None:
        self._metrics.write(json.dumps(values, allow_nan=False) + "\n")

    @override
    def variance(
        self, sample: VarianceSample, layers: Sequence[tuple[float, float]] = ()
    ) -> None:
        self._variance.write(sample_line(sample, layers))


def _up_to(path: Path, step: int) -> str:
    """The whole lines of a record up to ``step``; a crash may have torn the last."""
    if not step or not path.exists():
        return ""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            if line.endswith("\n") and 0 < json.loads(line).get("step", 0) <= step:
                kept.append(line)
    return "".join(kept)


def save_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    with staged(path, force=True) as staging:
        staging.write_text(text, encoding="utf-8")
