"""Tables for people: what all of them look like."""

import os
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from step_cli.render.text import one_line


class PlainSpokenConsole(Console):
    """A console that reports a closed pipe, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Let the caller decide; the verdict stands."""
        raise BrokenPipeError


def is_plain(out: TextIO) -> bool:
    """Whether ``out`` is no terminal, or one that wants no escape codes."""
    environment = os.environ
    return (
        not out.isatty()
        or "NO_COLOR" in environment
        or "CI" in environment
        or environment.get("TERM") == "dumb"
    )


def console(out: TextIO) -> Console:
    """A console that keeps its escape codes to terminals that want them."""
    plain = is_plain(out)
    return PlainSpokenConsole(
        file=out,
        force_terminal=not plain,
        no_color=plain,
        width=None if out.isatty() else 10_000,  # a line of a log is never folded
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
    )


def new_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table whose first column holds names; the columns in ``right`` hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold"
        )
    return table


def name(text: str) -> Text:
    """A name from a file, as plain text."""
    return Text(one_line(text))


def verdict(console: Console, ok: bool, text: str) -> None:
    """One line that says whether the checks passed."""
    word = Text("ok  " if ok else "FAILED  ", "green" if ok else "red")
    console.print(word + text, soft_wrap=True)
