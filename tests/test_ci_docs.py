"""What README and docs/ci.md show of `verify-nm` is what it really prints."""

import re
import shlex
import sys
from pathlib import Path

import forks
import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]
# A block that shows commands, each after a `$`, and what they print.
BLOCK = re.compile(r"^```\n(\$ step-cli verify-nm .*?)^```", re.M | re.S)


def sparse(shape: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kept = rng.random((shape[0], shape[1] // 4, 4)).argsort(-1).argsort(-1) < 2
    return (rng.normal(size=kept.shape) * kept).reshape(shape).astype(np.float16)


def write_examples(folder: Path) -> None:
    """The files of the examples."""
    ones = np.ones
    arrays = {
        "embed.weight": ones((32, 16), np.float16),
        "fc1.weight": sparse((32, 16), 1),
        "fc1.bias": ones(32, np.float16),
        "fc2.weight": sparse((8, 32), 2),
        "fc2.bias": ones(8, np.float16),
        "norm.weight": ones(16, np.float16),
    }
    save_file(arrays, folder / "good.safetensors")
    group = arrays["fc2.weight"][3, 4:8]
    group[np.flatnonzero(group == 0)[0]] = 0.5
    save_file(arrays, folder / "bad.safetensors")
    codes = np.full((2, 64), 0x1F2E3D4C, np.int32)  # eight codes of four bits each
    mixed = {
        "router.weight": sparse((8, 16), 4),
        "up.qweight": codes,
        "up.scales": ones((1, 64), np.float16),
    }
    save_file(mixed, folder / "mixed.safetensors")
    turned = np.ascontiguousarray(sparse((16, 32), 3).T)
    bias = ones(32, np.float16)
    save_file({"fc.weight": turned, "fc.bias": bias}, folder / "turned.safetensors")


def blocks() -> list[tuple[str, str]]:
    found = []
    for path in (ROOT / "README.md", ROOT / "docs" / "ci.md"):
        blocks = BLOCK.findall(path.read_text())
        found += [(path.name, block) for block in blocks if "$ echo" in block]
    return found


def replayed(block: str, folder: Path) -> str:
    """The block as it would be if its commands were run now."""
    lines, code = [], 0
    for line in block.splitlines():
        if line == "$ echo $?":
            lines += [line, str(code)]
        elif line.startswith("$ "):
            words = shlex.split(line.removeprefix("$ step-cli "))
            done = forks.run(
                [sys.executable, "-m", "step_cli", *words],
                torch=False,
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            code = done.returncode
            lines += [line, *(row.rstrip() for row in done.stdout.splitlines())]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("name", "block"), blocks(), ids=lambda value: value[:40])
def test_an_example_prints_what_is_shown(
    name: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(variable, raising=False)
    write_examples(tmp_path)
    assert replayed(block, tmp_path) == block


def test_both_pages_show_a_pass_and_a_failure() -> None:
    for name in ("README.md", "ci.md"):
        shown = "".join(block for page, block in blocks() if page == name)
        assert "$ echo $?\n0\n" in shown and "$ echo $?\n1\n" in shown
