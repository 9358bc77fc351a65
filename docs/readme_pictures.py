"""Draw the two pictures of README.md from a run of `make demo`.

`make readme-pictures` runs the demo and then this. It writes docs/demo.svg, what the
terminal shows, and docs/report.png, the upper part of demo/step/report.html in
Chromium. Without a browser only the first is made.
"""

import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from docs.pictures import BROWSERS, take

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "build" / "demo.txt"
REPORT = ROOT / "demo" / "step" / "report.html"
# How many of the last lines of each command are shown; a command with 0 is left out.
SHOWN = (8, 0, 0, 11, 2, 1, 0, 1)
WIDTH = 104  # characters
REPORT_SIZE = (1000, 1330)  # pixels
# rich's frame loads its font from the network, which an image may not.
FONT = re.compile(r" *@font-face \{.*?\}\n", re.S)


def excerpt(output: str) -> list[str]:
    """The lines of the demo that the picture shows, with their colours."""
    blocks = re.split(r"^(?=\$ step-cli)", output, flags=re.M)[1:]
    lines: list[str] = []
    for block, count in zip(blocks, SHOWN, strict=True):
        command, *said = re.split(r"^\n", block, maxsplit=1, flags=re.M)[0].splitlines()
        if count:
            left_out = ["..."] if len(said) > count else []
            lines += [command, *left_out, *said[-count:], ""]
    results = output[output.index("== What was measured") :]
    return [*lines, *re.split(r"^\n", results, maxsplit=1, flags=re.M)[0].splitlines()]


def draw_terminal(lines: list[str], file: Path) -> None:
    """Write the lines as an SVG; a line longer than the picture is cut."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in lines:
        text = Text.from_ansi(line)
        text.truncate(WIDTH, overflow="ellipsis")
        console.print(text, highlight=False, soft_wrap=True)
    drawn = console.export_svg(title="make demo", theme=MONOKAI, unique_id="demo")
    file.write_text(FONT.sub("", drawn), "utf-8")


def main() -> int:
    """Draw both."""
    draw_terminal(excerpt(OUTPUT.read_text("utf-8")), ROOT / "docs" / "demo.svg")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"error: no browser: install one of {', '.join(BROWSERS)}")
        return 6
    with tempfile.TemporaryDirectory() as profile:
        picture = ROOT / "docs" / "report.png"
        take(browser, REPORT.as_uri(), "light", picture, profile, REPORT_SIZE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
