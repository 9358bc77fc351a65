"""Compiles `step_cli/core/kernels.c` when installing, if there is a compiler."""

import ctypes
import os
import platform
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("step_cli/core/kernels.c")
LIBRARY = SOURCE.with_name("_kernels.so")
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-Wno-psabi")


class KernelsHook(BuildHookInterface[Any]):
    """Adds the compiled kernels to a wheel, which then is for one platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, for an editable install into the tree itself."""
        source, library = Path(self.root, SOURCE), Path(self.root, LIBRARY)
        self._folder = tempfile.TemporaryDirectory()
        if version != "editable":
            library = Path(self._folder.name, LIBRARY.name)
            build_data["force_include"][str(library)] = str(LIBRARY)
        try:
            compile_kernels(source, library)
        except (OSError, subprocess.CalledProcessError) as error:
            build_data["force_include"].pop(str(library), None)
            self.app.display_warning(f"the kernels are not compiled: {error}")
            return
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"

    def finalize(
        self, version: str, build_data: dict[str, Any], artifact_path: str
    ) -> None:
        """Remove what was compiled for the wheel."""
        self._folder.cleanup()


def compile_kernels(source: Path, library: Path) -> None:
    """Compile and try the kernels; nothing is left of a failure.

    Raises:
        OSError: There is no compiler, or what it made cannot be loaded.
        subprocess.CalledProcessError: It fails.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    made = library.with_name(f"{library.name}.new")
    # Not every compiler and C library can pick a function by the processor.
    ways = [["-DCLONES"], []] if platform.machine() == "x86_64" else [[]]
    try:
        for way in ways:
            try:
                command = [*compiler, *FLAGS, *way, str(source), "-o", str(made)]
                subprocess.run(command, check=True, capture_output=True)
                ctypes.CDLL(str(made))
                break
            except (OSError, subprocess.CalledProcessError):
                if way is ways[-1]:
                    raise
        os.replace(made, library)
    finally:
        made.unlink(missing_ok=True)
