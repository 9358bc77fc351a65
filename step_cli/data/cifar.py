"""CIFAR-10 and CIFAR-100 in their binary versions.

Records of 3 x 32 x 32 bytes, red, green and blue planes, after one byte (CIFAR-10: the
class) or two (CIFAR-100: coarse class, then the fine one, which is the label). Source:
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from step_cli.config.data import DataSection
from step_cli.data.batch import Batch, Dataset
from step_cli.data.images import normalized
from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import Bytes, map_file

SIDE = 32
PIXELS = 3 * SIDE * SIDE
PADDING = 4  # black pixels around an image that is cropped at random
# Of the training images, as in the recipes of He et al. and their successors.
MEAN_10, STD_10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MEAN_100, STD_100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


@dataclass(frozen=True)
class CifarSplit:
    """Records in mapped files; pixels are read when needed.

    Attributes:
        files: Of each file its records, uint8 ``[records, bytes]``.
        mean: Of each colour, from 0 to 1, subtracted from its pixels.
        std: What the difference is divided by.
        augment: Whether training sees random crops and flips.
    """

    files: tuple[Bytes, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool

    def __len__(self) -> int:
        return sum(map(len, self.files))

    @property
    def labels(self) -> Tensor:
        """int64 ``[n]``; the rest of the files is not read for it."""
        found = np.concatenate([file[:, -PIXELS - 1] for file in self.files])
        return torch.from_numpy(found).long()

    def __getitem__(self, index: Tensor) -> Batch:
        return self._batch(index, None)

    def draw(self, index: Tensor, generator: torch.Generator) -> Batch:
        """The samples as training sees them."""
        return self._batch(index, generator if self.augment else None)

    def _batch(self, index: Tensor, generator: torch.Generator | None) -> Batch:
        records = torch.from_numpy(self._records(index.numpy()))
        pixels = records[:, -PIXELS:].view(-1, 3, SIDE, SIDE)
        if generator is not None:
            pixels = crop_and_flip(pixels, PADDING, generator)
        labels = records[:, -PIXELS - 1].long()
        return Batch({"pixel_values": normalized(pixels, self.mean, self.std)}, labels)

    def _records(self, index: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Bytes:
        ends = np.cumsum([len(file) for file in self.files])
        which = np.searchsorted(ends, index, side="right")
        begins = ends - [len(file) for file in self.files]
        rows = [self.files[w][i - begins[w]] for w, i in zip(which, index, strict=True)]
        return np.stack(rows)


def crop_and_flip(pixels: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to ``padding`` pixels, and mirror every second one.

    Source: He et al., CVPR 2016, section 4.2.

    Args:
        pixels: ``[n, colours, height, width]``.
        padding: Zeros around an image, of which a window of its size is cut.
        generator: What is drawn from.
    """
    count, _, height, width = pixels.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)  # [n, height]
    across = torch.arange(width)
    columns = left + torch.where(flip, across.flip(0), across)  # [n, width]
    padded = functional.pad(pixels, (padding,) * 4)
    images = torch.arange(count)[:, None, None]
    # Indexed dimensions come first: [n, height, width, colours].
    cut = padded[images, :, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2).contiguous()


def load_cifar10(section: DataSection) -> Dataset:
    """``data_batch_*.bin`` to train on, ``test_batch.bin`` held out.

    Raises:
        InputError: A file is missing, cut short, or has an impossible label.
    """
    directory, augment = Path(section.source), section.augment is not False
    train = sorted(directory.glob("data_batch_*.bin"))
    if not train:
        raise InputError("has no data_batch_1.bin to train on", file=directory)
    files = tuple(_records(path, 1, 10) for path in train)
    held_out = (_records(directory / "test_batch.bin", 1, 10),)
    return Dataset(
        CifarSplit(files, MEAN_10, STD_10, augment),
        CifarSplit(held_out, MEAN_10, STD_10, False),
    )


def load_cifar100(section: DataSection) -> Dataset:
    """``train.bin`` to train on, ``test.bin`` held out; labels are the fine classes.

    Raises:
        InputError: As for `load_cifar10`.
    """
    directory, augment = Path(section.source), section.augment is not False
    train, held_out = (
        _records(directory / name, 2, 100) for name in ("train.bin", "test.bin")
    )
    return Dataset(
        CifarSplit((train,), MEAN_100, STD_100, augment),
        CifarSplit((held_out,), MEAN_100, STD_100, False),
    )


def _records(path: Path, label_bytes: int, classes: int) -> Bytes:
    """The records of a file, ``[records, bytes]``, mapped."""
    file, size = map_file(path), label_bytes + PIXELS
    if file.size % size:
        raise InputError(
            f"{file.size} bytes are not a whole number of records of {size} bytes: cut "
            "short, or not a binary CIFAR file; get it again",
            file=path,
        )
    records = file.data.reshape(-1, size)
    wrong = np.flatnonzero(records[:, label_bytes - 1] >= classes)
    if wrong.size:
        label = records[wrong[0], label_bytes - 1]
        raise InputError(
            f"record {wrong[0]}: label {label} is none of 0 to {classes - 1}; not a "
            f"binary CIFAR-{classes} file, or damaged",
            file=path,
        )
    return records
