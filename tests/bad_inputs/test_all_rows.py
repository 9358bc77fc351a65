"""Every row of docs/promises.md has a test, and every row named in a test is there."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__)
PAGE = HERE.parents[2] / "docs" / "promises.md"
ROW = re.compile(r"^\| ([AEPRTVW]\d\d) \| .+ \| .+ \| .+ \|$", re.M)
KEY = re.compile(r'"([AEPRTVW]\d\d)[",]')  # of a table of rows
NAME = re.compile(r"def test_((?:[AEPRTVW]\d\d_)+)")
# Rows of all commands whose tests lie beside what they test.
ELSEWHERE = {
    "W03": ["test_whichever_call_fails_the_old_target_stays"],
    "W04": [
        "test_killed_while_it_writes_it_leaves_the_old_or_the_new",
        "test_leftovers_of_dead_processes_are_swept_own_names_only",
    ],
    "W06": ["test_new_files_have_the_mode_of_any_new_file"],
    "W07": ["test_a_second_writer_is_told_who_the_first_is"],
    "W08": ["test_a_second_writer_is_told_who_the_first_is"],
    "W09": [
        "test_a_byte_that_flips_on_the_way_is_found",
        "test_what_does_not_read_back_is_not_published",
    ],
    "W10": [
        "test_a_signal_ends_it_and_leaves_nothing",
        "test_a_stop_is_told_and_leaves_the_old_file",
    ],
}


def promised() -> list[str]:
    """The rows of the page, in its order."""
    return ROW.findall(PAGE.read_text(encoding="utf-8"))


def named() -> set[str]:
    """The rows that tests bear, or that a table of tests elsewhere names."""
    texts = [path.read_text() for path in HERE.parents[1].rglob("test_*.py")]
    rows = [row for text in texts for row in NAME.findall(text)]
    beside = [path.read_text() for path in HERE.parent.glob("test_*.py")]
    keys = [key for text in beside for key in KEY.findall(text)]
    return {row for each in rows for row in each.split("_") if row} | set(keys)


def test_every_row_has_a_test_and_every_test_its_row() -> None:
    rows = promised()
    assert len(rows) == len(set(rows))
    assert set(rows) == named()


@pytest.mark.parametrize("row", ELSEWHERE)
def test_rows_tested_elsewhere_are_there(row: str) -> None:
    texts = [path.read_text() for path in HERE.parents[1].rglob("test_*.py")]
    for name in ELSEWHERE[row]:
        assert any(f"def {name}(" in text for text in texts), name


def test_the_numbers_of_each_group_have_no_gap() -> None:
    for group in "RVPTAEW":
        numbers = [int(row[1:]) for row in promised() if row[0] == group]
        assert numbers == list(range(1, len(numbers) + 1))
