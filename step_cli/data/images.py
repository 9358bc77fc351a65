"""A folder of images, a subfolder per class: ImageNet and its like.

Only names are in memory; images are decoded when needed, in threads.
"""

import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from step_cli.config.data import DataSection
from step_cli.data.batch import Batch, Dataset
from step_cli.data.files import HELD_OUT, NO_HELD_OUT, entries_in, files_in, folders_in
from step_cli.data.held_out import set_aside
from step_cli.data.names import alike
from step_cli.data.pixels import read_image
from step_cli.errors import InputError, UsageError, few, nearest
from step_cli.formats.files.mapped_file import Bytes, is_directory

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SIDE = 224  # pixels, unless configured otherwise
CENTRE = 0.875  # share of the shorter side that is kept without augmentation
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
# Random crops as in Szegedy et al., CVPR 2015, section 6.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10  # crops drawn before the centre is taken
THREADS = 16

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels


@dataclass(frozen=True)
class ImageSplit:
    """Images by path.

    Attributes:
        paths: Of each image.
        labels: int64 ``[n]``.
        side: Pixels of a side of what the model sees.
        augment: Whether training sees random crops and flips.
    """

    paths: list[Path]
    labels: Tensor
    side: int
    augment: bool

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Tensor) -> Batch:
        return self._batch(index, [None] * len(index))

    def draw(self, index: Tensor, generator: Generator) -> Batch:
        """The samples as training sees them."""
        if not self.augment:
            return self[index]
        drawn = torch.rand(len(index), 2 * TRIES + 3, generator=generator).tolist()
        return self._batch(index, drawn)

    def _batch(self, index: Tensor, drawn: list[list[float] | None]) -> Batch:
        paths = [self.paths[i] for i in index.tolist()]
        images = list(_threads().map(self._pixels, paths, drawn))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Batch(
            {"pixel_values": normalized(pixels, MEAN, STD)}, self.labels[index]
        )

    def _pixels(self, path: Path, drawn: list[float] | None) -> Bytes:
        """One image, uint8 ``[side, side, 3]``."""
        from PIL import Image

        image = read_image(path)
        box = _centre(image.size) if drawn is None else _crop(image.size, drawn)
        flip = drawn is not None and drawn[-1] < 0.5
        size, bicubic = (self.side, self.side), Image.Resampling.BICUBIC
        pixels = np.asarray(image.resize(size, bicubic, box=box))
        return pixels[:, ::-1] if flip else pixels


def load_images(section: DataSection) -> Dataset:
    """``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``; classes in the order of names.

    Raises:
        InputError: A folder is missing or has no images, or a class is not trained on.
    """
    path = Path(section.source)
    side, augment = section.image_size or SIDE, section.augment is not False
    root = path / "train" if (path / "train").is_dir() else path
    classes = _classes(root)
    if isinstance(section.held_out, float):
        train = _split(root, classes, side, augment)
        return set_aside(train, section.held_out, path, classes)
    folder = _held_out_folder(section, path)
    for unknown in _classes(folder):
        if unknown not in classes:
            raise InputError(
                f"class {unknown!r} is not among the {len(classes)} of {root}"
                f"{alike(unknown, classes) or nearest(unknown, classes)}",
                file=folder,
            )
    if folder.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            f"data.held_out: {folder} is trained on as well, as all that is in {root}"
        )
    train = _split(root, classes, side, augment)
    return Dataset(train, _split(folder, classes, side, False), classes)


def _held_out_folder(section: DataSection, path: Path) -> Path:
    """The folder that is given, else the one that is named for it."""
    if section.held_out is not None:
        return Path(str(section.held_out))
    named = [path / name for name in sorted(HELD_OUT) if (path / name).is_dir()]
    if len(named) != 1:
        raise InputError(NO_HELD_OUT.replace("file", "folder"), file=path)
    return named[0]


def normalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes ``[n, 3, h, w]`` as fp32, each colour with ``mean`` 0 and ``std`` 1."""
    shape = (1, len(mean), 1, 1)
    scaled = pixels.float() / 255
    return (scaled - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def _classes(root: Path) -> tuple[str, ...]:
    if not is_directory(root):
        raise InputError("is no folder", file=root)
    found = tuple(folder.name for folder in folders_in(root))
    if not found:
        raise InputError("has no folders, which are the classes", file=root)
    return found


def _split(root: Path, classes: Sequence[str], side: int, augment: bool) -> ImageSplit:
    paths: list[Path] = []
    labels: list[int] = []
    others = files_in(root)
    for label, name in enumerate(classes):
        folder = root / name
        if not folder.is_dir():
            continue  # a held-out class may be missing
        entries = entries_in(folder)
        images = [
            f for f, inner in entries if f.suffix.lower() in SUFFIXES and not inner
        ]
        if not images:
            raise InputError(
                f"has no {', '.join(SUFFIXES)} file, and each folder is a class; add "
                "images, or remove the folder",
                file=folder,
            )
        others += sorted({path for path, _ in entries} - {*images})
        paths += images
        labels += [label] * len(images)
    if others:
        names = few([str(other.relative_to(root)) for other in others])
        logger.warning(
            "%s: left out %d entries that are no images in the folder of a class by "
            "their names: %s", root, len(others), names,
        )  # fmt: skip
    return ImageSplit(paths, torch.tensor(labels), side, augment)


def _centre(size: tuple[int, int]) -> Box:
    side = CENTRE * min(size)
    left, upper = (size[0] - side) / 2, (size[1] - side) / 2
    return left, upper, left + side, upper + side


def _crop(size: tuple[int, int], drawn: list[float]) -> Box:
    """The first of the drawn crops that fits into the image, else its centre."""
    width, height = size
    low, high = (math.log(ratio) for ratio in RATIO)
    for area, ratio in zip(drawn[:TRIES], drawn[TRIES : 2 * TRIES], strict=True):
        pixels = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
        shape = math.exp(low + ratio * (high - low))
        across, down = math.sqrt(pixels * shape), math.sqrt(pixels / shape)
        if across <= width and down <= height:
            left = drawn[-3] * (width - across)
            upper = drawn[-2] * (height - down)
            return left, upper, left + across, upper + down
    return _centre(size)


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
