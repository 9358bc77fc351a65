"""Text files line by line, and tables row by row: TSV, CSV, JSON lines and parquet.

Both in bounded memory, with the number of a line or row at fault. A row that cannot be
read is returned with its error, not raised, so that the reader of many can go on.

Text formats are read with ``csv`` and ``json``: the readers of pyarrow guess types,
number JSON rows from the start of a block and end at the first bad one, and
``datasets`` fills short rows with nulls and writes a copy of the file.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import reason_of

LONGEST = 64 << 20  # bytes of a line: more is no line of text
# CoLA of GLUE is the one file that has no header.
COLA = ("source", "label", "mark", "sentence")

Records = Iterator[tuple[int, list[str]]]  # of each the line it ends at, its fields


def lines_of(path: Path) -> Iterator[str]:
    r"""The lines of a UTF-8 file, without ``\n`` or ``\r\n`` and the byte order mark.

    Only ``\n`` ends a line: corpora hold other separators of Unicode inside lines, and
    line numbers of parallel files would no longer agree.

    Raises:
        InputError: The file cannot be read, or a line is not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait
            raise InputError("not a regular file", file=path)
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST):
                number += 1
                if len(raw) == LONGEST:
                    raise InputError(f"line {number} is not text: too long", file=path)
                yield _text(raw, number, path)
    except OSError as error:
        raise InputError(reason_of(error), file=path) from None


def _text(raw: bytes, number: int, path: Path) -> str:
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"line {number}, byte {error.start + 1} is not UTF-8; convert the file, "
            "for example with iconv",
            file=path,
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        place: Where it is: ``line 3``.
        values: By column.
        error: Why it has no values, if it has none.
    """

    place: str
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    def text(self, column: str) -> str:
        """The text in a column.

        Raises:
            ValueError: There is none, with the reason.
        """
        if self.error is not None:
            raise ValueError(self.error)
        if column not in self.values:
            raise ValueError(f"no column {column!r}")
        value = self.values[column]
        if not isinstance(value, str):
            raise ValueError(f"{column} is {type(value).__name__}, not text")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half a character
            raise ValueError(f"{column} is not valid Unicode") from None
        return value


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file, read by its suffix.

    Raises:
        InputError: The file cannot be read as such.
    """
    match path.suffix:
        case ".tsv":
            return _named(_tab_separated(path), path)
        case ".csv":
            return _named(_comma_separated(path), path)
        case ".jsonl" | ".json":
            return _json_lines(path)
        case ".parquet":
            return _parquet(path)
    raise InputError("is no .tsv, .csv, .jsonl or .parquet file", file=path)


def _tab_separated(path: Path) -> Records:
    """As GLUE ships them: quotes are ordinary characters, a tab always separates."""
    for number, line in enumerate(lines_of(path), 1):
        yield number, line.split("\t") if line else []


def _comma_separated(path: Path) -> Records:
    csv.field_size_limit(LONGEST)
    reader = csv.reader((line + "\n" for line in lines_of(path)), strict=True)
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise InputError(f"line {reader.line_num}: {error}", file=path) from None


def _named(records: Records, path: Path) -> Iterator[Row]:
    """Rows by the names of the first one; empty lines do not count."""
    header: tuple[str, ...] | None = None
    for number, fields in records:
        if not fields:
            continue
        if header is None:
            header = _header(tuple(fields), path)
            if header is not COLA:
                continue
        if tuple(fields) == header:  # files were joined, each with its header
            yield Row(f"line {number}", error="the header again")
        elif len(fields) == len(header):
            yield Row(f"line {number}", dict(zip(header, fields, strict=True)))
        else:
            error = f"{len(fields)} fields, the header has {len(header)}"
            yield Row(f"line {number}", error=error)


def _header(fields: tuple[str, ...], path: Path) -> tuple[str, ...]:
    if len(fields) == 4 and fields[1] in ("0", "1") and fields[2] in ("", "*"):
        return COLA
    twice = next((name for name in fields if fields.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the header names the column {twice!r} twice", file=path)
    return fields


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines_of(path), 1):
        place = f"line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = getattr(error, "msg", "a number or a nesting without end")
            yield Row(place, error=f"not JSON: {said}")
            continue
        if isinstance(values, dict):
            yield Row(place, values)
        else:
            yield Row(place, error="not a JSON object")


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet

    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", values)
    except Exception as error:  # pyarrow raises of every kind
        said = " ".join(str(error).split())
        raise InputError(
            f"cannot be read as parquet: {said[:200]}", file=path
        ) from None
