"""The N:M pattern: at most N of each M consecutive weights are non-zero.

A plan gives tensors their patterns, each along an axis.
"""

import re
from dataclasses import dataclass

from step_cli.errors import UsageError


class BadPatternError(UsageError, ValueError):
    """Not N:M with 1 <= N <= M; a ``ValueError`` too, as option parsers expect."""


@dataclass(frozen=True)
class NMPattern:
    """Keep ``n`` weights of each group of ``m``; ``n == m`` is dense."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise BadPatternError(
                f"expected N:M with 1 <= N <= M, got {self.n}:{self.m}"
            )

    @classmethod
    def parse(cls, text: str) -> "NMPattern":
        """Read ``"2:4"``.

        Raises:
            BadPatternError: The text is not N:M with 1 <= N <= M.
        """
        # ASCII digits only: int() also reads other scripts' digits.
        match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", text.strip())
        if match is None:
            raise BadPatternError(f"expected N:M such as 2:4, got '{text}'")
        n, m = (int(part) for part in match.groups())
        if not 1 <= n <= m:
            raise BadPatternError(
                f"expected N:M such as 2:4 with 1 <= N <= M, got '{text}'"
            )
        return cls(n, m)

    @classmethod
    def of(cls, given: object) -> "NMPattern":
        """A pattern as a caller gives it: one already, or its text.

        Raises:
            BadPatternError: It is neither, or the text is not N:M.
        """
        if isinstance(given, NMPattern):
            return given
        if not isinstance(given, str):
            raise BadPatternError(f"expected N:M such as '2:4', got {given!r}")
        return cls.parse(given)

    @property
    def density(self) -> float:
        """Share of weights kept, N / M."""
        return self.n / self.m

    @property
    def dense(self) -> bool:
        """Whether the pattern keeps everything (N = M)."""
        return self.n == self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class NMSpec:
    """What one weight promises: its pattern, and the axis its groups run along."""

    pattern: NMPattern
    axis: int


Plan = dict[str, NMSpec]  # by tensor name
