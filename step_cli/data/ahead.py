"""The next batch is read while the present one is trained on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from step_cli.data.batch import Batch


class ReadAhead:
    """Batches by number, each the same whether it was read ahead or not.

    Args:
        read: Gives the batch of a number, by arithmetic alone; it is called in another
            thread, and once for a batch that may never be asked for.
    """

    def __init__(self, read: Callable[[int], Batch]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._next: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __getitem__(self, index: int) -> Batch:
        ahead, self._next = self._next, None
        if ahead is not None and ahead[0] == index:
            batch = ahead[1].result()
        else:
            batch = self._read(index)
        self._next = index + 1, self._thread.submit(self._read, index + 1)
        return batch
