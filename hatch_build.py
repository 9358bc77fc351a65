"""Compiles `step_cli/nm/kernels.c` when installing, if gcc or clang is there."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("step_cli/nm")
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-Wno-psabi")
LEVELS = {  # by machine, the sets of instructions; elsewhere NumPy does the work
    "x86_64": {
        "avx512": (
            "-DVECTOR=64",
            *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        ),
        "avx2": ("-DVECTOR=32", "-mavx2"),
    },
    "aarch64": {"neon": ("-DVECTOR=16",)},
}
TRY = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).step_kernels_version()"


class KernelsHook(BuildHookInterface[Any]):
    """Adds the compiled kernels to a wheel, which then is for one platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, for an editable install into the tree itself."""
        folder = Path(self.root, FOLDER)
        self._folder = tempfile.TemporaryDirectory()
        editable = version == "editable"
        for old in folder.glob("_kernels*.so") if editable else ():
            old.unlink()
        try:
            made = compile_kernels(folder / "kernels.c", Path(self._folder.name))
            for library in made if editable else ():
                beside = folder / f"{library.stem}.new.so"
                shutil.copyfile(library, beside)
                os.replace(beside, folder / library.name)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip()
            self.app.display_warning(f"the kernels are not compiled: {said[:500]}")
            return
        if made and not editable:
            for library in made:
                inside = FOLDER / library.name
                build_data["force_include"][str(library)] = str(inside)
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{tag}"

    def finalize(
        self, version: str, build_data: dict[str, Any], artifact_path: str
    ) -> None:
        """Remove what was compiled for the wheel."""
        self._folder.cleanup()


def compile_kernels(source: Path, folder: Path) -> list[Path]:
    """Compile the kernels into ``folder`` and try them.

    Raises:
        OSError: There is no compiler.
        ValueError: ``CC`` cannot be read.
        subprocess.CalledProcessError: The compiler fails, or what it made.
    """
    levels = LEVELS.get(platform.machine(), {})
    compiler = shlex.split(os.environ.get("CC") or "cc")
    made = [folder / f"_kernels_{level}.so" for level in levels]
    for library, flags in zip(made, levels.values(), strict=True):
        command = [*compiler, *FLAGS, *flags, str(source), "-o", str(library)]
        _run(command)
        _run([sys.executable, "-c", TRY, str(library)])
    return made


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
