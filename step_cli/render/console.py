"""Tables and lines: plain for a log or a file, by rich on a terminal."""

import os
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO, TypeAlias

if TYPE_CHECKING:
    from step_cli.render.rich_console import RichConsole

    AnyConsole: TypeAlias = "PlainConsole | RichConsole"

GAP = "   "


def console_for(out: TextIO) -> "AnyConsole":
    """What writes tables and lines to ``out``."""
    if is_plain(out):
        return PlainConsole(out)
    from step_cli.render.rich_console import RichConsole

    return RichConsole(out)


def is_plain(out: TextIO) -> bool:
    """Whether ``out`` is no terminal, or one that is to get no escape codes."""
    return (
        not out.isatty()
        or "NO_COLOR" in os.environ
        or "CI" in os.environ
        or os.environ.get("TERM") == "dumb"
    )


class PlainConsole:
    """Without colour or width: nothing is folded, as a log is searched by line.

    Apart from `RichConsole`, as importing rich takes longer than checking a file.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def line(self, text: str) -> None:
        """One line of text."""
        self._out.write(text.rstrip() + "\n")

    def paragraph(self, text: str) -> None:
        """One line of text."""
        self.line(text)

    def verdict(self, ok: bool, text: str) -> None:
        """One line on whether the checks passed."""
        self.line(f"{'ok' if ok else 'FAILED'}  {text}")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        right: Sequence[str] = (),
        whole: Sequence[str] = (),
    ) -> None:
        """As `RichConsole.table`; every column is ``whole``."""
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
