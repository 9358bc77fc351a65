"""Pages that need nothing else: their frame, and drawings as a part of them.

No script and no address of another place is in them, so they can be mailed or archived.
Names come from models and configurations, so all text is escaped.
"""

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from step_cli.render.text import one_line

if TYPE_CHECKING:
    from markupsafe import Markup


def filled(template: str, **values: Any) -> str:
    """A template of this package, filled in; all values are escaped but drawings."""
    from jinja2 import Environment, FunctionLoader

    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=FunctionLoader(_source),
    )
    environment.filters["one_line"] = one_line
    return environment.get_template(template).render(**values)


def _source(name: str) -> str:
    return files("step_cli.render").joinpath(name).read_text("utf-8")


def inline(svg: str, inks: dict[str, str], label: str) -> "Markup":
    """An SVG document as an element of a page, its size and its inks the page's."""
    from markupsafe import Markup

    start = svg.index("<svg")
    element = re.sub(r"<metadata>.*?</metadata>", "", svg[start:], flags=re.DOTALL)
    head, closing, rest = element.partition(">")
    head = re.sub(r'\s(?:width|height|xmlns:xlink|version)="[^"]*"', "", head)
    head += f' role="img" aria-label="{label}"'
    for colour, followed in inks.items():
        rest = rest.replace(colour, followed)
    return Markup(head + closing + rest)
