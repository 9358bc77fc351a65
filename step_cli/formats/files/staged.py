"""Outputs that appear complete or not at all.

    with staged(Path("out.safetensors"), force=False, inputs=[source]) as path:
        ...write a file at `path`, read it back, raise if it is wrong...

The block writes to a name beside the target. When it ends well, the files are flushed
to the disk and renamed; when it raises, they are removed, and the target is as before.
"""

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from step_cli.errors import OutputError
from step_cli.formats.files.mapped_file import in_units, reason_of
from step_cli.formats.files.target import checked_target, locked

_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
# Answers of kernels and file systems that lack the exchange.
_LACKING = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


@contextmanager
def staged(
    target: Path,
    *,
    force: bool = False,
    inputs: Sequence[Path] = (),
    directory: bool = False,
    size_bytes: int = 0,
) -> Iterator[Path]:
    """Yield the path to write to; it becomes ``target`` when the block ends well.

    Args:
        target: The file or directory to make.
        force: Whether an existing target may be replaced; its mode is kept then.
        inputs: What is being read; the target may be none of them, nor inside one.
        directory: Whether the target is a directory; the path then exists, empty.
        size_bytes: Free space that is needed before the start.

    Raises:
        UsageError: The target is an input.
        OutputError: It exists without ``force``, another process is writing it, or
            the system refuses a write, in this block too.
    """
    final = checked_target(target, force=force, inputs=inputs, directory=directory)
    path = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    try:
        with locked(final, shown=target):
            repair(final)
            checked_target(target, force=force, inputs=inputs, directory=directory)
            _check_space(final, size_bytes)
            try:
                if directory:
                    path.mkdir()
                yield path
                publish(path, final)
            finally:
                _remove(path)
    except OSError as error:
        where = str(error.filename or target).replace(str(path), str(target))
        raise OutputError(reason_of(error), file=where) from error


def publish(path: Path, final: Path) -> None:
    """Flush ``path`` to the disk and give it its final name."""
    make_ready(path, final)
    if path.is_dir() and final.exists():
        _exchange_directories(path, final)
    else:
        os.replace(path, final)
    _flush_one(final.parent)


def _exchange_directories(new: Path, old: Path) -> None:
    """Put ``new`` where ``old`` is, and ``old`` where ``new`` was.

    Without the exchange there is a moment with neither: ``old`` then stands beside as
    ``.NAME.old-PID``, from where `staged` brings it back on the next run.
    """
    try:
        _exchange(new, old)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        aside = old.with_name(f".{old.name}.old-{os.getpid()}")
        os.rename(old, aside)
        try:
            os.rename(new, old)
        except OSError:
            os.rename(aside, old)
            raise
        os.rename(aside, new)


def _exchange(one: Path, other: Path) -> None:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # no Linux, or an old C library
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    failed = renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE
    )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def make_ready(path: Path, final: Path) -> None:
    """Do all that can fail before ``path`` gets its final name."""
    _set_mode(path, final)
    flush(path)


def flush(path: Path) -> None:
    """Have a file, or a directory and all in it, written to the disk."""
    if path.is_dir() and not path.is_symlink():
        for entry in sorted(path.iterdir()):
            if not entry.is_symlink():
                flush(entry)
    _flush_one(path)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_mode(path: Path, final: Path) -> None:
    """The old target's mode, else what any other program would give a new file."""
    if final.exists():
        mode = final.stat().st_mode & 0o7777
    else:
        umask = os.umask(0)
        os.umask(umask)
        mode = (0o777 if path.is_dir() else 0o666) & ~umask
    if path.stat().st_mode & 0o7777 != mode:
        os.chmod(path, mode)


def repair(final: Path) -> None:
    """Finish or undo what a process that died here has left; own names only."""
    pattern = re.compile(re.escape(f".{final.name}.") + r"(tmp|old)-([0-9]{1,10})")
    for entry in sorted(final.parent.iterdir()):
        match = pattern.fullmatch(entry.name)
        if match is None or _alive(int(match[2])):
            continue
        if match[1] == "old" and not final.exists():
            os.rename(entry, final)  # it died between the two renames of an exchange
        else:
            _remove(entry)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False  # a number used again: this process has written nothing yet
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_space(final: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(final.parent).free
    if free < size_bytes:
        raise OutputError(
            f"no space left: needs {in_units(size_bytes)}, {in_units(free)} free",
            file=final,
        )
