"""Reading a ``variance.jsonl``: one step after another, each line checked."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from step_cli.autoswitch.criterion import VarianceSample
from step_cli.autoswitch.variance_log import (
    FIELDS,
    LAYER_FIELDS,
    SCHEMA,
    LayerSums,
    RecordedLayer,
    VarianceHeader,
)
from step_cli.errors import InputError, NonFiniteError
from step_cli.formats.files.mapped_file import reason_of

LONGEST = 1 << 24  # bytes of a line
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Sums of a window of such values, and exp of the logarithm, are still finite.
BEYOND = 1e290
LARGEST = dict.fromkeys(("v_l1", "v_l2", "dv_l1", *LAYER_FIELDS), BEYOND) | {
    "dv_log": 700.0,
    "step": 2**62,
    "d": 2**62,
}
NUMBERS = frozenset({int, float})  # not bool
values_of = itemgetter(*FIELDS)


class Recording:
    """An open recording.

    Attributes:
        path: Where it is.
        header: The settings in its first line.
        torn: Whether its last line was cut short, known once it has been read.

    Raises:
        InputError: It cannot be read, or its first line is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.torn = path, False
        self.header = VarianceHeader()
        self._first_line = 1
        with self._open() as file:
            self._end = os.fstat(file.fileno()).st_size  # a run may still be growing
            self._start = 3 if file.read(3) == BYTE_ORDER_MARK else 0  # of the samples
            file.seek(self._start)
            first = file.readline(LONGEST)
        if not first.endswith(b"\n") and _is_torn(first):
            return
        record = self._document(1, first)
        if "schema" in record:
            self.header = self._header(record)
            self._start += len(first)
            self._first_line = 2

    def count(self) -> int:
        """How many steps it holds, if all its lines are sound."""
        return sum(1 for _ in self._lines())

    def steps(self) -> Iterator[tuple[VarianceSample, LayerSums]]:
        """Each step in order, and what it did to each layer where that was recorded.

        A torn last line is left out.

        Raises:
            InputError: A line is not a sample, or the steps do not rise.
            NonFiniteError: A value is NaN or infinite.
        """
        last = 0
        for number, line in self._lines():
            record = self._document(number, line)
            sample = self._sample(number, record)
            step = sample.step
            if step <= last:
                raise self._wrong(
                    number, f"step {step} after step {last}, steps must rise"
                )
            last = step
            by_layer = len(record) > len(FIELDS) and self.header.layers
            yield sample, self._layers(number, record) if by_layer else ()

    def _open(self) -> BinaryIO:
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(reason_of(error), file=self.path) from None
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise InputError("not a regular file", file=self.path)
        return os.fdopen(file, "rb")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Number and text of each line that holds a step."""
        number, left = self._first_line, self._end - self._start
        with self._open() as file:
            file.seek(self._start)
            while line := self._line(file, min(left, LONGEST + 1)):
                left -= len(line)
                if not line.endswith(b"\n"):
                    if len(line) > LONGEST:
                        raise self._wrong(
                            number, f"longer than {LONGEST >> 20} MiB, no recording"
                        )
                    self.torn = _is_torn(line)
                    if self.torn:
                        return
                yield number, line
                number += 1

    def _line(self, file: BinaryIO, most: int) -> bytes:
        try:
            return file.readline(most)
        except OSError as error:
            raise InputError(reason_of(error), file=self.path) from None

    def _document(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError:
            raise self._wrong(number, "not UTF-8 text") from None
        except (ValueError, RecursionError):
            raise self._wrong(number, "not JSON") from None
        if not isinstance(record, dict):
            raise self._wrong(number, "not a JSON object")
        return record

    def _header(self, record: Mapping[str, Any]) -> VarianceHeader:
        """The settings in a first line with a ``schema``."""
        if record["schema"] != SCHEMA:
            raise self._wrong(
                1,
                f"schema {record['schema']!r:.80}, expected {SCHEMA!r}: written by a "
                "newer step-cli, or no variance recording",
            )
        beta2, eps, steps = (record.get(key) for key in ("beta2", "eps", "steps"))
        given = [value for value in (beta2, eps, steps) if value is not None]
        numbers = all(_is_number(value) and 0 < value < 2**62 for value in given)
        whole = steps is None or (numbers and steps == int(steps))
        if not (numbers and whole) or (beta2 is not None and not 0 < beta2 < 1):
            raise self._wrong(
                1, "beta2 (below 1), eps and steps (whole) are positive numbers"
            )
        layers = self._header_layers(record.get("layers", []))
        return VarianceHeader(beta2, eps, None if steps is None else int(steps), layers)

    def _header_layers(self, given: object) -> tuple[RecordedLayer, ...]:
        if not isinstance(given, list):
            raise self._wrong(1, "layers is not a list")
        layers = []
        for item in given:
            known = item if isinstance(item, dict) else {}
            name, d = known.get("name"), known.get("d")
            if not (isinstance(name, str) and _is_whole(d) and 0 < d < 2**62):
                raise self._wrong(1, "each of layers has a name and a whole number d")
            layers.append(RecordedLayer(name, d))
        return tuple(layers)

    def _sample(self, number: int, record: Mapping[str, Any]) -> VarianceSample:
        try:
            step, v_l1, v_l2, dv_l1, dv_log, d = values = values_of(record)
        except KeyError:
            missing = [name for name in FIELDS if name not in record]
            raise self._wrong(number, f"{', '.join(missing)} missing") from None
        for name, value in zip(FIELDS, values, strict=True):
            if value is not None or name != "dv_log":
                self._check_number(number, name, value)
        if type(step) is not int or type(d) is not int or d < 1 or step < 1:
            raise self._wrong(number, "step and d are whole numbers from 1 on")
        log = None if dv_log is None else float(dv_log)
        return VarianceSample(step, d, float(v_l1), float(v_l2), float(dv_l1), log)

    def _layers(self, number: int, record: Mapping[str, Any]) -> LayerSums:
        if not any(name in record for name in LAYER_FIELDS):
            return ()
        count = len(self.header.layers)
        for name in LAYER_FIELDS:
            values = record.get(name)
            if not isinstance(values, list) or len(values) != count:
                raise self._wrong(
                    number,
                    f"{name} is not a list of {count} numbers, one for each of the "
                    "first line's layers",
                )
            for value in values:
                self._check_number(number, name, value)
        return list(zip(*(record[name] for name in LAYER_FIELDS), strict=True))

    def _check_number(self, number: int, name: str, value: Any) -> None:
        if type(value) not in NUMBERS:
            raise self._wrong(number, f"{name} is not a number")
        if not -BEYOND < value < LARGEST[name]:  # NaN too
            raise NonFiniteError(
                f"line {number}: {name} is {_short(value)}, not finite or beyond all "
                "bounds",
                file=self.path,
            )
        if value < 0 and name != "dv_log":
            raise self._wrong(number, f"{name} is negative")

    def _wrong(self, number: int, what: str) -> InputError:
        return InputError(f"line {number}: {what}", file=self.path)


def _is_torn(line: bytes) -> bool:
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return True
    return False


def _short(value: float) -> str:
    digits = repr(value)
    return digits if len(digits) <= 30 else f"{digits[:12]}... ({len(digits)} digits)"


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) in NUMBERS


def _is_whole(value: object) -> TypeGuard[int]:
    return type(value) is int
