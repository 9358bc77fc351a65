"""Row V05: one bad group in a thousand million, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COLUMNS = 1 << 16
ROWS = 1 << 16  # 2**32 weights of 8 bits, 2**30 groups
DATA_LIMIT = 400 << 20  # bytes


@pytest.mark.slow
def test_V05_one_bad_group_in_a_thousand_million(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    size = ROWS * COLUMNS
    entry = {"dtype": "F8_E4M3", "shape": [ROWS, COLUMNS], "data_offsets": [0, size]}
    text = json.dumps({"fc.weight": entry}).encode()
    at = (ROWS - 3) * COLUMNS + 8
    limit = f"import resource as r; r.setrlimit(r.RLIMIT_DATA, ({DATA_LIMIT},) * 2)\n"
    code = f"{limit}from step_cli.cli.app import main; main()"
    words = [sys.executable, "-c", code, "verify-nm", str(path), "--json"]
    for nonzeros, wanted in ((2, 0), (3, 1)):
        with path.open("wb") as file:  # zeros are holes, which take no space
            file.write(len(text).to_bytes(8, "little") + text)
            start = file.tell()
            file.truncate(start + size)
            file.seek(start + at)
            file.write(b"\x01" * nonzeros)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == wanted, done.stderr
        (layer,) = json.loads(done.stdout)["checkpoints"][0]["layers"]
        assert layer["groups"] == 1 << 30
        assert layer["nonzeros"] == nonzeros
        first = {"index": [ROWS - 3, 8], "nonzeros": 3}
        assert layer["first_violation"] == (first if wanted else None)
