"""A Hugging Face directory, or a run, with some tensors changed; the rest is copied."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from step_cli.errors import InputError, few
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.mapped_file import MappedFile
from step_cli.formats.files.patched_copy import Change, copy_file
from step_cli.formats.huggingface.directory import find_weights, inside
from step_cli.formats.huggingface.model_card import NAME, read_card, without_section
from step_cli.formats.huggingface.other_weights import others_with_weights
from step_cli.formats.plan import FILE, digests, plan_json
from step_cli.formats.pytorch.rewriter import rewrite_torch
from step_cli.formats.safetensors.rewriter import rewrite_safetensors
from step_cli.nm.pattern import Plan

log = logging.getLogger(__name__)


def rewrite_run(
    source: Path, target: Path, changes: Sequence[Change], plan: Plan
) -> None:
    """Write a run directory into the empty ``target``: as it is, but for its model."""
    copy_tree(source, source, target, without={"model"})
    (target / "model").mkdir()
    rewrite_directory(source / "model", target / "model", changes, plan)


def rewrite_directory(
    source: Path, target: Path, changes: Sequence[Change], plan: Plan
) -> None:
    """Write a directory of weights into the empty ``target``; its plan comes last.

    Raises:
        InputError: A file changed, or cannot be read.
        OutputError: What was written does not read back.
    """
    shards = find_weights(source).shards
    by_path: dict[Path, MappedFile] = {c.place.file.path: c.place.file for c in changes}
    copy_tree(source, source, target, without={FILE, *(shard.name for shard in shards)})
    for shard in shards:
        file = by_path.get(shard)
        if file is None:
            copy_file(shard, target / shard.name)
        elif shard.suffix == ".safetensors":
            # The plan of the directory is enough: one in a shard would go stale.
            rewrite_safetensors(file, target / shard.name, changes, None)
        else:
            rewrite_torch(file, target / shard.name, changes)
    _drop_section(target)
    written = [target / shard.name for shard in shards]
    text = plan_json(plan, indent=2, files=digests(written))
    (target / FILE).write_text(text + "\n")


def copy_tree(root: Path, source: Path, target: Path, without: set[str]) -> None:
    """Copy what stands beside the weights; links that lead out are left behind.

    Args:
        root: The directory that is copied.
        source: The part of it that is copied, ``root`` itself to begin with.
        target: An empty directory.
        without: Names of ``source`` that are left out.
    """
    for entry in sorted(source.iterdir()):
        if entry.name in without:
            continue
        name = str(entry.relative_to(root))
        try:
            inside(root, name)
        except InputError as error:
            log.warning("%s: not copied: %s", entry, error.message)
            continue
        if entry.is_dir():
            (target / entry.name).mkdir()
            copy_tree(root, entry, target / entry.name, set())
        elif entry.is_file():
            copy_file(entry, target / entry.name)
        else:
            log.warning("%s: not copied: not a regular file", entry)


def _drop_section(target: Path) -> None:
    """Leave out of a copied model card what may be true of the old weights only."""
    card = read_card(target)
    rest = without_section(card)
    if rest == card:
        return
    if rest.strip():
        (target / NAME).write_text(rest, encoding="utf-8", newline="")
    else:
        (target / NAME).unlink()


def warn_of_other_weights(checkpoint: Checkpoint) -> None:
    """Name the files of a directory whose weights are copied as they are."""
    directory = checkpoint.path
    others = others_with_weights(directory, set(checkpoint.files))
    if others:
        log.warning(
            "%s: other files with weights are copied as they are, not pruned: %s; "
            "remove them from the result if they hold the same model",
            directory,
            few(others),
        )


def size_bytes(directory: Path) -> int:
    """What a copy of a directory takes, links followed."""
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(directory)
        for name in names
        if os.path.isfile(os.path.join(folder, name))
    )
