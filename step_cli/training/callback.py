"""What may follow a run while it is trained."""

from collections.abc import Mapping
from typing import Any


class Follower:
    """Sees what the loop does and changes nothing; a subclass overrides what it needs.

    It is called between steps, so it keeps what it is given and works later, or seldom.
    """

    def stepped(self, step: int, loss: float, lr: float) -> None:
        """``step`` was taken."""

    def recorded(self, values: Mapping[str, Any]) -> None:
        """A step was logged or evaluated: its line of ``metrics.jsonl``."""

    def close(self) -> None:
        """The loop has ended, or failed."""
