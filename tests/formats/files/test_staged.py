import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from step_cli.errors import OutputError, StepError, UsageError
from step_cli.formats.files import staged as module
from step_cli.formats.files.staged import staged


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(target: Path, text: str, **options: object) -> None:
    with staged(target, **options) as path:  # type: ignore[arg-type]
        path.write_text(text)


def write_directory(target: Path, text: str, *, force: bool = False) -> None:
    with staged(target, force=force, directory=True) as path:
        (path / "inner").mkdir()
        (path / "inner" / "file").write_text(text)


def refused(kind: type[StepError], words: str, target: Path, **options: object) -> None:
    before = entries(target.parent) if target.parent.exists() else None
    with pytest.raises(kind, match=words):
        write(target, "never", **options)
    if before is not None:
        assert entries(target.parent) == before


def test_a_file_appears_complete_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with staged(target) as path:
        path.write_text("new")
        assert path.parent == tmp_path and not target.exists()
        assert path.name == f".out.bin.tmp-{os.getpid()}"
    assert target.read_text() == "new" and entries(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_files_have_the_mode_of_any_new_file(umask: int, tmp_path: Path) -> None:
    old = os.umask(umask)
    try:
        with staged(tmp_path / "f") as path:
            path.touch(mode=0o600)  # as some libraries do
        write_directory(tmp_path / "d", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o777 & ~umask


def test_force_keeps_the_mode_of_what_it_replaces(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_text("old")
    target.chmod(0o640)
    write(target, "new", force=True)
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o640)


def test_an_exception_leaves_the_old_target_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_text("old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), staged(target, force=True) as path:
            path.write_text("half")
            raise error
    assert target.read_text() == "old" and entries(tmp_path) == ["f"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "d"
    write_directory(target, "old")
    (target / "stale").touch()
    write_directory(target, "new", force=True)
    assert entries(target) == ["inner"] and entries(tmp_path) == ["d"]
    assert (target / "inner" / "file").read_text() == "new"


def test_without_the_exchange_the_old_directory_steps_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(new: Path, old: Path) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(module, "_exchange", lacking)
    write_directory(tmp_path / "d", "old")
    write_directory(tmp_path / "d", "new", force=True)
    assert (tmp_path / "d" / "inner" / "file").read_text() == "new"
    assert entries(tmp_path) == ["d"]


def test_a_c_library_without_the_call_is_a_lack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())
    with pytest.raises(OSError) as caught:
        module._exchange(Path("a"), Path("b"))
    assert caught.value.errno == errno.ENOSYS


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_leftovers_of_dead_processes_are_swept_own_names_only(tmp_path: Path) -> None:
    gone = dead_process()
    swept = tmp_path / f".f.tmp-{gone}"
    kept = [f".f.tmp-{os.getppid()}", f".g.tmp-{gone}", ".f.tmp-x", f"f.tmp-{gone}"]
    swept.mkdir()
    (swept / "part").touch()
    for name in kept:
        (tmp_path / name).touch()
    write(tmp_path / "f", "new")
    assert entries(tmp_path) == sorted(["f", *kept])


def test_a_swap_cut_in_the_middle_is_undone(tmp_path: Path) -> None:
    aside = tmp_path / f".d.old-{dead_process()}"
    aside.mkdir()
    (aside / "old").touch()
    with (
        pytest.raises(OutputError, match="exists"),
        staged(tmp_path / "d", directory=True),
    ):
        pass
    assert entries(tmp_path) == ["d"] and entries(tmp_path / "d") == ["old"]


def test_an_existing_target_needs_force(tmp_path: Path) -> None:
    for name in ("f", "d"):
        target = tmp_path / name
        target.touch() if name == "f" else target.mkdir()
        refused(OutputError, "exists, use --force", target)
    dangling = tmp_path / "link"
    dangling.symlink_to("nowhere")
    refused(OutputError, "exists, use --force", dangling)


def test_a_link_stays_and_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "f"
    real.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(real)
    write(link, "new", force=True)
    assert link.is_symlink() and real.read_text() == "new"
    assert entries(tmp_path) == ["link", "real"] and entries(real.parent) == ["f"]


def test_what_must_not_be_replaced_is_refused_even_with_force(tmp_path: Path) -> None:
    folder, file = tmp_path / "d", tmp_path / "f"
    folder.mkdir()
    file.touch()
    file.chmod(0o444)
    refused(OutputError, "is a directory", folder, force=True)
    refused(OutputError, "read-only", file, force=True)
    refused(OutputError, "is a file", file, force=True, directory=True)
    refused(OutputError, "no such directory", tmp_path / "none" / "f")
    refused(OutputError, "working or home", Path.cwd(), force=True, directory=True)
    (folder / ".git").mkdir()
    refused(OutputError, "repository", folder, force=True, directory=True)


def test_the_output_may_not_be_an_input(tmp_path: Path) -> None:
    folder, file = tmp_path / "d", tmp_path / "f"
    folder.mkdir()
    file.touch()
    inner = folder / "x"
    inner.touch()
    os.link(file, tmp_path / "hard")
    os.link(inner, tmp_path / "hard to inner")
    (tmp_path / "soft").symlink_to(file)
    for target in (file, tmp_path / "hard", tmp_path / "soft"):
        refused(UsageError, "output is the input", target, inputs=[file], force=True)
    for target in (folder, inner, folder / "new", tmp_path / "hard to inner"):
        refused(UsageError, "output is", target, inputs=[folder], force=True)
    refused(UsageError, "holds the input", folder, inputs=[inner], force=True)


HOLD = """
import sys
from pathlib import Path
from step_cli.formats.files.staged import staged
with staged(Path(sys.argv[1])) as path:
    path.write_text("theirs")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    target = tmp_path / "f"
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"ready\n"
        refused(OutputError, f"process {child.pid} on ", target)
        child.kill()
    assert not target.exists()
    write(target, "ours")  # the lock died with its holder
    assert target.read_text() == "ours" and entries(tmp_path) == ["f"]


def test_space_is_asked_for_before_the_start(tmp_path: Path) -> None:
    refused(OutputError, "no space left: needs", tmp_path / "f", size_bytes=2**60)


def test_errors_of_the_system_are_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(number: int):  # type: ignore[no-untyped-def]
        def call(*args: object) -> None:
            raise OSError(number, os.strerror(number))

        return call

    for name in ("fsync", "replace", "chmod"):
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            with monkeypatch.context() as patch:
                patch.setattr(module.os, name, failing(number))
                words = os.strerror(number).lower()
                with (
                    pytest.raises(OutputError) as caught,
                    staged(tmp_path / "f") as path,
                ):
                    path.touch(0o600)  # so that its mode has to be set
                assert caught.value.message.lower() == words
                assert caught.value.file == str(tmp_path / "f")
            assert entries(tmp_path) == []


def test_files_are_flushed_before_they_get_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushing(descriptor: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renaming(old: Path, new: Path) -> None:
        calls.append("rename")
        replace(old, new)

    monkeypatch.setattr(module.os, "fsync", flushing)
    monkeypatch.setattr(module.os, "replace", renaming)
    write_directory(tmp_path / "d", "x")
    staging = f".d.tmp-{os.getpid()}"
    assert calls == ["file", "inner", staging, "rename", tmp_path.name]
