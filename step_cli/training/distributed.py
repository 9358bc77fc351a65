"""The processes that train one model together: joining them, and what they exchange.

Tensors of the host are exchanged by gloo, tensors of GPUs by NCCL. Nothing here assumes
that all are on one machine.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from step_cli import torchrun
from step_cli.config.train import TrainSection
from step_cli.errors import MissingError, UsageError

Kind = Literal["none", "ddp", "fsdp"]
T = TypeVar("T")
GLOO = re.compile(r"gloo|pair closure|closed by peer")  # it raises plain RuntimeErrors


@dataclass(frozen=True)
class Processes:
    """All processes of a run, as one of them sees them.

    Attributes:
        device: Where this process computes.
        kind: ``none``: there is but one; ``ddp``: each holds the whole model; ``fsdp``:
            each holds a share of it.
        rank: The number of this process, from 0.
        size: How many there are.
    """

    device: torch.device
    kind: Kind = "none"
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place, on its device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def begin_max(self, number: int) -> Callable[[], int]:
        """Begin to find the largest number of all; what is returned waits for it."""
        largest = torch.tensor(number)
        work = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True)

        def wait() -> int:
            work.wait()
            return int(largest)

        return wait

    def from_first(self, value: T) -> T:
        """What the first process gives; the others wait for it."""
        given = [value]
        if self.size > 1:
            dist.broadcast_object_list(given, src=0)
        return given[0]

    def wait(self) -> None:
        """Wait for all: where one ends its process, `torchrun` ends the others."""
        self.gathered(None)

    def gathered(self, value: T) -> list[T]:
        """What each process gives, in the order of their numbers."""
        given = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(given, value)
        return given


def default_device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = torchrun.local_rank()
    if number >= torch.cuda.device_count():
        raise MissingError(
            f"process {number} of this machine finds {torch.cuda.device_count()} GPUs: "
            "start as many processes as there are (torchrun --nproc-per-node)"
        )
    return torch.device("cuda", number)


@contextlib.contextmanager
def process_group(train: TrainSection) -> Iterator[Processes]:
    """Join the other processes of this run, until the block ends.

    Raises:
        UsageError: ``parallel`` or ``batch_size`` does not fit how it was started.
        MissingError: There is no GPU for this process, or the others are not there.
    """
    kind, device = _kind(train), default_device()
    if kind == "none":
        yield Processes(device)
        return
    processes = Processes(device, kind, torchrun.rank(), torchrun.count())
    if train.batch_size % processes.size:
        raise UsageError(
            f"train.batch_size {train.batch_size} is that of all processes together: "
            f"it does not divide among {processes.size}"
        )
    with _translate_lost_peers():
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
        yield processes
    # After an error the others may not answer any more, and leaving would wait.
    dist.destroy_process_group()


def _kind(train: TrainSection) -> Kind:
    if train.parallel in ("ddp", "fsdp") and not torchrun.launched():
        raise MissingError(
            f"train.parallel = '{train.parallel}' needs processes to train together: "
            "start with torchrun --nproc-per-node N -m step_cli train ..."
        )
    if train.parallel != "auto":
        if train.parallel == "none" and torchrun.count() > 1:
            raise UsageError(
                f"train.parallel = 'none', but {torchrun.count()} processes were "
                "started; use ddp or fsdp"
            )
        return train.parallel
    return "ddp" if torchrun.count() > 1 else "none"


@contextlib.contextmanager
def _translate_lost_peers() -> Iterator[None]:
    """Raise in one line that other processes do not answer."""
    try:
        yield
    except Exception as error:
        lost = _lost(error)
        if lost is None:
            raise
        said = (str(lost).strip().splitlines() or [""])[0]
        raise MissingError(
            "another process of this run ended or cannot be reached; go on with "
            f"--resume ({said})"
        ) from error


def _lost(error: BaseException | None) -> BaseException | None:
    """The error of a communication that failed, among what led to ``error``."""
    while error is not None:
        plain = isinstance(error, RuntimeError) and GLOO.search(str(error))
        if plain or isinstance(error, dist.DistError):
            return error
        error = error.__cause__ or error.__context__
    return None
