"""Publish an ONNX file, and its data file where the weights are too large for one.

The data file gets a name that nothing uses, the model file is renamed last, and only
then is the data file of the model that was replaced removed.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from step_cli.errors import InputError, OutputError
from step_cli.formats.files.staged import flush, staged
from step_cli.formats.onnx.nodes import load_graph


@dataclass(frozen=True)
class OnnxPlace:
    """Where to write: the model file, and a name beside it for large weights."""

    path: Path
    data_name: str

    @property
    def data(self) -> Path:
        """The data file, which need not exist."""
        return self.path.with_name(self.data_name)

    def size_bytes(self) -> int:
        """Size of what was written."""
        files = [self.path, self.data]
        return sum(file.stat().st_size for file in files if file.exists())


@contextmanager
def staged_onnx(
    target: Path, *, force: bool, inputs: Sequence[Path]
) -> Iterator[OnnxPlace]:
    """Yield where to write a model; it appears complete when the block ends well.

    Raises:
        OutputError: As `staged`, or the data file's name is taken.
    """
    final = Path(os.path.realpath(target))
    replaced = _data_files(final) if force else []
    published: Path | None = None
    written: Path | None = None
    try:
        with staged(target, force=force, inputs=inputs) as path:
            _sweep(final)
            place = OnnxPlace(path, f"{path.name}.data")
            written = place.data
            yield place
            if written.exists():
                free = _free_name(final, force=force)
                point_data_at(path, free.name)
                flush(written)
                _publish_data(written, free)
                published = free  # ours from here on
    except BaseException:
        if published is not None:
            published.unlink(missing_ok=True)
        raise
    finally:
        if written is not None:
            written.unlink(missing_ok=True)
    for old in replaced:
        if old != published:
            old.unlink(missing_ok=True)


def _publish_data(written: Path, published: Path) -> None:
    """Give the data file its final name, and keep the other until the model has its.

    Two names of one file tell the next run whose it is, should this one die in between.
    """
    try:
        os.link(written, published)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(written, published)


def _sweep(final: Path) -> None:
    """Remove the data files of runs that died: the target's lock is ours alone."""
    pattern = re.compile(re.escape(f".{final.name}.tmp-") + r"[0-9]{1,10}\.data")
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


def _free_name(final: Path, *, force: bool) -> Path:
    path = final.with_name(f"{final.name}.data")
    if not path.exists():
        return path
    if not force:
        raise OutputError(
            "exists and is needed for the weights; use --force", file=path
        )
    count = 1
    while (path := final.with_name(f"{final.name}.{count}.data")).exists():
        count += 1
    return path


def _data_files(final: Path) -> list[Path]:
    """The data files of an existing model that this module has named."""
    if not final.is_file():
        return []
    names = set()
    with suppress(InputError):  # what is replaced need not be a model
        for tensor in load_graph(final).initializer:
            names |= {e.value for e in tensor.external_data if e.key == "location"}
    own = (f"{final.name}.", ".data")
    return [
        final.with_name(name)
        for name in sorted(names)
        if name.startswith(own[0]) and name.endswith(own[1]) and Path(name).name == name
    ]


def point_data_at(path: Path, data_name: str) -> None:
    """Have a model file look for its weights in another file beside it."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data_name
    path.write_bytes(model.SerializeToString(deterministic=True))
