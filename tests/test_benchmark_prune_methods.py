"""Rows of prune_methods.py are written one by one."""

import json
import runpy
from pathlib import Path

PRUNE_METHODS = Path(__file__).parents[1] / "benchmarks" / "prune_methods.py"


def test_a_row_replaces_its_forerunner_and_no_other(tmp_path: Path) -> None:
    add = runpy.run_path(str(PRUNE_METHODS))["add"]
    document = {"dense_loss": 1.5}
    for refit, loss in (("none", 2.0), ("layer", 1.8), ("layer", 1.7)):
        row = {"method": "wanda", "refit": refit, "eval_loss": loss, "cpu_seconds": 9}
        add(document, "refits", row, ("method", "refit"), tmp_path)
    written = json.loads((tmp_path / "prune_methods.json").read_text())
    assert [row["eval_loss"] for row in written["refits"]] == [2.0, 1.7]
    text = (tmp_path / "prune_methods.md").read_text()
    assert "| wanda | 2.000 | 1.700 | - | 9 | 9 | - |" in text
    assert "| magnitude | - | - | - | - | - | - |" in text
