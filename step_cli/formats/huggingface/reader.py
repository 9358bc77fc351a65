"""A directory as a checkpoint: a run of `train`, or a Hugging Face directory."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats import plan as plans
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.compressed.bitmask import unpacked
from step_cli.formats.files.content import DISTRIBUTED, format_of, refuse_key
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.huggingface.directory import (
    check_against_index,
    find_weights,
    has_weights,
    inside,
)
from step_cli.formats.huggingface.model_config import with_config
from step_cli.formats.plan import check_digest
from step_cli.formats.safetensors.header import COMPRESSED_KEY, read_header
from step_cli.formats.safetensors.reader import open_safetensors
from step_cli.formats.zero_points import with_zero_points
from step_cli.nm.pattern import Plan
from step_cli.nm.threads import in_order

RUN_FILES = ("config.toml", "metrics.jsonl", "checkpoints")  # written by `train`


def open_directory(path: Path, key: str | None = None) -> Checkpoint:
    """Open a directory of weights.

    Args:
        path: The directory.
        key: Where in its torch files the state dict lies, if that is what it holds.

    Raises:
        UsageError: There is a key, but it holds no torch files.
        InputError: It holds none, or only a torch distributed checkpoint, or one of
            its files is missing, corrupt, or not what its index promises.
    """
    if (path / "model").is_dir() and not has_weights(path):
        model = open_directory(inside(path, "model"), key)
        return replace(model, path=path, format="run")
    if sum((path / name).exists() for name in RUN_FILES) > 1:
        raise InputError(
            "no model/ in this run: training not finished, use --resume", file=path
        )
    _refuse_distributed(path)
    return _open_hugging_face(path, key)


def _refuse_distributed(path: Path) -> None:
    if (path / ".metadata").exists() or any(path.glob("*.distcp")):
        raise InputError(DISTRIBUTED, file=path)


def _open_hugging_face(path: Path, key: str | None) -> Checkpoint:
    files = find_weights(path)
    notes, tensors = list(files.notes), dict[str, NamedTensor]()
    embedded: Plan | None = None
    document = _plan_document(path)
    compared = _check_digests(files.shards, document, path / plans.FILE)
    integrity, metadata = {"sha256" if compared else "crc32"}, dict[str, str]()
    for shard, promised in files.shards.items():
        opened = _open_shard(shard, key)
        check_against_index(shard, promised, (t.name for t in opened.tensors))
        for tensor in opened.tensors:
            if tensor.name in tensors:
                raise InputError("stands in two shards", file=path, tensor=tensor.name)
            tensors[tensor.name] = tensor
        notes += opened.notes
        integrity |= set() if compared else {opened.integrity}
        if opened.plan is not None:
            embedded = {**(embedded or {}), **opened.plan}
        metadata = {**opened.metadata, **metadata}
    plan_file = path / plans.FILE
    checkpoint = Checkpoint(
        path,
        "huggingface",
        list(tensors.values()),
        plans.plan_of(document, file=plan_file) if document else embedded,
        tuple(notes),
        tuple(files.shards),
        max(integrity),  # "unchecked", if it is one of them
        metadata=metadata,
        key=key,
    )
    whole = unpacked(checkpoint)  # the parts of a tensor may lie in several shards
    whole = replace(whole, tensors=with_zero_points(whole.tensors))
    return with_config(whole, path)


def _open_shard(path: Path, key: str | None) -> Checkpoint:
    file = map_file(path)
    if format_of(file) == "torch":
        from step_cli.formats.pytorch.reader import open_torch

        return open_torch(file, key)
    refuse_key(key, path)
    header = read_header(file)
    if COMPRESSED_KEY in header.metadata:
        raise InputError(
            "a compressed file inside a directory; name the file itself", file=path
        )
    return open_safetensors(file, header)


def _check_digests(
    shards: Iterable[Path], document: dict[str, Any], plan: Path
) -> bool:
    """Whether there is a digest of every shard, all of which were compared."""
    if "files" not in document:
        return False
    tasks = (partial(check_digest, shard, document, plan) for shard in shards)
    return all(list(in_order(tasks)))


def _plan_document(path: Path) -> dict[str, Any]:
    if not (path / plans.FILE).exists():
        return {}
    return plans.read_document(inside(path, plans.FILE))
