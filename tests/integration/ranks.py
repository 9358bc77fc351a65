"""Two processes that stay alive between tests, as importing torch takes seconds."""

import datetime
import io
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2
PATIENCE_S = 60


class Ranks:
    """A gloo process group in which functions can be run."""

    def __init__(self, meeting: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(WORLD):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, str(meeting), there), daemon=True
            )
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        patience_s: float = PATIENCE_S,
    ) -> list[Any]:
        """What ``function(*arguments)`` returns on each rank."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(patience_s), f"rank {rank} hangs"
            file = io.BytesIO(pipe.recv_bytes())
            answers.append(torch.load(file, weights_only=False))
        failed = [answer.trace for answer in answers if isinstance(answer, _Failed)]
        assert not failed, failed[0]
        return answers

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()


class _Failed:
    def __init__(self, trace: str) -> None:
        self.trace = trace


def _serve(rank: int, meeting: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=PATIENCE_S),
    )
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        try:
            answer = function(*arguments)
        except BaseException:
            answer = _Failed(traceback.format_exc())
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        pipe.send_bytes(buffer.getvalue())
    dist.destroy_process_group()
