"""Help, usage errors and checks start fast: they import no heavy library."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from step_cli.config.samples import sample_directory

CONFIG = sample_directory("digits-resnet") / "config.toml"
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "transformers", "matplotlib")


def heavy_imports(*arguments: object) -> set[str]:
    """Run a command in a fresh process; return which heavy libraries it imported."""
    script = (
        "import io, sys\n"
        "from step_cli.cli.app import run\n"
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
        ["--version"],
        ["--version", "-v"],
        ["train", "--help"],
        ["train", "no-such.toml"],
        ["export", "a", "b", "--to", "nothing"],
        ["verify-nm", "--no-such-option"],
        ["autoswitch-profile", "no-such-run"],
        ["train", str(CONFIG), "--set", "sparsity.recipe=stepp"],
        ["train", str(CONFIG), "--set", "model.source=sample:no"],
        ["train", str(CONFIG), "--set", "data.source=digit"],
        ["train", str(CONFIG), "--set", "data.source=./no-such-data"],
        ["train", str(CONFIG), "--recipes", "dense,stepp"],
        ["train", str(CONFIG), "--seeds", "3"],
        [
            "train",
            str(CONFIG),
            "--recipes",
            "step",
            "--patterns",
            "2:4",
            "--set",
            "sparsity.plan=plan.json",
        ],
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


def test_a_check_loads_no_report_but_its_own(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"fc.weight": np.zeros((4, 8), np.float32)}, path)
    script = (
        "import io, sys\n"
        "from step_cli.cli.app import run\n"
        "run(sys.argv[1:], io.StringIO())\n"
        "print(*[m for m in sys.modules if m.startswith('step_cli.reports.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "verify-nm", path],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {name.rpartition(".")[2] for name in done.stdout.split()}
    assert names == {"report", "verify_nm"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = f"import step_cli, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_prune_export_and_verify_from_python_import_nothing_heavy(
    tmp_path: Path,
) -> None:
    save_file({"fc.weight": np.ones((4, 8), np.float32)}, tmp_path / "m.safetensors")
    script = (
        "import step_cli, sys\n"
        "step_cli.prune('m.safetensors', 'p.safetensors')\n"
        "step_cli.export('p.safetensors', 'c.safetensors', to='compressed')\n"
        "assert step_cli.verify('c.safetensors').ok\n"
        "print([m for m in ('torch', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("library", "arguments", "extra"),
    [
        ("torch", ["train", CONFIG, "--run-dir", "{out}"], "train"),
        ("sklearn", ["train", CONFIG, "--run-dir", "{out}"], "samples"),
        ("matplotlib", ["autoswitch-profile", "{log}", "--plot", "{out}.svg"], "train"),
        ("onnxruntime", ["export", "{file}", "{out}.onnx", "--to", "onnx"], "export"),
    ],
)
def test_a_missing_library_is_exit_6_and_names_its_extra(
    tmp_path: Path, library: str, arguments: list[object], extra: str
) -> None:
    log, file = tmp_path / "variance.jsonl", tmp_path / "m.safetensors"
    log.write_text(
        '{"step": 1, "v_l1": 1, "v_l2": 1, "dv_l1": 1, "dv_log": 0, "d": 1}\n'
    )
    save_file({"fc.weight": np.zeros((4, 8), np.float32)}, file)
    names = {"out": tmp_path / "out", "log": log, "file": file}
    words = [str(word).format(**names) for word in arguments]
    script = (
        f"import io, sys; sys.modules[{library!r}] = None\n"
        "from step_cli.cli.app import run; sys.exit(run(sys.argv[1:], io.StringIO()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert f"step-cli[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {log.name, file.name}
