"""Pages around drawings of matplotlib, and ``report.html`` of a training run.

They are templates of jinja2 in the frame that all pages share. Names come from models
and configurations, so all text is escaped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from step_cli.render.page_frame import framed, sizes
from step_cli.render.text import one_line

if TYPE_CHECKING:
    from markupsafe import Markup


def filled(template: str, title: str, **values: Any) -> str:
    """The page of a template of this package; all values are escaped but drawings.

    Args:
        template: The file that holds the body of the page.
        title: Of the window.
        values: What the template names.
    """
    from jinja2 import Environment, FunctionLoader

    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=FunctionLoader(_source),
    )
    environment.filters["one_line"] = one_line
    return framed(title, environment.get_template(template).render(**values))


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


SPARK_WIDTH, SPARK_HEIGHT, SPARK_POINTS = 96, 20, 48  # of a layer's little curve


@dataclass(frozen=True)
class LayerRow:
    """One layer of the table; None is shown as a dash.

    Attributes:
        name: Of the weight.
        shape: Its sizes.
        pattern: What it was to become.
        axis: The group axis.
        density: Share of non-zeros.
        violations: Groups that break the pattern.
        flips: Share of its mask that flipped in one step, at each logged step.
    """

    name: str
    shape: Sequence[int]
    pattern: str
    axis: int
    density: float | None
    violations: int | None
    flips: Sequence[float]

    @property
    def sizes(self) -> str:
        """The shape, a multiplication sign between its sizes."""
        return sizes(self.shape)

    @property
    def spark(self) -> str:
        """The points of a curve of all flips, in a box of the sizes above."""
        values = _means(self.flips, SPARK_POINTS)
        top = max(values, default=0.0) or 1.0
        across = SPARK_WIDTH / max(1, len(values) - 1)
        room = SPARK_HEIGHT - 2
        return " ".join(
            f"{number * across:.1f},{1 + room * (1 - value / top):.1f}"
            for number, value in enumerate(values)
        )


@dataclass(frozen=True)
class LeftRow:
    """A layer weight that stays dense.

    Attributes:
        name: Of the weight.
        shape: Its sizes.
        why: Why it does.
        share: Of all layer weights.
    """

    name: str
    shape: Sequence[int]
    why: str
    share: float

    @property
    def sizes(self) -> str:
        """The shape, a multiplication sign between its sizes."""
        return sizes(self.shape)


@dataclass(frozen=True)
class MetricRow:
    """One metric of held-out samples, of the model and of its two companions."""

    name: str
    model: float
    dense: float | None = None
    pruned: float | None = None


@dataclass(frozen=True)
class RunPage:
    """All that the page shows.

    Attributes:
        name: Of the run.
        state: In a few words how the run stands.
        ok: Whether it reached its aim; None while it is not finished.
        facts: Labels and values of the summary.
        advice: What to do where it did not.
        metrics: Of held-out samples.
        measured: The step after which they were measured.
        curves: The SVG of ``curves.svg``.
        layers: One row for each weight that is to become N:M.
        left: One row for each layer weight that stays dense.
        config: The configuration, as TOML.
        versions: Labels and values of the environment.
    """

    name: str
    state: str
    ok: bool | None
    facts: Sequence[tuple[str, str]]
    advice: Sequence[str]
    metrics: Sequence[MetricRow]
    measured: int
    curves: str
    layers: Sequence[LayerRow]
    left: Sequence[LeftRow]
    config: str
    versions: Sequence[tuple[str, str]]

    @property
    def violations(self) -> int:
        """Groups that break their pattern, in all layers."""
        return sum(layer.violations or 0 for layer in self.layers)


def html(page: RunPage, inks: dict[str, str]) -> str:
    """The page.

    Args:
        page: What it shows.
        inks: Colours of the curves, and what of the page's style they follow, so that
            they can be read on a dark page too.
    """
    return filled(
        "run_page.html",
        f"{page.name} \u00b7 step-cli train",
        page=page,
        curves=inline(page.curves, inks, "Curves of the run"),
        spark=(SPARK_WIDTH, SPARK_HEIGHT),
    )


def _means(values: Sequence[float], most: int) -> list[float]:
    """At most ``most`` values, each the mean of as many that lie together."""
    size = -(-len(values) // most) if values else 1
    pieces = [values[first : first + size] for first in range(0, len(values), size)]
    return [sum(piece) / len(piece) for piece in pieces]
