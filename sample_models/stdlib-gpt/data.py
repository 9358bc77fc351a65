"""Python's own standard library as text: the bytes of its top-level modules."""

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset, TensorSplit
from step_cli.errors import InputError

LENGTH = 128  # bytes of a sample
HELD_OUT = 10  # every tenth file, by name, is held out
HELD_OUT_SAMPLES = 512  # evenly spaced, so that measuring them takes a second


def load(section: DataSection) -> Dataset:
    """Samples of 128 bytes; the label of each byte is the one that follows it."""
    files = text_files()
    held_out = files[::HELD_OUT]
    return Dataset(
        train=samples([file for file in files if file not in held_out]),
        held_out=samples(held_out, HELD_OUT_SAMPLES),
    )


def text_files() -> list[Path]:
    """The modules, by name; without the one that describes this very build."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [path for path in library.glob("*.py") if "sysconfigdata" not in path.name]
    if len(found) < 100:
        raise InputError("not the source of a whole standard library", file=library)
    return sorted(found)


def samples(files: list[Path], most: int | None = None) -> TensorSplit:
    """Cut the files, joined, into samples; ``most`` of them, evenly spaced."""
    text = b"".join(file.read_bytes() for file in files)
    values = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    count = (len(values) - 1) // LENGTH
    chosen = torch.arange(count)
    if most is not None and most < count:
        chosen = torch.linspace(0, count - 1, most).long()
    return TensorSplit(
        {"input_ids": rows(values[:-1], count)[chosen]},
        rows(values[1:], count)[chosen],
    )


def rows(values: Tensor, count: int) -> Tensor:
    """``[count, 128]``; what does not fill a row at the end is left out."""
    return values[: count * LENGTH].view(count, LENGTH)
