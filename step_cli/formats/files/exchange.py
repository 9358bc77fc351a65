"""Exchange two directories in one step, where the kernel and file system can."""

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
# Answers of kernels and file systems that lack the exchange.
_LACKING = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


def swap_directories(new: Path, old: Path) -> None:
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
