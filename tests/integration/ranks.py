"""Two processes that stay alive between tests, as they take long to meet."""

import datetime
import io
import multiprocessing
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import forks
import torch
import torch.distributed as dist

WORLD = 2
TESTS = str(Path(__file__).parents[1])
SERVE = "import sys; sys.path.insert(0, sys.argv[1]); from integration import ranks; "
SERVE += "ranks.serve(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
PATIENCE_S = 600  # only a hang is to be found: a busy machine may take minutes


class Ranks:
    """A gloo process group in which functions can be run.

    Args:
        folder: Where the processes meet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._meetings = folder, 0
        self._pipes: list[Connection] = []
        self._processes: list[forks.Popen] = []

    def _start(self) -> None:
        """Start the processes, and wait until they have met."""
        self._meetings += 1
        meeting = self._folder / f"meeting-{self._meetings}"
        for rank in range(WORLD):
            here, there = multiprocessing.Pipe()
            words = [TESTS, str(rank), str(meeting), str(there.fileno())]
            process = forks.Popen(
                [sys.executable, "-c", SERVE, *words], pass_fds=[there.fileno()]
            )
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        self._answers()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``function(*arguments)`` returns on each rank."""
        if not self._pipes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))
        return self._answers()

    def _answers(self) -> list[Any]:
        answers: dict[int, Any] = {}
        try:
            while len(answers) < WORLD:
                due = [p for n, p in enumerate(self._pipes) if n not in answers]
                ready = wait(due, PATIENCE_S)
                assert ready, f"of {WORLD} ranks, only {sorted(answers)} answer"
                for pipe in ready:
                    answer = _received(pipe)
                    # The others may wait for this one for long.
                    assert not isinstance(answer, _Failed), answer.trace
                    answers[self._pipes.index(pipe)] = answer
        except BaseException:
            self.close()  # what they answer next would be of this question
            raise
        return [answers[rank] for rank in range(WORLD)]

    def close(self) -> None:
        """End the processes; the next question starts new ones."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._pipes, self._processes = [], []


class _Failed:
    def __init__(self, trace: str) -> None:
        self.trace = trace


def serve(rank: int, meeting: str, descriptor: int) -> None:
    """Run what comes through a pipe, until it is closed."""
    pipe = Connection(descriptor)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=PATIENCE_S),
    )
    _answer(pipe, None)  # ready
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        try:
            answer = function(*arguments)
        except BaseException:
            answer = _Failed(traceback.format_exc())
        _answer(pipe, answer)
    dist.destroy_process_group()


def _received(pipe: Any) -> Any:
    return torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)


def _answer(pipe: Connection, answer: Any) -> None:
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    pipe.send_bytes(buffer.getvalue())
