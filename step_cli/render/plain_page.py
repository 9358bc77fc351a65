"""Tables and lines for a log or a file: as long as they are, without a terminal."""

import unicodedata
from collections.abc import Sequence
from typing import TextIO

GAP = "   "


class PlainPage:
    """What `TerminalPage` shows, for readers who cannot see colour or scroll sideways.

    Nothing is folded: a line of a log is searched for, and has no width.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def line(self, text: str) -> None:
        """One line of text."""
        self._out.write(text.rstrip() + "\n")

    def verdict(self, ok: bool, text: str) -> None:
        """One line that says whether the checks passed."""
        self.line(f"{'ok' if ok else 'FAILED'}  {text}")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        right: Sequence[str] = (),
    ) -> None:
        """A table; rows may be short, the columns in ``right`` hold numbers."""
        widths = [_width(column) for column in columns]
        for row in rows:
            if len(row) == len(columns):
                widths = [
                    max(width, _width(cell))
                    for width, cell in zip(widths, row, strict=True)
                ]
        self._row(columns, columns, widths, right)
        self.line("─" * (sum(widths) + len(GAP) * (len(widths) - 1)))
        for row in rows:
            self._row(row, columns, widths, right)

    def _row(
        self,
        cells: Sequence[str],
        columns: Sequence[str],
        widths: Sequence[int],
        right: Sequence[str],
    ) -> None:
        padded = []
        for cell, column, width in zip(cells, columns, widths, strict=False):
            space = " " * (width - _width(cell))
            padded.append(space + cell if column in right else cell + space)
        self.line(GAP.join(padded))


def _width(text: str) -> int:
    """How many columns a text takes; letters of East Asia take two."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(letter)
        else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )
