"""Memory that runs out, in one line: torch's own message is a page."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from step_cli.config.train import TrainSection
from step_cli.errors import MissingError

# On a CPU torch raises a plain RuntimeError.
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.I)
WANTED = re.compile(r"(?:tried|Unable) to allocate ([\d.]+ ?\w+)")
FREE = re.compile(r"of which ([\d.]+ ?\w+) is free")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a device or the host has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


@contextmanager
def translate_memory_errors(train: TrainSection) -> Iterator[None]:
    """Report how much was needed and free, and what needs less.

    Raises:
        MissingError: Memory ran out in the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        wanted, free = WANTED.search(str(error)), FREE.search(str(error))
        known = [f"{wanted[1]} wanted"] if wanted else []
        known += [f"{free[1]} free"] if free else []
        figures = f" ({', '.join(known)})" if known else ""
        raise MissingError(
            f"not enough memory{figures} for train.batch_size {train.batch_size}: "
            "lower it and raise grad_accumulation, or use parallel = 'fsdp'"
        ) from error
