"""Which process of a run this is, by `torchrun`, and which of them prints.

All processes of a run mostly write to one terminal. Results are printed by the first of
them, rank 0. Where one fails the others fail after it, as their partner is gone, and
their messages would help nobody: only the first to fail prints one. Which one that was
is decided in the store that `torchrun` keeps, which outlives every process.
"""

import contextlib
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(
    seconds=10
)  # for the store; without it each process prints its error


def launched() -> bool:
    """Whether `torchrun`, or what sets the same variables, has started this process."""
    return all(os.environ.get(name) for name in NEEDED)


def rank() -> int:
    """The number of this process among all of its run, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """The number of this process among those of its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def count() -> int:
    """How many processes the run has."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def failed_before(code: int) -> int | None:
    """Record for the other processes that this one fails.

    Args:
        code: Its exit code.

    Returns:
        The exit code of the process that failed first and printed why; None if it is
        this one.
    """
    if count() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        store = _store()
        if store.add("failures", 1) == 1:
            store.set("exit", str(code))
            return None
        return int(store.get("exit"))
    except (ImportError, RuntimeError, ValueError):
        return None


def leave(code: int) -> NoReturn:
    """End the process without the steps by which Python ends.

    A thread of gloo may still hold the tensors of the last exchange; where it lets them
    go while Python ends, the process aborts and `torchrun` ends the others
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _store() -> "Store":
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=PATIENCE)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"step_cli/{attempt}", store)
