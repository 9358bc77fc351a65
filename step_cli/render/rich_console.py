"""Tables and lines on a terminal, by rich: in its width and in colour."""

from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


class TerminalConsole(Console):
    """rich's console, as this program uses it on a terminal."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(
            file=out, force_terminal=True, markup=False, highlight=False, emoji=False
        )

    def on_broken_pipe(self) -> None:
        """Raise, where rich would end the process; the verdict stands."""
        raise BrokenPipeError


class RichConsole:
    """What `PlainConsole` shows, for a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._console = TerminalConsole(out)

    def line(self, text: str) -> None:
        """One line of text, which can be copied: only the terminal folds it."""
        self._console.print(Text(text), soft_wrap=True)

    def paragraph(self, text: str) -> None:
        """Text that is folded between words."""
        self._console.print(Text(text))

    def verdict(self, ok: bool, text: str) -> None:
        """One line on whether the checks passed."""
        word = Text("ok  " if ok else "FAILED  ", "green" if ok else "red")
        self._console.print(word + text, soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        right: Sequence[str] = (),
        whole: Sequence[str] = (),
    ) -> None:
        """A table; rows may be short.

        Args:
            columns: Their titles.
            rows: The cells.
            right: Columns of numbers.
            whole: Columns that are not folded, so that others give way.
        """
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column in columns:
            table.add_column(
                column,
                justify="right" if column in right else "left",
                overflow="fold",
                no_wrap=column in whole,
            )
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)
