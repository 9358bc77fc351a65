"""What `hatch_build.py` compiles on installing, and what it does when it cannot."""

import importlib.util
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import step_cli
from step_cli.nm import kernels
from step_cli.nm.dtypes import dtype_info

ROOT = Path(step_cli.__file__).parent.parent
HOOK = ROOT / "hatch_build.py"


def load_hook() -> Any:
    found = importlib.util.spec_from_file_location("hatch_build", HOOK)
    assert found is not None and found.loader is not None
    hook = importlib.util.module_from_spec(found)
    found.loader.exec_module(hook)
    return hook


NAMES = {
    f"_kernels_{level}.so" for level in load_hook().LEVELS.get(platform.machine(), ())
}


class Builder:
    """What hatchling tells the hook, and hears from it."""

    def __init__(self, root: Path) -> None:
        self.hook = load_hook().KernelsHook(
            str(root), {}, None, None, str(root), "wheel", None
        )
        self.said: list[str] = []
        type(self.hook).app = property(lambda _: self)

    def display_warning(self, text: str) -> None:
        self.said.append(text)

    def run(self, version: str) -> dict[str, Any]:
        data: dict[str, Any] = {"force_include": {}}
        self.hook.initialize(version, data)
        self.hook.finalize(version, data, "")
        return data


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    nm = tmp_path / "tree" / "step_cli" / "nm"
    nm.mkdir(parents=True)
    for name in ("kernels.c", "kernels_by_width.h"):
        shutil.copy(ROOT / "step_cli" / "nm" / name, nm)
    return nm


needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or not NAMES,
    reason="needs a C compiler on x86-64 or aarch64",
)


def test_all_that_is_compiled_anywhere_is_looked_for() -> None:
    levels = {level for each in load_hook().LEVELS.values() for level in each}
    assert levels == set(kernels.LIBRARIES)


@needs_compiler
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compiling_warns_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    monkeypatch.setenv("CC", compiler)
    hook = load_hook()
    monkeypatch.setattr(hook, "FLAGS", (*hook.FLAGS, "-Wall", "-Wextra", "-Werror"))
    made = hook.compile_kernels(Path(kernels.__file__).with_name("kernels.c"), tmp_path)
    assert sorted(made) == sorted(tmp_path.iterdir())
    assert {path.name for path in made} == NAMES


@needs_compiler
def test_a_wheel_is_of_the_platform_only_with_compiled_kernels(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tree.iterdir())
    data = Builder(tree.parents[1]).run("standard")
    inside = {f"step_cli/nm/{name}" for name in NAMES}
    assert set(data["force_include"].values()) == inside
    assert data["pure_python"] is False and data["tag"].startswith("py3-none-linux")
    for compiler in ("no-such-compiler", "false", "gcc '"):
        monkeypatch.setenv("CC", compiler)
        builder = Builder(tree.parents[1])
        assert builder.run("standard") == {"force_include": {}}
        assert len(builder.said) == 1 and "not compiled" in builder.said[0]
    assert sorted(tree.iterdir()) == before


@needs_compiler
def test_an_editable_install_keeps_no_kernels_of_an_older_source(tree: Path) -> None:
    Builder(tree.parents[1]).run("editable")
    assert {path.name for path in tree.glob("*.so")} == NAMES
    (tree / "kernels.c").write_text("int x(")
    builder = Builder(tree.parents[1])
    builder.run("editable")
    assert not list(tree.glob("*.so*"))
    assert "error" in builder.said[0]  # the compiler's own words


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A place for the library, from which it will be loaded next."""
    monkeypatch.setattr(kernels, "LIBRARIES", {"any": tmp_path / "_kernels.so"})
    kernels._library.cache_clear()
    yield tmp_path / "_kernels.so"
    monkeypatch.undo()
    kernels._library.cache_clear()


def test_without_the_library_nothing_is_found(unloaded: Path) -> None:
    codes, bits = np.zeros((1, 4, 1), np.uint16), dtype_info("float16")
    for left in (None, b"", b"not a library"):
        if left is not None:
            unloaded.write_bytes(left)
        kernels._library.cache_clear()
        assert kernels.count(codes, 2, bits) is None
        assert kernels.prune(codes, codes, 2, bits, "float16") is None
        assert kernels.checksum(codes) is None


@pytest.mark.usefixtures("level")
def test_a_library_of_another_version_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kernels._library() is not None
    kernels._library.cache_clear()
    monkeypatch.setattr(kernels, "VERSION", kernels.VERSION + 1)
    assert kernels._library() is None
    kernels._library.cache_clear()


@pytest.mark.parametrize(
    ("installed", "runs", "said"),
    [
        ([], None, "none were compiled for "),
        (["avx2"], "avx2", "the fastest that are installed"),
        (["avx512", "avx2"], "avx2", "this processor does not run avx512"),
        (["avx512"], None, "this processor runs none of those installed: avx512"),
    ],
)
def test_why_the_kernels_in_use_are_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: list[str],
    runs: str | None,
    said: str,
) -> None:
    places = {level: tmp_path / f"_kernels_{level}.so" for level in ("avx512", "avx2")}
    for level in installed:
        places[level].touch()
    monkeypatch.setattr(kernels, "LIBRARIES", places)
    monkeypatch.setattr(kernels, "instructions", lambda: runs)
    assert kernels.why().startswith(said)
