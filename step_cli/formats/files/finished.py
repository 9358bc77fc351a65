"""Parts of a long piece of work, on the disk, so that it can go on after a kill.

Each part is two files of arrays, what was made and what the next part needs, and then
an index, ``part-00003.json``: the part is finished once that has its name.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from step_cli.errors import InputError
from step_cli.formats.files.json_text import read_json
from step_cli.formats.files.temporary import ArrayPlace, ArraysOnDisk

Array = npt.NDArray[Any]

LIMIT = 1 << 26  # bytes of an index
PART = "part-"  # how all names begin


@dataclass
class FinishedParts:
    """The finished parts of some work in its folder, and the one at hand.

    Attributes:
        folder: Where they are.
        count: How many are finished.
    """

    folder: Path
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = 0
        while self._index(self.count).exists():
            self.count += 1

    def new_inputs(self) -> ArraysOnDisk:
        """Where to put what the part after the one at hand needs."""
        return ArraysOnDisk(path=self._inputs(self.count))

    def new_arrays(self) -> ArraysOnDisk:
        """Where to put what the part at hand makes; what it had made is dropped."""
        path = self._made(self.count)
        path.unlink(missing_ok=True)  # what is mapped from it stays valid
        return ArraysOnDisk(path=path)

    def finish(
        self,
        made: ArraysOnDisk,
        names: Iterable[str],
        facts: Mapping[str, Any],
        inputs: ArraysOnDisk | None,
    ) -> None:
        """Keep what was made, for good.

        Args:
            made: From `new_arrays`, filled.
            names: Of its arrays.
            facts: What else is known of it, as JSON has it.
            inputs: From `new_inputs`, filled; None: the next part needs nothing.
        """
        number, index = self.count, self._index(self.count)
        made.flush()
        made.close()
        if inputs is not None:
            inputs.flush()
        document = {
            "arrays": dict(zip(names, made.places, strict=True)),
            "inputs": None if inputs is None else inputs.places,
            "facts": facts,
        }
        beside = index.with_suffix(".tmp")
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, index)
        self.count += 1
        with suppress(FileNotFoundError):  # no part after this one needs it
            self._inputs(number - 1).unlink()

    def load(self, number: int) -> tuple[dict[str, Array], dict[str, Any]]:
        """The arrays and facts of a finished part.

        Raises:
            InputError: Its files are damaged.
        """
        document = self._document(number)
        try:
            places = {name: _place(x) for name, x in document["arrays"].items()}
            with open(self._made(number), "rb") as file:
                return (
                    {name: place.mapped(file) for name, place in places.items()},
                    dict(document["facts"]),
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(number) from error

    def inputs(self, number: int) -> list[Array]:
        """What the part after a finished one needs; of the last finished part only.

        Raises:
            InputError: Its files are damaged.
        """
        try:
            places = [_place(x) for x in self._document(number)["inputs"]]
            with open(self._inputs(number), "rb") as file:
                return [place.mapped(file) for place in places]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(number) from error

    def _document(self, number: int) -> dict[str, Any]:
        return read_json(self._index(number), "a finished part", limit_bytes=LIMIT)

    def _damaged(self, number: int) -> InputError:
        return InputError(
            "is damaged and cannot be gone on from: start anew: --force, no --resume",
            file=self._index(number),
        )

    def _index(self, number: int) -> Path:
        return self.folder / f"{PART}{number:05}.json"

    def _made(self, number: int) -> Path:
        return self.folder / f"{PART}{number:05}.arrays"

    def _inputs(self, number: int) -> Path:
        return self.folder / f"{PART}{number:05}.next"


def _place(entry: Any) -> ArrayPlace:
    begin, dtype, shape = entry
    return ArrayPlace(int(begin), str(dtype), tuple(int(size) for size in shape))
