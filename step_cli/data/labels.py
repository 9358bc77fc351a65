"""What stands in the label column of a table: names, classes, or any numbers."""

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Label = str | int | float
MOST = 2**31  # more classes than any model has
WHOLE = re.compile(r"[+-]?\d{1,18}")


class Labels:
    """The kind of label is told by the training data; others must be of that kind.

    Names become classes in their order; whole numbers are classes as they stand; once a
    number has a decimal point, all are what a regression aims at.
    """

    def __init__(self) -> None:
        self._first: Label | None = None
        self._names: dict[str, int] | None = None
        self._dtype: torch.dtype | None = None

    def read(self, value: Any) -> Label:
        """The label in a field.

        Raises:
            ValueError: There is none, or not of the kind of the others.
        """
        label = _label(value)
        if self._first is None:
            self._first = label
        if isinstance(label, str) != isinstance(self._first, str):
            raise ValueError(f"label {label!r} among such as {self._first!r}")
        if self._names is not None and label not in self._names:
            known = ", ".join(list(self._names)[:5])
            raise ValueError(f"label {label!r} is none of the training data: {known}")
        if self._dtype == torch.int64 and isinstance(label, float):
            raise ValueError(f"label {label!r} where the training data has classes")
        return label

    def tensor(self, labels: Sequence[Label]) -> Tensor:
        """int64 classes or fp32 numbers ``[n]``; the first call decides which."""
        if isinstance(self._first, str):
            if self._names is None:
                self._names = {str(x): i for i, x in enumerate(sorted(set(labels)))}
                shown = ", ".join(f"{name} = {i}" for name, i in self._names.items())
                logger.info("classes by name: %s", shown)
            return torch.tensor([self._names[str(label)] for label in labels])
        if self._dtype is None:
            whole = all(isinstance(label, int) for label in labels)
            self._dtype = torch.int64 if whole else torch.float32
        return torch.tensor(labels, dtype=self._dtype)


def _label(value: Any) -> Label:
    if value is None or value == "":
        raise ValueError("no label")
    if isinstance(value, bool | int) or (
        isinstance(value, str) and WHOLE.fullmatch(value)
    ):
        number = int(value)
        if not 0 <= number < MOST:
            raise ValueError(f"label {number} is no class: they count from 0")
        return number
    if not isinstance(value, str | float):
        raise ValueError(f"the label is a {type(value).__name__}")
    try:
        real = float(value)
    except ValueError:
        return str(value)
    if not math.isfinite(real):
        raise ValueError(f"label {value} is not finite")
    return real
