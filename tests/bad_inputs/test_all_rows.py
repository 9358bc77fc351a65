"""No row of the matrix that concerns a command we have is without a test."""

import re
from pathlib import Path

ROWS = [f"R{row:02}" for row in range(1, 33)] + [f"V{row:02}" for row in range(1, 15)]
ROWS += [f"P{row:02}" for row in range(1, 14)]
ROWS += [f"A{row:02}" for row in range(1, 9)]
ROWS += [f"E{row:02}" for row in range(1, 17)]
ROWS += [f"T{row:02}" for row in range(1, 20)]
ROWS += ["W01", "W05", *(f"W{row}" for row in range(11, 19))]
KEY = re.compile(r'"([AEPRTVW]\d\d)[",]')  # of a table of rows
NAME = re.compile(r"def test_((?:[AEPRTVW]\d\d_)+)")


def test_every_row_has_a_test() -> None:
    found = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        text = path.read_text()
        found |= set(KEY.findall(text)) - set(ROWS if path.samefile(__file__) else ())
        found |= {row for names in NAME.findall(text) for row in names.split("_")}
    assert [row for row in ROWS if row not in found] == []
