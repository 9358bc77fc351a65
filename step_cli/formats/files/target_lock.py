"""One writer for each target: a lock of the kernel, which dies with its holder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from step_cli.errors import OutputError


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
