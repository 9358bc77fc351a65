"""kill -9, full disks and failing calls in `prune`: rows W02-W04, P08, section 6."""

import errno
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash.scenes import (
    KINDS,
    Scene,
    absolute,
    content,
    kill_rounds,
    make,
    save_seconds,
    until_it_ends_well,
)

from step_cli.cli import app as cli
from step_cli.formats.files import patched_copy
from step_cli.formats.huggingface import rewriter as directory_rewriter

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
needs_prlimit = pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit")


@pytest.mark.parametrize(
    ("kind", "rounds", "columns"),
    [
        ("file", 10, 40_000),
        *(pytest.param(k, 100, 60_000, marks=pytest.mark.slow) for k in KINDS),
    ],
)
def test_killed_while_it_writes_it_leaves_the_old_or_the_new(
    kind: str, rounds: int, columns: int, tmp_path: Path
) -> None:
    scene = make(tmp_path, kind, columns)
    tried = kill_rounds(scene, rounds, save_seconds(scene))
    print(f"{kind}: {rounds} of {tried} kills hit a living process")


def sizes_of(scene: Scene, many: bool) -> list[int]:
    largest = max(len(data) for data in scene.new.values())
    if many:
        return [largest * part // 64 for part in range(64)]
    if scene.kind == "torch":  # each run imports torch
        return [0, largest // 2]
    return [0, 1, 4096, largest // 2, largest - 1]


@needs_prlimit
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_limit_on_the_size_of_files_is_exit_5(
    kind: str, many: bool, tmp_path: Path
) -> None:
    scene = make(tmp_path, kind)
    for size in sizes_of(scene, many):
        done = scene.run(["prlimit", f"--fsize={size}"])
        assert done.returncode == 5, (size, done.stderr)
        assert len(re.findall("^error: ", done.stderr, re.M)) == 1
        # A torch file is read by a child process, which needs a temporary directory.
        words = "file too large|set TMPDIR" if kind == "torch" else "file too large"
        assert re.search(words, done.stderr, re.I)
        assert scene.target() == scene.old
        scene.check(follow=False)


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_a_full_disk_is_exit_5(tmp_path: Path) -> None:
    scene = make(tmp_path, "file", 20_000)  # 10 MB
    disk, told = tmp_path / "disk", tmp_path / "told"
    disk.mkdir()
    script = """
        mount -t tmpfs -o size=12m none disk || exit 77
        cp out.safetensors disk
        "$@"
        echo $? > told
        cmp out.safetensors disk/out.safetensors && ls -A disk >> told
    """
    words = [
        word.replace("out.safetensors", "disk/out.safetensors")
        for word in scene.command
    ]
    done = scene.run_words(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            *words,
        ]
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this kernel forbids user namespaces")
    assert told.read_text().split() == ["5", "out.safetensors"], done.stderr
    assert "no space left" in done.stderr.lower()


# Calls of Python's own; what C does by itself is for strace.
CALLS = {
    "fsync": (os, "fsync"),
    "rename": (os, "replace"),
    "mkdir": (os, "mkdir"),
    "chmod": (os, "chmod"),
    "write": (patched_copy._Counted, "write"),
    "copy": (directory_rewriter, "copy_file"),
}


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *((kind, errno.ENOSPC) for kind in KINDS),
        *(
            pytest.param(kind, number, marks=pytest.mark.slow)
            for kind in KINDS
            for number in (errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
        ),
    ],
)
def test_whichever_call_fails_the_old_target_stays(
    kind: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, failed = make(tmp_path, kind), 0
    for owner, name in CALLS.values():
        for nth, code in until_it_ends_well(
            lambda n, o=owner, a=name: failing_run(scene, o, a, n, number, monkeypatch)
        ):
            if code == 0:
                scene.check()
                break
            failed += 1
            assert code == 5, (name, nth)
            scene.check(follow=False)
            assert not scene.staging()
            if scene.target() != scene.old:  # fsync of the folder, after the rename
                assert name in ("fsync", "replace"), (name, nth)
                scene.restore()
    assert failed >= 6  # else the counter misses the calls


def failing_run(
    scene: Scene,
    owner: Any,
    name: str,
    nth: int,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Run in this process; the n-th call of ``owner.name`` raises."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counted)
        return cli.run(absolute(scene.words, scene.folder), io.StringIO())


def test_P08_a_shard_that_cannot_be_written_publishes_nothing(tmp_path: Path) -> None:
    scene = make(tmp_path, "directory")
    first, second = (len(scene.new[f"out/{k}.safetensors"]) for k in (0, 1))
    assert first == second
    # The second shard is made larger than the limit, the first is not.
    big = tmp_path / "in" / "1.safetensors"
    data = big.read_bytes()
    size = int.from_bytes(data[:8], "little")
    padded = (size + 4096).to_bytes(8, "little") + data[8 : 8 + size] + b" " * 4096
    big.write_bytes(padded + data[8 + size :])
    done = scene.run(["prlimit", f"--fsize={first + 100}"])
    assert done.returncode == 0, done.stderr  # the padding is not copied
    scene.restore()
    (tmp_path / "in" / "extra.bin").write_bytes(bytes(2 * first))
    done = scene.run(["prlimit", f"--fsize={first + 100}"])
    assert done.returncode == 5
    assert "extra.bin: file too large" in done.stderr
    assert scene.target() == scene.old


CHANGING = ("rename,renameat,renameat2", "fsync,fdatasync", "mkdir,mkdirat",
            "unlink,unlinkat")  # fmt: skip
FAILING = ("write,pwrite64", "fsync,fdatasync", "rename,renameat,renameat2",
           "mkdir,mkdirat")  # fmt: skip


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calls", CHANGING)
def test_killed_at_the_nth_call_it_leaves_the_old_or_the_new(
    kind: str, calls: str, tmp_path: Path
) -> None:
    scene = make(tmp_path, kind)
    base = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"]

    def attempt(nth: int) -> int:
        return scene.run(
            [*base, "-e", f"inject={calls}:signal=KILL:when={nth}"]
        ).returncode

    for nth, code in until_it_ends_well(attempt):
        # A torch file is read by a child: killed, it is an input that cannot be read.
        assert code in (0, -9, 137) or (kind == "torch" and code == 4), nth
        scene.check()


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calls", FAILING)
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES"])
@pytest.mark.parametrize("when", ["{}", "{}+"])
def test_the_nth_call_that_fails_is_exit_5(
    kind: str, calls: str, error: str, when: str, tmp_path: Path
) -> None:
    scene = make(tmp_path, kind)
    base = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"]

    def attempt(nth: int) -> int:
        inject = f"inject={calls}:error={error}:when={when.format(nth)}"
        return scene.run([*base, "-e", inject]).returncode

    for nth, code in until_it_ends_well(attempt):
        # What fails may be the pipe of the child that reads a torch file.
        assert code in (0, 5) or (kind == "torch" and code == 4), nth
        # The folder is flushed, and the report written, when OUT has its name; a torch
        # file has its name before its plan has one, which `check` allows for.
        after = calls.startswith(("fsync", "write"))
        after |= kind == "torch" and calls.startswith("rename")
        assert scene.target() == scene.old or code == 0 or after, nth
        scene.check()


@needs_strace
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_flushed_before_its_rename_and_the_folder_after(
    kind: str, tmp_path: Path
) -> None:
    scene, log = make(tmp_path, kind), tmp_path / "in.trace"
    calls = "write,fsync,fdatasync,rename,renameat,renameat2"
    traced = ["strace", "-f", "--seccomp-bpf", "-y", "-o", str(log)]
    done = scene.run([*traced, "-e", f"trace={calls}"])
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    log.unlink()
    renames = [k for k, line in enumerate(lines) if re.search(r" rename\w*\(", line)]
    assert len(renames) == (2 if kind == "torch" else 1)
    for place in renames:
        (staged,) = set(re.findall(r'"[^"]*?(\.out[^"/]*\.tmp-\d+)"', lines[place]))
        written = [k for k, x in enumerate(lines) if " write(" in x and staged in x]
        flushed = [k for k, x in enumerate(lines) if " fsync(" in x and staged in x]
        files = {re.search(r"<([^>]*)>", lines[k])[1] for k in written}  # type: ignore[index]
        for file in files:
            last = max(k for k in written if f"<{file}>" in lines[k])
            assert any(last < k < place for k in flushed if f"<{file}>" in lines[k])
        folder = f"<{tmp_path}>"
        assert any(
            k > place for k, x in enumerate(lines) if " fsync(" in x and folder in x
        )
    assert content(tmp_path, without="in") == scene.new


@needs_prlimit
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_few_open_files_are_never_a_bug(kind: str, tmp_path: Path) -> None:
    scene = make(tmp_path, kind)
    for most in range(4, 200):
        done = scene.run(["prlimit", f"--nofile={most}"])
        if most > 12:  # below, Python itself may not start
            assert done.returncode in (0, 4, 5, 6), (most, done.stderr)
        if done.returncode == 0:
            break
        scene.check(follow=False)
    assert done.returncode == 0
    assert scene.target() == scene.new
