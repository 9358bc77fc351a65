"""Charts of pages that are written without matplotlib: bars along an axis with a unit.

The colours are those of the page's style, so they follow a dark page and print.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from step_cli.render.page_frame import safe
from step_cli.render.text import one_line

WIDTH = 760  # of a drawing; it is scaled to the page
ROW, BAR = 22, 14  # heights of a row and of the bar in it
LETTER = 7.4  # how wide a letter of the labels is, at most
LONGEST_NAME = 40  # letters of a row's name
TICKS = 6  # steps of an axis, at most about so many


@dataclass(frozen=True)
class Bar:
    """One row of a chart.

    Attributes:
        name: What it is of.
        values: One for each series, not negative, in the unit of the axis.
        words: The values in words, written behind the bar.
        mark: Where the bar is to end; None where there is no such place.
    """

    name: str
    values: Sequence[float]
    words: str
    mark: float | None = None


@dataclass(frozen=True)
class BarChart:
    """Rows of bars, each of several series one after the other.

    Attributes:
        label: What the chart shows, for those who cannot see it.
        rows_title: What a row is.
        axis_title: What is measured, and in which unit.
        series: Name and ink of each: "main", "good", "bad" or "rest". The names are
            shown where there are several.
        bars: From top to bottom.
        top: Where the axis ends; None: at a round number behind the longest bar.
        mark_title: What the marks of the rows are; empty without marks.
        whole: Whether the axis counts whole things.
    """

    label: str
    rows_title: str
    axis_title: str
    series: Sequence[tuple[str, str]]
    bars: Sequence[Bar]
    top: float | None = None
    mark_title: str = ""
    whole: bool = False

    def html(self) -> str:
        """The chart as a figure; empty without bars."""
        if not self.bars:
            return ""
        return f"<figure>\n{_Drawing(self).svg()}</figure>\n"


def ticks(longest: float, *, whole: bool = False) -> list[float]:
    """Round numbers from 0 to the first that is not below ``longest``."""
    rough = longest / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    step = max(1.0, step) if whole else step
    return [number * step for number in range(math.ceil(longest / step - 1e-6) + 1)]


class _Drawing:
    """Where everything of a chart lies."""

    def __init__(self, chart: BarChart) -> None:
        self.chart = chart
        names = [short(bar.name) for bar in chart.bars]
        longest = max(_letters(text) for text in (*names, chart.rows_title))
        words = max(_letters(bar.words) for bar in chart.bars)
        self.left = round(longest * LETTER) + 12
        self.right = WIDTH - round(words * LETTER) - 12
        self.first = 26 + (20 if self._legend_needed() else 0)
        self.last = self.first + ROW * len(chart.bars)
        self.height = self.last + 44
        most = max(sum(bar.values) for bar in chart.bars)
        marks = [bar.mark for bar in chart.bars if bar.mark is not None]
        self.ticks = ticks(
            chart.top or max(most, *marks, 0.0) or 1.0, whole=chart.whole
        )
        self.top = self.ticks[-1]

    def svg(self) -> str:
        parts = [*self._legend(), *self._axis()]
        for number, bar in enumerate(self.chart.bars):
            parts += self._bar(bar, self.first + ROW * number)
        box = f"0 0 {WIDTH} {self.height}"
        return (
            f'<svg class="chart" viewBox="{box}" role="img" '
            f'aria-label="{safe(self.chart.label)}">\n'
            + "\n".join(parts)
            + "\n</svg>\n"
        )

    def _across(self, value: float) -> float:
        share = min(1.0, value / self.top)
        return self.left + share * (self.right - self.left)

    def _legend_needed(self) -> bool:
        return len(self.chart.series) > 1 or bool(self.chart.mark_title)

    def _legend(self) -> list[str]:
        if not self._legend_needed():
            return []
        parts, x = [], float(self.left)
        for name, ink in self.chart.series:
            parts.append(_box(x, 6, 10, 10, ink))
            parts.append(_text(x + 15, 15, name))
            x += 35 + _letters(name) * LETTER
        if self.chart.mark_title:
            parts.append(_line(x + 5, 4, x + 5, 18, "mark"))
            parts.append(_text(x + 15, 15, self.chart.mark_title))
        return parts

    def _axis(self) -> list[str]:
        chart, middle = self.chart, (self.left + self.right) / 2
        parts = [_text(self.left - 8, self.first - 8, chart.rows_title, "tick end")]
        for value in self.ticks:
            x = self._across(value)
            parts.append(_line(x, self.first - 3, x, self.last + 3, "grid"))
            parts.append(_text(x, self.last + 18, f"{value:,.10g}", "tick middle"))
        parts.append(_line(self.left, self.first - 3, self.left, self.last + 3, "axis"))
        parts.append(_text(middle, self.last + 38, chart.axis_title, "middle"))
        return parts

    def _bar(self, bar: Bar, y: float) -> list[str]:
        lowest = y + ROW / 2 + 4.5
        parts = [_text(self.left - 8, lowest, short(bar.name), "end")]
        total = 0.0
        for value, (_, ink) in zip(bar.values, self.chart.series, strict=True):
            start, total = self._across(total), total + value
            width = self._across(total) - start
            if value > 0:  # even where it is too small to be seen
                parts.append(_box(start, y + (ROW - BAR) / 2, max(width, 1), BAR, ink))
        if bar.mark is not None:
            x = self._across(bar.mark)
            parts.append(_line(x, y + 1, x, y + ROW - 1, "mark"))
        ends = max(self._across(total), self._across(bar.mark or 0))
        return [*parts, _text(ends + 7, lowest, bar.words)]


def short(name: str) -> str:
    """A name as short as a chart has room for, its middle left out."""
    return one_line(one_line(name, LONGEST_NAME), LONGEST_NAME)  # escapes are longer


def _letters(text: str) -> int:
    """How many letters wide a text is; letters of East Asia count twice."""
    return sum(1 if letter.isascii() else 2 for letter in text)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    classes = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{classes}>{safe(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{kind}" {ends}/>'


def _box(x: float, y: float, width: float, height: float, ink: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="ink-{ink}" {place}/>'
