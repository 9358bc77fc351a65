"""Reading a ``variance.jsonl`` as a stream of columns: ten million steps in seconds.

Lines are parsed many at once. Where that finds anything out of the ordinary, the same
lines are read again one by one, which says what is wrong and where.
"""

import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from step_cli.autoswitch.sample_block import LayerSums, SampleBlock
from step_cli.autoswitch.variance_line import BEYOND, LARGEST, LineReader
from step_cli.autoswitch.variance_log import FIELDS, VarianceHeader
from step_cli.errors import InputError, StepError
from step_cli.formats.files.mapped_file import reason_of

CHUNK = 1 << 20  # bytes parsed at a time
LONGEST = 1 << 24  # bytes of a line
FLOATS = ("v_l1", "v_l2", "dv_l1")
WORDS = (b"true", b"false", b"NaN")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Recording:
    """An open recording.

    Attributes:
        path: Where it is.
        header: The settings that its first line tells.
        torn: Whether its last line was cut short, known once it has been read.

    Raises:
        InputError: It cannot be read, or its first line is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.torn = path, False
        self._lines = LineReader(path)
        self.header = VarianceHeader()
        self._start = 0  # of the first sample, in bytes
        with self._open() as file:
            self._end = os.fstat(file.fileno()).st_size  # a run may still be growing
            mark = file.read(3) == BYTE_ORDER_MARK
            file.seek(3 if mark else 0)
            first = file.readline(LONGEST)
            self._start = 3 if mark else 0
        if not first.endswith(b"\n") and self._is_torn(first):
            return
        record = self._lines.document(1, first)
        if "schema" in record:
            self.header = self._lines.header(record)
            self._lines = LineReader(path, self.header.layers)
            self._start += len(first)

    @property
    def _first_line(self) -> int:
        return 1 if self._start in (0, 3) else 2

    def count(self) -> int:
        """How many steps it holds, if all its lines are sound."""
        lines, tail = 0, b""
        with self._open() as file:
            file.seek(self._start)
            for data in self._pieces(file):
                lines += data.count(b"\n")
                tail = (tail + data)[-LONGEST:].rpartition(b"\n")[2]
        return lines + (bool(tail) and not self._is_torn(tail))

    def blocks(self) -> Iterator[SampleBlock]:
        """All samples in order, many at a time; a torn last line is left out.

        Raises:
            InputError: A line is not a sample, or the steps do not rise.
            NonFiniteError: A value is NaN or infinite.
        """
        last, number, rest = 0, self._first_line, b""
        with self._open() as file:
            file.seek(self._start)
            for data in self._pieces(file):
                lines, end, torn = (rest + data).rpartition(b"\n")
                rest = torn
                if len(rest) > LONGEST:
                    raise InputError(
                        f"line {number}: longer than {LONGEST >> 20} MiB, no recording",
                        file=self.path,
                    )
                if end:
                    block = self._block(lines + end, number, last)
                    number, last = number + len(block), int(block.step[-1])
                    yield block
        self.torn = bool(rest) and self._is_torn(rest)
        if rest and not self.torn:
            yield self._block(rest + b"\n", number, last)

    def _is_torn(self, line: bytes) -> bool:
        try:
            json.loads(line.decode())
        except (ValueError, RecursionError):
            return True
        return False

    def _block(self, data: bytes, number: int, last: int) -> SampleBlock:
        """The samples of some lines."""
        if b"\r\n" in data:
            data = data.replace(b"\r\n", b"\n")
        return self._at_once(data, number, last) or self._one_by_one(data, number, last)

    def _at_once(self, data: bytes, number: int, last: int) -> SampleBlock | None:
        """The samples of lines that are all as `train` writes them, None of others."""
        try:
            text = _objects_between_brackets(data)
            if text is None:
                return None
            records = json.loads(text)
            layers = self._layers(records, number) if b'"layer_' in data else []
            block = _columns(records, layers)
        except (
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
            StepError,
        ):
            return None
        alike = len(block) == data.count(b"\n") and _is_sound(block, last)
        return block if alike else None

    def _layers(
        self, records: Sequence[dict[str, Any]], number: int
    ) -> list[LayerSums]:
        more = (
            self._lines.layers(at, record)
            for at, record in enumerate(records, start=number)
            if len(record) > len(FIELDS)
        )
        return [each for each in more if each is not None]

    def _one_by_one(self, data: bytes, number: int, last: int) -> SampleBlock:
        samples, layers = [], []
        for at, line in enumerate(data[:-1].split(b"\n"), start=number):
            record = self._lines.document(at, line)
            samples.append(self._lines.sample(at, record))
            self._lines.rising(at, samples[-1].step, last)
            last = samples[-1].step
            sums = self._lines.layers(at, record)
            layers += [] if sums is None else [sums]
        return SampleBlock.of(samples, layers)

    def _open(self) -> BinaryIO:
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(reason_of(error), file=self.path) from None
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise InputError("not a regular file", file=self.path)
        return os.fdopen(file, "rb")

    def _pieces(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            while data := file.read(min(CHUNK, self._end - file.tell())):
                yield data
        except OSError as error:
            raise InputError(reason_of(error), file=self.path) from None


def _objects_between_brackets(data: bytes) -> str | None:
    """Whole lines as the text of one JSON list, where that says the same, else None.

    With as many braces opened as there are lines, and every line end between two of
    them, each object is one line: a line end inside a string, or an object inside
    another, would make them fewer. The caller counts them.
    """
    text = data[:-1].replace(b"}\n{", b"},{")
    lines = data.count(b"\n")
    if not text.startswith(b"{") or b"\n" in text or data.count(b"{") != lines:
        return None
    # Words that numpy would take for numbers; no key has these letters, nor has null.
    if (b"r" in text or b"a" in text) and any(word in text for word in WORDS):
        return None
    return f"[{text.decode()}]"


def _columns(
    records: Sequence[dict[str, Any]], layers: Sequence[LayerSums]
) -> SampleBlock:
    logs = _column(records, "dv_log")
    if None in logs:
        logs = [math.nan if log is None else log for log in logs]
    step, d = (_numbers(_column(records, name), "i") for name in ("step", "d"))
    floats = [_numbers(_column(records, name), "if") for name in FLOATS]
    v_l1, v_l2, dv_l1, dv_log = (
        column.astype(np.float64) for column in [*floats, _numbers(logs, "if")]
    )
    return SampleBlock(step, d, v_l1, v_l2, dv_l1, dv_log, tuple(layers))


def _column(records: Sequence[dict[str, Any]], name: str) -> list[object]:
    return list(map(itemgetter(name), records))


def _numbers(values: Sequence[object], kinds: str) -> NDArray[Any]:
    array = np.array(values)
    if array.dtype.kind not in kinds or array.ndim != 1:
        raise TypeError(array.dtype)
    return array


def _is_sound(block: SampleBlock, last: int) -> bool:
    steps = np.concatenate([[last], block.step])
    bounded = all(
        bool((column >= 0).all() and (column < LARGEST[name]).all())
        for name, column in zip(
            FLOATS, (block.v_l1, block.v_l2, block.dv_l1), strict=True
        )
    )
    return (
        bounded
        and bool((np.diff(steps) > 0).all() and steps[-1] < LARGEST["step"])
        and bool((block.d >= 1).all() and (block.d < LARGEST["d"]).all())
        and not bool((block.dv_log >= LARGEST["dv_log"]).any())  # null: NaN
        and not bool((block.dv_log <= -BEYOND).any())
    )
