"""One line of a ``variance.jsonl``: what may stand in it, and what is wrong with it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from step_cli.autoswitch.autoswitch import VarianceSample
from step_cli.autoswitch.sample_block import LayerSums
from step_cli.autoswitch.variance_log import (
    FIELDS,
    LAYER_FIELDS,
    SCHEMA,
    RecordedLayer,
    VarianceHeader,
)
from step_cli.errors import InputError, NonFiniteError

# Sums of a window of such values, and exp of the logarithm, are still finite.
BEYOND = 1e290
LARGEST = dict.fromkeys(("v_l1", "v_l2", "dv_l1", *LAYER_FIELDS), BEYOND) | {
    "dv_log": 700.0,
    "step": 2**62,
    "d": 2**62,
}


class LineReader:
    """Reads lines one by one, and says of each what is wrong with it.

    Args:
        path: The recording, for messages.
        layers: What lines that tell more are about.
    """

    def __init__(self, path: Path, layers: Sequence[RecordedLayer] = ()) -> None:
        self._path, self._layers = path, layers

    def document(self, number: int, line: bytes) -> dict[str, Any]:
        """The object of a line.

        Raises:
            InputError: There is none.
        """
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError:
            raise self._wrong(number, "not UTF-8 text") from None
        except (ValueError, RecursionError):
            raise self._wrong(number, "not JSON") from None
        if not isinstance(record, dict):
            raise self._wrong(number, "not a JSON object")
        return record

    def header(self, record: Mapping[str, Any]) -> VarianceHeader:
        """What a first line with a ``schema`` says.

        Raises:
            InputError: It was written by a newer step-cli, or says nonsense.
        """
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

    def sample(self, number: int, record: Mapping[str, Any]) -> VarianceSample:
        """The sample of a line.

        Raises:
            InputError: The line is no sample.
            NonFiniteError: A value is NaN or infinite.
        """
        missing = [name for name in FIELDS if name not in record]
        if missing:
            raise self._wrong(number, f"{', '.join(missing)} missing")
        values = {name: record[name] for name in FIELDS}
        for name, value in values.items():
            if name != "dv_log" or value is not None:
                self._check_number(number, name, value)
        whole = _is_whole(values["step"]) and _is_whole(values["d"])
        if not whole or values["d"] < 1 or values["step"] < 1:
            raise self._wrong(number, "step and d are whole numbers from 1 on")
        return VarianceSample(**values)

    def layers(self, number: int, record: Mapping[str, Any]) -> LayerSums | None:
        """What a line says layer by layer, if it does.

        Raises:
            InputError: It is not about the layers of the first line.
            NonFiniteError: A value is NaN or infinite.
        """
        if not self._layers or not any(name in record for name in LAYER_FIELDS):
            return None
        for name in LAYER_FIELDS:
            values = record.get(name)
            if not isinstance(values, list) or len(values) != len(self._layers):
                raise self._wrong(
                    number,
                    f"{name} is not a list of {len(self._layers)} numbers, one for "
                    "each of the first line's layers",
                )
            if not _are_sound(values, LARGEST[name]):
                for value in values:
                    self._check_number(number, name, value)
        return LayerSums(
            record["step"], *(np.array(record[name], float) for name in LAYER_FIELDS)
        )

    def rising(self, number: int, step: int, last: int) -> None:
        """Refuse a step that does not come after the last.

        Raises:
            InputError: It does not.
        """
        if step <= last:
            raise self._wrong(number, f"step {step} after step {last}, steps must rise")

    def _check_number(self, number: int, name: str, value: object) -> None:
        if not _is_number(value):
            raise self._wrong(number, f"{name} is not a number")
        assert isinstance(value, int | float)
        if not -BEYOND < value < LARGEST[name]:  # NaN too
            raise NonFiniteError(
                f"line {number}: {name} is {_short(value)}, not finite or beyond all "
                "bounds",
                file=self._path,
            )
        if value < 0 and name != "dv_log":
            raise self._wrong(number, f"{name} is negative")

    def _wrong(self, number: int, what: str) -> InputError:
        return InputError(f"line {number}: {what}", file=self._path)


def _are_sound(values: list[object], largest: float) -> bool:
    """Whether all are numbers that may be: at once, as there are many."""
    if not set(map(type, values)) <= {int, float}:
        return False
    try:
        array = np.array(values, np.float64)
    except OverflowError:
        return False
    return bool(((array >= 0) & (array < largest)).all())


def _short(value: float) -> str:
    digits = repr(value)
    return digits if len(digits) <= 30 else f"{digits[:12]}... ({len(digits)} digits)"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
