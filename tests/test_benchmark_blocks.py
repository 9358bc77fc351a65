"""The benchmark of blocks of 7B size, on blocks of no size."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import forks
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "prune_blocks.py"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return runpy.run_path(str(SCRIPT))


def test_products_are_counted_by_hand(module: dict[str, Any]) -> None:
    size = module["Size"](hidden=4, inner=8, heads=2)
    linear = 2 * 6 * (4 * 16 + 3 * 32)  # of 2 samples of 3 tokens
    attention = 2 * (2 * 3 * 3 * 4) * 2  # scores, and what they weigh
    down = 2 * 6 * 4 * 8
    one = module["products"]("wanda", 1, 2, 3, size)
    assert one == {"forward": linear + attention - down}
    two = module["products"]("sparsegpt", 2, 2, 3, size)
    assert two["forward"] == 3 * (linear + attention) - 2 * down
    assert two["hessian"] == 2 * (3 * 6 * 4 * 5 + 6 * 8 * 9)
    assert two["update"] == 2 * (4 * 64 + 2 * 8 * 16 + 4 * 64)


def test_a_row_is_judged_by_time_and_by_memory(module: dict[str, Any]) -> None:
    needed = {"forward": 1e12}

    def row(seconds: float, peak: float) -> dict[str, Any]:
        rates = {"fp32": (1e11, 1e11), "bf16": (4e11, 4e11)}
        measured = {"used": (seconds, seconds, peak), **rates}
        found: dict[str, Any] = module["row_of"](measured, needed, 1, "wanda", "none")
        return found

    assert row(14, 1.4e9)["ok"] and row(14, 1.4e9)["times"] == pytest.approx(1.4)
    assert not row(16, 1.4e9)["ok"]
    assert not row(14, 1.6e9)["ok"]
    assert "1.40 times the products" in module["line_of"](row(14, 1e9))


@pytest.mark.slow
def test_it_runs_on_small_blocks(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    words = ["--size", "16", "32", "4", "--blocks", "1", "--tokens", "8"]
    words += ["--threads", "1", "--out", str(tmp_path), "--refit", "none", "layer"]
    done = forks.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "prune_blocks.json").read_text())["rows"]
    assert [(x["method"], x["refit"]) for x in rows] == [
        ("wanda", "none"), ("wanda", "layer"), ("sparsegpt", "none"),
        ("sparsegpt", "layer"),
    ]  # fmt: skip
    assert all(row["peak_bytes"] > 0 < row["seconds"] for row in rows)
    assert all(("ok" in row) == (row["refit"] == "none") for row in rows)
