"""What enters and leaves the blocks of a model, on the disk."""

from torch import Tensor

from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.formats.pytorch.arrays import mapped_tensor, to_array


class BlockInputs:
    """What enters a block for each batch, on the disk, and what leaves it."""

    def __init__(self) -> None:
        self._next: list[Tensor] = []
        self.current: list[Tensor] = []
        self.file: ArraysOnDisk

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def into(self, file: ArraysOnDisk) -> None:
        """Store what leaves a block in this file."""
        self.file = file

    def add(self, main: Tensor) -> None:
        """Store what leaves a block."""
        self._next.append(mapped_tensor(self.file.add(to_array(main))))

    def next_block(self) -> None:
        """Take what left one block as the inputs of the next."""
        self.current, self._next = self._next, []
        self.file.close()
