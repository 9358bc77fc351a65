"""Publish an ONNX file, and its data files where the weights are outside of it.

A data file gets a name that nothing uses, the model file is renamed last, and only
then are the data files of the model that was replaced removed.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count, islice, takewhile
from pathlib import Path

from step_cli.errors import OutputError
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.files.staged import flush, staged
from step_cli.formats.onnx.rewriter import external_locations, relocate_data


@dataclass(frozen=True)
class OnnxPlace:
    """Where to write a model: its file, and names beside it for its weights."""

    path: Path

    def data_file(self, number: int = 0) -> Path:
        """A data file, which need not exist; they are numbered from 0."""
        return _data_file(self.path, number)

    @property
    def data_name(self) -> str:
        """The name of the first of them."""
        return self.data_file().name

    @property
    def data_files(self) -> list[Path]:
        """Those that exist."""
        return list(takewhile(Path.exists, map(self.data_file, count())))

    def size_bytes(self) -> int:
        """Of all files, once they are written."""
        return sum(path.stat().st_size for path in (self.path, *self.data_files))


def _data_file(path: Path, number: int) -> Path:
    tail = f".{number}.data" if number else ".data"
    return path.with_name(path.name + tail)


@contextmanager
def staged_onnx(
    target: Path, *, force: bool, inputs: Sequence[Path], size_bytes: int = 0
) -> Iterator[OnnxPlace]:
    """Yield where to write a model; it appears complete when the block ends well.

    Raises:
        OutputError: As `staged`, or a data file's name is taken.
    """
    final = Path(os.path.realpath(target))
    replaced = _data_files(final) if force else []
    written: list[Path] = []
    published: list[Path] = []
    place: OnnxPlace | None = None
    try:
        with staged(target, force=force, inputs=inputs, size_bytes=size_bytes) as path:
            _sweep(final)
            place = OnnxPlace(path)
            yield place
            written = place.data_files
            free = free_names(target, len(written), force=force)
            renamed = dict(zip(written, free, strict=True))
            relocate_data(path, {old.name: new.name for old, new in renamed.items()})
            for old, new in renamed.items():
                flush(old)
                _publish_data(old, new)
                published.append(new)  # ours from here on
    except BaseException:
        for file in published:
            file.unlink(missing_ok=True)
        raise
    finally:
        if place is not None:
            for file in written or place.data_files:
                file.unlink(missing_ok=True)
    for file in replaced:
        if file not in published:
            file.unlink(missing_ok=True)


def free_names(target: Path, number: int, *, force: bool) -> list[Path]:
    """Names for the data files of a model.

    Raises:
        OutputError: The first of them are taken, and ``force`` is not given.
    """
    final = Path(os.path.realpath(target))
    names = (_data_file(final, place) for place in count())
    if force:
        return list(islice((path for path in names if not path.exists()), number))
    found = list(islice(names, number))
    for path in found:
        if path.exists():
            raise OutputError(
                "exists and is needed for the weights; use --force", file=path
            )
    return found


def _publish_data(written: Path, published: Path) -> None:
    """Give the data file its final name, and keep the other until the model has its.

    By the two names of one file the next run knows it, should this one die in between.
    """
    try:
        os.link(written, published)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(written, published)


def _sweep(final: Path) -> None:
    """Remove the data files of runs that died: the target's lock is ours alone."""
    pattern = re.compile(
        re.escape(f".{final.name}.tmp-")
        + r"[0-9]{1,10}((\.[0-9]{1,10})?\.data|\.relocated)"
    )
    entries = sorted(final.parent.iterdir())
    stale = [entry for entry in entries if pattern.fullmatch(entry.name)]
    if not stale:
        return
    public = re.compile(re.escape(final.name) + r"(\.[0-9]{1,10})?\.data")
    needed = _data_files(final)
    for entry in entries:
        ours = public.fullmatch(entry.name) and any(map(entry.samefile, stale))
        if ours and entry not in needed:
            entry.unlink()
    for entry in stale:
        entry.unlink(missing_ok=True)


def _data_files(final: Path) -> list[Path]:
    """The data files of an existing model that this module has named."""
    names: list[str] = []
    with suppress(Exception):  # what is replaced need not be a model
        names = external_locations(map_file(final))
    own = (f"{final.name}.", ".data")
    return [
        final.with_name(name)
        for name in sorted(names)
        if name.startswith(own[0]) and name.endswith(own[1]) and Path(name).name == name
    ]
