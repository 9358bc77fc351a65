"""Whether a path may become an output, before any work is done; and its lock."""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from step_cli.errors import OutputError, UsageError
from step_cli.formats.files.mapped_file import reason_of


def checked_target(
    target: Path, *, force: bool, inputs: Sequence[Path] = (), directory: bool = False
) -> Path:
    """The path that will really be written: behind a link, its end.

    Args:
        target: As the user gave it.
        force: Whether an existing target may be replaced.
        inputs: What is being read: files and directories.
        directory: Whether a directory is to be written.

    Raises:
        UsageError: The target is an input, is inside one, or holds one.
        OutputError: It exists without ``force``, is of the other kind or read-only,
            or its directory is missing or not writable.
    """
    final = Path(os.path.realpath(target))
    for source in inputs:
        refuse_input(target, source)
    try:
        _refuse_existing(target, final, force=force, directory=directory)
    except OSError as error:
        raise OutputError(reason_of(error), file=target) from None
    _refuse_parent(target, final.parent)
    return final


def refuse_input(target: Path, source: Path) -> None:
    """Refuse to write ``target`` where that would change or delete ``source``.

    Raises:
        UsageError: The target is the input, is inside it, or holds it.
    """
    final, real = (Path(os.path.realpath(path)) for path in (target, source))
    if final == real or _same_file(final, real):
        raise UsageError("output is the input, name another", file=target)
    if real.is_dir() and final.is_relative_to(real):
        raise UsageError(f"output is inside the input {source}", file=target)
    if real.is_relative_to(final):
        raise UsageError(f"output holds the input {source}, name another", file=target)
    if final.is_file() and real.is_dir():
        for entry in real.iterdir():
            if _same_file(final, entry):
                raise UsageError(f"output is the input {entry}", file=target)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _refuse_existing(
    target: Path, final: Path, *, force: bool, directory: bool
) -> None:
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputError("exists, use --force to replace it", file=target)
    if not os.path.lexists(final):
        return
    mode = os.lstat(final).st_mode
    if directory != stat.S_ISDIR(mode):
        found = "a directory" if stat.S_ISDIR(mode) else "a file"
        wanted = "a directory" if directory else "a file"
        raise OutputError(f"is {found}, and {wanted} is to be written", file=target)
    if directory:
        _refuse_precious(target, final)
    elif not stat.S_ISREG(mode):
        raise OutputError("is not a regular file", file=target)
    elif not mode & 0o222:
        raise OutputError("is read-only, make it writable or name another", file=target)


def _refuse_precious(target: Path, final: Path) -> None:
    """Replacing a directory deletes all that is in it."""
    working, home = Path(os.path.realpath(".")), Path(os.path.expanduser("~"))
    if any(place.is_relative_to(final) for place in (working, home)):
        raise OutputError("is the working or home directory", file=target)
    if os.path.lexists(final / ".git") or os.path.ismount(final):
        raise OutputError("is a repository or a mount point", file=target)


def _refuse_parent(target: Path, parent: Path) -> None:
    if not parent.is_dir():
        raise OutputError(f"no such directory: {parent}, create it", file=target)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"the directory {parent} is not writable", file=target)


@contextmanager
def locked(target: Path, *, shown: Path) -> Iterator[None]:
    """Hold the lock of ``target``, a file ``.NAME.lock`` beside it, gone afterwards.

    Args:
        target: What is to be written.
        shown: How the user named it.

    Raises:
        OutputError: Another process holds it.
    """
    path = target.with_name(f".{target.name}.lock")
    descriptor = _acquire(path, shown)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}".encode(), 0)
        yield
    finally:
        # Removed while held: who waits for the old inode sees that it is gone.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, shown: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise OutputError(
                f"is being written by {holder}; wait for it, or stop it", file=shown
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the path leads to the file that was locked, and not to a later one."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    number, _, host = (
        os.pread(descriptor, 300, 0).decode(errors="replace").partition(" ")
    )
    return f"process {number} on {host}" if host else "another process"
