"""Labels of a table: names, classes by number, or numbers that a regression aims at."""

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from step_cli.data.names import alike

logger = logging.getLogger(__name__)

Label = str | int | float
MOST = 2**31  # more classes than any model has
FURTHEST = 10**18  # from 0 that a whole number may be
WHOLE = re.compile(r"[+-]?\d{1,18}")
COMMA = re.compile(r"[+-]?\d+,\d+")
INVISIBLE = "\ufeff\u200b"  # a mark of the encoding, a blank of no width
# What tools write where there is no label; as a class it would be a name like others.
NOTHING = frozenset({"na", "n/a", "none", "null", "<na>", "#n/a", "?", "-"})
MANY = 100  # different whole numbers are no classes, whatever the decimal point
LOOKED_AT = 100_000  # labels, to tell what a negative one means


class WrongKindError(ValueError):
    """A label that is wrong as others of its column are: leaving it out is no help."""


def _nothing_more() -> Iterable[Any]:
    return ()


class Labels:
    """Labels of a table, of the kind that the training data has.

    Names become classes in their order; whole numbers are classes as they stand; once a
    number has a decimal point, all are what a regression aims at.

    Args:
        of_training: Gives the fields of the training data, where one label does not
            tell what it means.
    """

    def __init__(
        self, of_training: Callable[[], Iterable[Any]] = _nothing_more
    ) -> None:
        self._of_training = of_training
        self._first: Label | None = None
        self._names: dict[str, int] | None = None
        self._dtype: torch.dtype | None = None
        self._others: set[int | float] | None = None  # labels there are, if looked at

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class, where they have names."""
        return tuple(self._names or ())

    def read(self, value: Any) -> Label:
        """The label in a field.

        Raises:
            ValueError: There is none, or not of the kind of the others.
        """
        label = _label(value)
        if isinstance(label, int) and not 0 <= label < MOST:
            self._refuse_no_class(label)
        if self._first is None:
            self._first = label
        if isinstance(label, str) != isinstance(self._first, str):
            raise ValueError(
                f"label {label!r} among such as {self._first!r}: all are names, or all "
                "are numbers"
            )
        if self._names is not None and label not in self._names:
            known = ", ".join(list(self._names)[:5])
            raise ValueError(
                f"label {label!r} is none of the training data: {known}"
                f"{alike(str(label), self._names)}"
            )
        if self._dtype == torch.int64 and isinstance(label, float):
            raise ValueError(
                f"label {label!r} where the training data has classes; write classes "
                "without a decimal point everywhere, or numbers to regress on with one"
            )
        return label

    def tensor(self, labels: Sequence[Label]) -> Tensor:
        """int64 classes or fp32 numbers ``[n]``; the first call decides which."""
        if isinstance(self._first, str):
            if self._names is None:
                self._names = {str(x): i for i, x in enumerate(sorted(set(labels)))}
                self._doubt_names()
            return torch.tensor([self._names[str(label)] for label in labels])
        if self._dtype is None:
            whole = all(isinstance(label, int) for label in labels)
            self._dtype = torch.int64 if whole else torch.float32
            if not whole:
                _doubt_numbers(labels)
        return torch.tensor(labels, dtype=self._dtype)

    def _refuse_no_class(self, label: int) -> None:
        """Refuse a number that is no class, unless the labels are of a regression."""
        if self._dtype is None and self._others is None:
            self._others = _kinds(self._of_training())
        others = self._others or set()
        decimal = any(isinstance(other, float) for other in others)
        if self._dtype == torch.float32 or (self._dtype is None and decimal):
            return
        raise _no_class(label, sorted(others))

    def _doubt_names(self) -> None:
        assert self._names is not None
        shown = ", ".join(f"{name} = {i}" for i, name in enumerate(self._names))
        logger.info("classes by name: %s", shown)
        for name in self._names:
            if name.lower() in NOTHING:
                logger.warning(
                    "a class is called %r: if that means that there is no label, leave "
                    "its rows out", name,
                )  # fmt: skip


def _no_class(label: int, others: Sequence[int | float]) -> ValueError:
    """What to do about a whole number that is no class, among ``others``."""
    said = f"label {label} is no class: they count from 0"
    shown = ", ".join(str(other) for other in others[:5])
    renumber = f"write {shown} as 0, 1 and so on"
    if label < -1 or (label == -1 and len(others) == 2):
        regress = "or with a decimal point if they are numbers to regress on"
        return WrongKindError(f"{said}; {renumber}, {regress}")
    if label == -1 and len(others) > 2:
        return WrongKindError(
            f"{said}; {renumber}, or set data.skip_bad_rows if -1 means no label"
        )
    return ValueError(said)


def _kinds(values: Iterable[Any]) -> set[int | float]:
    """Different numbers among fields."""
    found = set[int | float]()
    for seen, value in enumerate(values):
        if seen == LOOKED_AT:
            break
        try:
            label = _label(value)
        except ValueError:
            continue
        if isinstance(label, float) and (len(found) < 1000 or not label.is_integer()):
            return {label}  # one settles it
        if isinstance(label, int) and len(found) < 1000:
            found.add(label)
    return found


def _doubt_numbers(labels: Sequence[Label]) -> None:
    """Say that classes with a decimal point are taken for numbers."""
    numbers = sorted({float(label) for label in labels})
    if len(numbers) == 1:
        logger.warning("all labels to train on are %g: there is nothing to learn",
                       numbers[0])  # fmt: skip
    elif all(number.is_integer() for number in numbers) and len(numbers) <= MANY:
        shown = ", ".join(str(number) for number in numbers[:5])
        logger.warning(
            "labels such as %s have a decimal point, so they are numbers to regress "
            "on; if they are classes, write them without: 0, 1 and so on", shown,
        )  # fmt: skip


def _label(value: Any) -> Label:
    """A field without the blanks around it."""
    if isinstance(value, str):
        value = value.strip().strip(INVISIBLE).strip()
    if value is None or value == "":
        raise ValueError("no label")
    if isinstance(value, bool | int):
        if abs(value) > FURTHEST:
            raise ValueError(f"label {value} is no class: they count from 0")
        return int(value)
    if isinstance(value, float):
        return _finite(value)
    if not isinstance(value, str):
        raise ValueError(f"the label is a {type(value).__name__}")
    if WHOLE.fullmatch(value):
        return int(value)
    if COMMA.fullmatch(value):
        raise WrongKindError(f"label {value!r} has a decimal comma; write a point")
    if "_" in value:  # Python reads 1_000 as a number, and nobody else does
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return _finite(number)


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(f"label {number} is not finite")
    return number
