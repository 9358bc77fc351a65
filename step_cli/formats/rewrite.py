"""Write a checkpoint anew, in its own format, with some tensors changed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from step_cli.errors import InputError, UsageError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.content import format_named, suffix_of
from step_cli.formats.files.mapped_file import MappedFile, map_file
from step_cli.formats.files.patched_copy import (
    Change,
    copy_patched,
    in_file,
    refuse_shared,
    splice_of,
)
from step_cli.formats.files.staged import make_ready, staged
from step_cli.formats.files.target import checked_target
from step_cli.formats.huggingface.reader import open_directory
from step_cli.formats.huggingface.rewriter import (
    rewrite_directory,
    rewrite_run,
    size_bytes,
    warn_of_other_weights,
)
from step_cli.formats.onnx.publish import free_names, staged_onnx
from step_cli.formats.onnx.reader import open_onnx
from step_cli.formats.onnx.rewriter import (
    external_locations,
    rewrite_onnx,
    sha1_of,
    with_checksums,
)
from step_cli.formats.plan import digests, plan_json
from step_cli.formats.pytorch.reader import open_torch, plan_path
from step_cli.formats.pytorch.rewriter import rewrite_torch
from step_cli.formats.safetensors.reader import open_safetensors
from step_cli.formats.safetensors.rewriter import rewrite_safetensors
from step_cli.nm.pattern import Plan

DIRECTORIES = ("huggingface", "run")

Check = Callable[[Checkpoint], None]


@dataclass(frozen=True)
class Rewriter:
    """Where a checkpoint is to be written, and what may stand in the way.

    Attributes:
        source: What was read.
        target: The file or directory to make.
        force: Whether an existing one may be replaced.
        inputs: Further files that were read.
    """

    source: Checkpoint
    target: Path
    force: bool = False
    inputs: tuple[Path, ...] = ()

    def check(self) -> None:
        """Find what would stop `write`, before any work is done.

        Raises:
            UsageError: The target is an input, or of another format.
            InputError: Checkpoints of this format cannot be rewritten.
            OutputError: The target exists without ``force``, or cannot be written.
        """
        source = self.source
        if source.compressed:
            raise InputError(
                "is compressed; turn it back first: step-cli export IN OUT --to dense",
                file=source.path,
            )
        directory = source.format in DIRECTORIES
        named = format_named(self.target)
        if named != (None if directory else source.format):
            expected = (
                "a directory" if directory else f"a {suffix_of(source.path)} file"
            )
            raise UsageError(
                f"OUT keeps the format of CHECKPOINT, {expected}", file=self.target
            )
        for target in self._targets():
            checked_target(
                target, force=self.force, inputs=self._inputs, directory=directory
            )
        if directory:
            warn_of_other_weights(source)

    @property
    def needed_bytes(self) -> int:
        """About what the output takes."""
        if self.source.format in DIRECTORIES:
            return size_bytes(self.source.path)
        return sum(path.stat().st_size for path in self.source.files)

    @property
    def _inputs(self) -> tuple[Path, ...]:
        return (self.source.path, *self.source.files, *self.inputs)

    def _targets(self) -> list[Path]:
        if self.source.format == "torch":
            return [self.target, plan_path(self.target)]
        if self.source.format == "onnx":
            number = len(external_locations(map_file(self.source.path)))
            return [self.target, *free_names(self.target, number, force=self.force)]
        return [self.target]

    def write(self, changes: Sequence[Change], plan: Plan, check: Check) -> None:
        """Write the checkpoint with the changes and the plan.

        Args:
            changes: New data of some tensors.
            plan: What the tensors promise now.
            check: Called with what was written, before it gets its name.

        Raises:
            InputError: A tensor that is to stay shares bytes with one that changes.
            OutputError: The system refuses a write, or what was written does not
                read back.
        """
        refuse_shared(self.source.tensors, changes)
        if self.source.format in DIRECTORIES:
            self._write_directory(changes, plan, check)
        elif self.source.format == "torch":
            self._write_torch(changes, plan, check)
        elif self.source.format == "onnx":
            self._write_onnx(changes, plan, check)
        else:
            with self._staged(self.target) as path:
                rewrite_safetensors(self._file(changes), path, changes, plan)
                check(open_safetensors(map_file(path)))

    def _staged(
        self, target: Path, *, directory: bool = False
    ) -> AbstractContextManager[Path]:
        return staged(
            target,
            force=self.force,
            inputs=self._inputs,
            directory=directory,
            size_bytes=self.needed_bytes,
        )

    def _file(self, changes: Sequence[Change], path: Path | None = None) -> MappedFile:
        """A file of the source, mapped: the very object that the changes refer to."""
        path = path or self.source.path
        for change in changes:
            if change.place.file.path == path:
                return change.place.file
        return map_file(path)

    def _write_directory(
        self, changes: Sequence[Change], plan: Plan, check: Check
    ) -> None:
        run = self.source.format == "run"
        with self._staged(self.target, directory=True) as path:
            write = rewrite_run if run else rewrite_directory
            write(self.source.path, path, changes, plan)
            check(open_directory(path, self.source.key))

    def _write_torch(self, changes: Sequence[Change], plan: Plan, check: Check) -> None:
        # The last to be staged ends first: the weights get their name before the plan.
        with (
            self._staged(plan_path(self.target)) as beside,
            self._staged(self.target) as path,
        ):
            rewrite_torch(self._file(changes), path, changes)
            check(open_torch(map_file(path), self.source.key))
            (digest,) = digests([path]).values()
            text = plan_json(plan, indent=2, files={self.target.name: digest})
            beside.write_text(text + "\n")
            make_ready(beside, plan_path(self.target))

    def _write_onnx(self, changes: Sequence[Change], plan: Plan, check: Check) -> None:
        file, renamed = self._file(changes), dict[str, str]()
        recorded, digests = with_checksums(file), dict[str, str]()
        with staged_onnx(
            self.target,
            force=self.force,
            inputs=self._inputs,
            size_bytes=self.needed_bytes,
        ) as place:
            for number, location in enumerate(external_locations(file)):
                data = self._file(changes, file.path.parent / location)
                splices = [splice_of(change) for change in in_file(changes, data)]
                written = place.data_file(number)
                copy_patched(data, written, splices)
                renamed[location] = written.name
                if splices and location in recorded:
                    digests[location] = sha1_of(written)
            rewrite_onnx(file, place.path, changes, plan, renamed, digests)
            check(replace(open_onnx(map_file(place.path)), path=self.target))
