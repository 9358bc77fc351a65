"""The frame of every page, and elements of text that is escaped.

No script and no address of another place is in a page, so it can be mailed or archived.
Only the standard library is needed: `verify-nm` and `export` do without jinja2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from step_cli.render.text import LONGEST, one_line

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
NONE = "\u2013"  # in a cell without a value


def framed(title: str, body: str) -> str:
    """A complete document with the style of all pages.

    Args:
        title: Of the window; it is escaped.
        body: What ``<body>`` holds, in HTML.
    """
    style = files("step_cli.render").joinpath("page.css").read_text("utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{safe(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def safe(text: str, longest: int = LONGEST) -> str:
    """Text on one line that is text in HTML, in an attribute too."""
    return escape(one_line(text, longest))


def sizes(shape: Sequence[int]) -> str:
    """A shape, a multiplication sign between its sizes."""
    return " \u00d7 ".join(map(str, shape)) or "scalar"


@dataclass(frozen=True)
class Cell:
    """A cell of a table that stands out: ``mark`` is "bad", "name" or "long"."""

    text: str
    mark: str


@dataclass(frozen=True)
class Table:
    """Rows of cells below their titles; the first cell of each row is its name.

    Attributes:
        columns: The titles.
        rows: As many cells as there are columns.
        numbers: The titles of columns that hold numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numbers: Sequence[str] = ()

    def html(self, label: str) -> str:
        """The table, which scrolls where it is too wide; ``label`` is an element's id.

        Empty without rows.
        """
        if not self.rows:
            return ""
        head = "".join(
            f'<th scope="col"{_classes(self._kind(column))}>{safe(column)}</th>'
            for column in self.columns
        )
        body = "\n".join(f"<tr>{self._row(row)}</tr>" for row in self.rows)
        return (
            f'<div class="wide" tabindex="0" role="region" aria-labelledby="{label}">\n'
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
            "</table>\n</div>\n"
        )

    def _row(self, row: Sequence[str | Cell]) -> str:
        cells: list[str] = []
        for column, cell in zip(self.columns, row, strict=True):
            marked = cell if isinstance(cell, Cell) else Cell(cell, "")
            classes = _classes(self._kind(column), marked.mark)
            tag, scope = ("td", "") if cells else ("th", ' scope="row"')
            cells.append(f"<{tag}{scope}{classes}>{safe(marked.text)}</{tag}>")
        return "".join(cells)

    def _kind(self, column: str) -> str:
        return "number" if column in self.numbers else ""


def _classes(*names: str) -> str:
    given = " ".join(name for name in names if name)
    return f' class="{given}"' if given else ""


def header(title: str, state: str, *, ok: bool) -> str:
    """The heading of a page, and the verdict in one sentence."""
    mark = "good" if ok else "bad"
    return (
        f"<header>\n<h1>{safe(title)}</h1>\n"
        f'<p class="state {mark}">{safe(state)}</p>\n</header>\n'
    )


def section(name: str, title: str, *parts: str) -> str:
    """A part of a page with a heading; ``name`` is the id of the heading.

    Empty where all parts are.
    """
    body = "".join(parts)
    if not body:
        return ""
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{safe(title)}</h2>\n'
        f"{body}</section>\n"
    )


def facts(pairs: Iterable[tuple[str, str]], longest: int = LONGEST) -> str:
    """Labels and values, those without a value left out."""
    items = [
        f"<dt>{safe(label)}</dt><dd>{safe(value, longest)}</dd>\n"
        for label, value in pairs
        if value
    ]
    return f"<dl>\n{''.join(items)}</dl>\n" if items else ""


def bullets(lines: Iterable[str], longest: int = LONGEST) -> str:
    """A list of sentences."""
    items = [f"<li>{safe(line, longest)}</li>\n" for line in lines]
    return f"<ul>\n{''.join(items)}</ul>\n" if items else ""


def code(line: str) -> str:
    """A command to copy."""
    return f'<pre tabindex="0">{safe(line, 4000)}</pre>\n' if line else ""


def small_print(text: str) -> str:
    """A sentence that explains what stands beside it."""
    return f'<p class="faint">{safe(text, 2000)}</p>\n' if text else ""
