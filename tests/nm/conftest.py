"""The compiled loops and NumPy's, one after the other."""

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from step_cli.nm import kernels

NEEDED = {
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2"},
    "neon": {"asimd"},  # of aarch64
}


def should_be_there(level: str) -> bool:
    """Whether a compiler is here, and a processor that has the instructions."""
    if platform.system() != "Linux" or shutil.which("cc") is None:
        return False
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return NEEDED[level] <= flags


def skip_or_fail(*levels: str) -> None:
    """Skip where nothing can be compiled; where it could be, the install failed."""
    assert not any(map(should_be_there, levels)), "not compiled: run make again"
    pytest.skip(f"no compiler at install, or no processor for {', '.join(levels)}")


@pytest.fixture(params=["compiled", "numpy"], scope="module")
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of a module with the compiled loops, and without."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(kernels, "_library", lambda: None)
        elif kernels._library() is None:
            skip_or_fail(*kernels.LIBRARIES)
        yield


@pytest.fixture(params=kernels.LIBRARIES, scope="module")
def level(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of a module for each set of instructions that this processor has."""
    with pytest.MonkeyPatch.context() as patch:
        only = {request.param: kernels.LIBRARIES[request.param]}
        patch.setattr(kernels, "LIBRARIES", only)
        kernels._library.cache_clear()
        if kernels._library() is None:
            skip_or_fail(request.param)
        yield
    kernels._library.cache_clear()
