"""Help, usage errors and checks start fast: they import no heavy library."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "transformers", "matplotlib")


def heavy_imports(*arguments: object) -> set[str]:
    """Run a command in a fresh process; return which heavy libraries it imported."""
    script = (
        "import io, sys\n"
        "from step_cli.cli import run\n"
        "run(sys.argv[1:], io.StringIO())\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["train", "no-such.toml"],
        ["export", "a", "b", "--to", "nothing"],
        ["verify-nm", "--no-such-option"],
        ["autoswitch-profile", "no-such-run"],
    ],
)
def test_help_and_usage_errors_import_nothing_heavy(arguments: list[str]) -> None:
    assert heavy_imports(*arguments) == set()


def test_a_wrong_config_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[train]\nstpes = 3\n")
    assert heavy_imports("train", config) == set()


def test_checking_safetensors_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"fc.weight": np.zeros((4, 8), np.float32)}, path)
    assert heavy_imports("verify-nm", path) == set()


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = f"import step_cli, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
