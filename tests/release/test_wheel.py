"""A wheel as users get it: in an environment of its own, without torch, with types."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE = """
from step_cli import verify
reveal_type(verify("model.safetensors").ok)
"""


def run(*words: object, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_works_without_torch_and_is_typed(tmp_path: Path) -> None:
    """Its dependencies come from where pip gets them."""
    pytest.importorskip("hatchling")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    constraints = ("-c", ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", "--quiet", *constraints, wheel)
    said = run(python, "-E", ROOT / "tests/release/installed.py", cwd=tmp_path)
    assert said.endswith("ok\n")
    (tmp_path / "use.py").write_text(USE)
    mypy = (sys.executable, "-E", "-m", "mypy", "--strict", "--python-executable")
    said = run(*mypy, python, "use.py", cwd=tmp_path)
    assert 'Revealed type is "bool"' in said.replace("builtins.", "")
