"""Tables and lines for a terminal: in its width, in colour where that is wanted."""

from collections.abc import Sequence
from typing import TextIO

from rich.text import Text

from step_cli.render import tables


class TerminalPage:
    """What `PlainPage` shows, for a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._console = tables.console(out)

    def line(self, text: str) -> None:
        """One line of text, which the terminal may fold."""
        self._console.print(text, soft_wrap=True)

    def verdict(self, ok: bool, text: str) -> None:
        """One line that says whether the checks passed."""
        tables.verdict(self._console, ok, text)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        right: Sequence[str] = (),
    ) -> None:
        """A table; rows may be short, the columns in ``right`` hold numbers."""
        table = tables.new_table(*columns, right=tuple(right))
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)
