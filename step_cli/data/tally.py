"""How much of texts is lost as they become tokens: cut off, or unknown."""

import logging
from collections.abc import Sequence
from pathlib import Path

from step_cli.data.tokens import Tokenizer

logger = logging.getLogger(__name__)

UNKNOWN = 0.2  # share of tokens that a fitting tokenizer knows all but


class Tally:
    """What becomes of texts as tokens: how many are cut, and how much is unknown.

    Args:
        tokenizer: What makes the tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._mark = tokenizer.unknown
        self._texts = self._cut = self._tokens = self._unknown = 0

    def add(self, tokens: Sequence[int], *, cut: bool = False) -> None:
        """Count one text."""
        self._texts += 1
        self._cut += cut
        if self._mark is not None:
            self._tokens += len(tokens)
            self._unknown += tokens.count(self._mark)

    def say(self, path: Path, length: int) -> None:
        """Log what was counted of the file, where anything was lost."""
        if self._cut:
            logger.info(
                "%s: %d of %d texts are cut to %d tokens; data.length keeps more",
                path, self._cut, self._texts, length,
            )  # fmt: skip
        if self._unknown > UNKNOWN * self._tokens:
            logger.warning(
                "%s: the tokenizer does not know %d of %d tokens; it may be of another "
                "language or model", path, self._unknown, self._tokens,
            )  # fmt: skip
