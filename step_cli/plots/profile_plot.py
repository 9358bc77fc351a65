"""The drawing of ``autoswitch-profile``: a figure, or a page around it."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from step_cli.formats.files.staged import staged
from step_cli.plots.drawing import INKS, STYLE, pyplot, save_figure
from step_cli.plots.profile_panels import (
    Drawing,
    draw_change,
    draw_clips,
    draw_layers,
    draw_norms,
    draw_points,
    draw_relative,
    draw_switches,
)
from step_cli.render.html_pages import filled, inline
from step_cli.reports import AutoswitchProfileReport


def draw_profile(path: Path, drawing: Drawing) -> None:
    """Draw to a file of the kind its suffix names: svg, png, or a page around an svg.

    Raises:
        MissingError: A library is not installed.
        OutputError: The file cannot be written.
    """
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure = profile_figure(drawing)
        if path.suffix != ".html":
            save_figure(figure, path)
            return
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        plt.close(figure)
    curves = inline(drawn.getvalue(), INKS, "Curves of the recorded variance")
    title = "Switch point \u00b7 step-cli autoswitch-profile"
    page = filled("profile_page.html", title, report=drawing.report, curves=curves)
    with staged(path, force=True) as staging:
        staging.write_text(page, encoding="utf-8")


def profile_figure(drawing: Drawing) -> Any:
    """Three panels over the steps, four where layers were recorded.

    Change of v per coordinate against eps, as in the STEP paper's Figure 3; change
    relative to v; norms of v; change of each layer.

    Raises:
        MissingError: matplotlib is not installed.
    """
    plt = pyplot()
    rows = 3 if drawing.layers is None else 4
    heights = [3.0, 2.0, 1.6, 2.0][:rows]
    figure, panels = plt.subplots(
        rows,
        1,
        figsize=(10, 1.1 * sum(heights) + 0.6),
        height_ratios=heights,
        sharex=True,
        layout="constrained",
    )
    draw_change(panels[0], drawing)
    draw_relative(panels[1], drawing)
    draw_norms(panels[2], drawing)
    if drawing.layers is not None:
        draw_layers(panels[3], drawing, drawing.layers)
    draw_points(panels, drawing)
    for number, panel in enumerate(panels):
        if any((np.asarray(line.get_ydata()) > 0).any() for line in panel.lines):
            panel.set_yscale("log")
        draw_clips(panel, drawing.report, named=number == 0)
        draw_switches(panel, drawing.report, named=number == 0)
        panel.margins(x=0.01)
        panel.legend(
            fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )
    panels[-1].set_xlabel("step (updates of v)")
    figure.align_ylabels(panels)
    figure.suptitle(_title(drawing.report), fontsize="medium")
    return figure


def _title(report: AutoswitchProfileReport) -> str:
    step = next(
        (c.switch_step for c in report.criteria if c.name == report.recommended), None
    )
    said = f"beta2 {report.beta2:g}, window {report.window} steps"
    if step is None:
        return f"When is Adam's variance ready? No criterion is recommended; {said}"
    return (
        f"When is Adam's variance ready? {report.recommended} says after step {step}; "
        f"{said}"
    )
