"""Checks a step-cli that was installed from a wheel, without torch.

    python tests/release/installed.py

To be run by the Python that it is installed for, in an environment that holds nothing
else. It needs no pytest: a release is tested as users get it.
"""

import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import step_cli

CHECKOUT = Path(__file__).parents[2]
COMPILED_FOR = ("x86_64", "aarch64")
TOO_MUCH = ("torch", "onnxruntime", "tensorrt", "transformers", "matplotlib")


def step(*words: object) -> "subprocess.CompletedProcess[str]":
    """Run the installed console script."""
    script = Path(sys.executable).with_name("step-cli")
    return subprocess.run(
        [str(script), *map(str, words)], capture_output=True, text=True, check=False
    )


def check_what_is_installed() -> None:
    place = Path(step_cli.__file__).parent
    assert place != CHECKOUT / "step_cli", "the checkout is imported, not the wheel"
    there = [name for name in TOO_MUCH if importlib.util.find_spec(name)]
    assert not there, f"not a clean environment: {there}"
    assert resources.files("step_cli").joinpath("py.typed").is_file()
    assert (place / "sample_models" / "digits-resnet" / "config.toml").is_file()
    told = json.loads(step("--version", "--json").stdout)
    used = told["kernels"]["instructions"]
    expected = platform.system() == "Linux" and platform.machine() in COMPILED_FOR
    assert (used is not None) == expected, told["kernels"]
    assert "torch not installed" in step("--version", "-v").stdout
    print(f"step-cli {told['version']}, kernels {used or 'numpy'}")


def check_what_it_does(folder: Path) -> None:
    dense, sparse = folder / "dense.safetensors", folder / "sparse.safetensors"
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float16)
    save_file({"fc.weight": weight}, dense)
    expect(1, "verify-nm", dense)
    expect(0, "prune", dense, sparse)
    expect(0, "verify-nm", sparse, "--strict")
    small, again = folder / "small.safetensors", folder / "again.safetensors"
    expect(0, "export", sparse, small, "--to", "compressed")
    expect(0, "export", small, again, "--to", "dense")
    kept = load_file(sparse)["fc.weight"]
    assert np.array_equal(load_file(again)["fc.weight"], kept)
    assert (np.count_nonzero(kept.reshape(-1, 4), axis=1) == 2).all()
    kept[3, :4] = 1
    save_file({"fc.weight": kept}, sparse)
    expect(1, "verify-nm", sparse)
    (folder / "m.pt").write_bytes(b"PK\x03\x04")
    expect(6, "verify-nm", folder / "m.pt")  # torch reads it, and is not there


def expect(code: int, *words: object) -> None:
    done = step(*words)
    assert done.returncode == code, (code, words, done.stdout, done.stderr)


if __name__ == "__main__":
    check_what_is_installed()
    with tempfile.TemporaryDirectory() as folder:
        check_what_it_does(Path(folder))
    print("ok")
