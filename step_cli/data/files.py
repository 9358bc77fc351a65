"""Which files of a path are trained on and which are held out, by their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from step_cli.config.data import DataSection
from step_cli.data.batch import Batch, Dataset, RandomSplit, Split
from step_cli.data.kind import files_in, role_of
from step_cli.errors import InputError, UsageError
from step_cli.formats.files.mapped_file import is_directory

SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")  # train-00003-of-00007
NO_HELD_OUT = (
    "has no file named valid, validation, val or dev to measure metrics on; give "
    "data.held_out, a path or a share such as 0.1"
)


@dataclass(frozen=True)
class SplitFiles:
    """What is read for each split; no ``held_out`` means a share of ``train``."""

    train: list[Path]
    held_out: list[Path]


def split_files(section: DataSection, suffixes: Sequence[str]) -> SplitFiles:
    """The files of tables or texts.

    Raises:
        InputError: There are none, or it is not clear which.
        UsageError: What is held out is trained on.
    """
    path = Path(section.source)
    if is_directory(path):
        files = [file for file in _files(path) if file.suffix in suffixes]
        train = _of_role("train", files, path) or _unnamed(files, suffixes, path)
        held_out = [] if section.held_out else _of_role("held-out", files, path)
        if not held_out and section.held_out is None:
            raise InputError(NO_HELD_OUT, file=path)
    else:
        train, held_out = [path], []
        if section.held_out is None:
            raise InputError(
                "is one file; give data.held_out, a path or a share such as 0.1",
                file=path,
            )
    if isinstance(section.held_out, str):
        held_out = _given(Path(section.held_out), suffixes)
        if set(held_out) & set(train):
            raise UsageError(f"data.held_out: {held_out[0]} is trained on as well")
    return SplitFiles(train, held_out)


def _files(directory: Path) -> list[Path]:
    inner = directory / "data"  # where the hub's tables are
    return [*files_in(directory), *(files_in(inner) if inner.is_dir() else [])]


def _of_role(role: str, files: list[Path], directory: Path) -> list[Path]:
    """The files of one role: one, or the shards of one."""
    chosen = [file for file in files if role_of(file) == role]
    kinds = {SHARD.sub("", file.stem) + file.suffix: file for file in chosen}
    if len(kinds) > 1:
        names = ", ".join(sorted(file.name for file in kinds.values())[:3])
        key = "data.source" if role == "train" else "data.held_out"
        raise InputError(
            f"{names} are different data; say in {key} which to read", file=directory
        )
    return chosen


def _unnamed(files: list[Path], suffixes: Sequence[str], path: Path) -> list[Path]:
    """Files whose names say nothing: then all of them are trained on."""
    chosen = [file for file in files if role_of(file) is None]
    if not chosen:
        raise InputError(f"has no {', '.join(suffixes)} file to train on", file=path)
    return chosen


def _given(path: Path, suffixes: Sequence[str]) -> list[Path]:
    if not is_directory(path):
        return [path]
    found = [file for file in files_in(path) if file.suffix in suffixes]
    if not found:
        raise InputError(f"has no {', '.join(suffixes)} file", file=path)
    return found


@dataclass(frozen=True)
class Part:
    """Some samples of a split: ``index`` says which, int64 ``[n]``."""

    split: Split
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor) -> Batch:
        return self.split[self.index[index]]

    def draw(self, index: Tensor, generator: Generator) -> Batch:
        """See `RandomSplit`."""
        if isinstance(self.split, RandomSplit):
            return self.split.draw(self.index[index], generator)
        return self[index]


def set_aside(split: Split, share: float, path: Path) -> Dataset:
    """Hold out a share of ``split``, evenly spaced, and train on the rest.

    Raises:
        InputError: One of the two would be empty.
    """
    count = round(len(split) * share)
    if not 0 < count < len(split):
        raise InputError(
            f"data.held_out {share} of {len(split)} samples is {count}; nothing would "
            "be left to train on or to measure",
            file=path,
        )
    places = (torch.arange(count) * len(split) + len(split) // 2) // count
    held_out = torch.zeros(len(split), dtype=torch.bool)
    held_out[places] = True
    numbers = torch.arange(len(split))
    return Dataset(Part(split, numbers[~held_out]), Part(split, numbers[held_out]))
