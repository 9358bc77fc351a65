"""A Hugging Face directory: which files hold the weights, and its config."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from step_cli.errors import InputError
from step_cli.formats.files.json_text import read_json
from step_cli.formats.files.mapped_file import reason_of
from step_cli.formats.huggingface.weight_names import weights_names

# What tokenizers and image processors of transformers save, besides code.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "source.spm",
    "target.spm",
    "preprocessor_config.json",
    "processor_config.json",
)
LARGEST_INDEX = 64 << 20  # bytes


@dataclass(frozen=True)
class WeightFiles:
    """The files of a directory that hold its weights.

    Attributes:
        found: The name that decided, of the weights or of their index.
        shards: Files, and the tensor names that the index promises in each (or None).
        notes: What the user should know of the choice.
    """

    found: str
    shards: dict[Path, list[str] | None]
    notes: tuple[str, ...]


def has_weights(directory: Path) -> bool:
    """Whether any file that `find_weights` looks for is there."""
    return bool(weights_names(directory))


def find_weights(directory: Path) -> WeightFiles:
    """Choose the files that ``from_pretrained`` would read.

    Raises:
        InputError: There are none, or several variants, or the index or a link cannot
            be trusted.
    """
    there = weights_names(directory)
    variants = {name.variant for name in there}
    if not there:
        # Not needed by a check that finds its weights.
        from step_cli.formats.huggingface.other_weights import what_is_there

        raise InputError(what_is_there(directory), file=directory)
    if None not in variants and len(variants) > 1:
        raise InputError(
            f"holds several variants and nothing without one: "
            f"{', '.join(name.name for name in there)}; name one file, or move all "
            "but one variant elsewhere",
            file=directory,
        )
    found, *others = there
    notes = [f"reads {found.name}, not {other.name}" for other in others]
    if found.variant is not None:
        notes.insert(0, f"reads {found.name}, as the only variant is {found.variant}")
    path = inside(directory, found.name)
    if not found.is_index:
        return WeightFiles(found.name, {path: None}, tuple(notes))
    shards = _shards(directory, path)
    known = {shard.name for shard in shards} | {name.name for name in there}
    for entry in sorted(directory.iterdir()):
        if entry.suffix == found.suffix and entry.name not in known:
            notes.append(f"{entry.name} is not in the index and was not read")
    return WeightFiles(found.name, shards, tuple(notes))


def inside(directory: Path, name: str) -> Path:
    """The path of a file of ``directory``, which a link must not lead out of.

    Links into ``blobs/`` of the same Hugging Face cache are how that cache is built.

    Raises:
        InputError: It is missing, or a link leads elsewhere.
    """
    path = directory / name
    try:
        real = Path(os.path.realpath(path, strict=True))
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise InputError(reason_of(error), file=path) from None
    home = Path(os.path.realpath(directory))
    allowed = [home]
    for parent in (home, *home.parents):
        if parent.name == "snapshots":
            allowed.append(parent.parent / "blobs")
            break
    if not any(real.is_relative_to(place) for place in allowed):
        raise InputError("link leaves the checkpoint, copy the file into it", file=path)
    return path


def _shards(directory: Path, index: Path) -> dict[Path, list[str] | None]:
    weight_map = read_json(index, "the index", limit_bytes=LARGEST_INDEX).get(
        "weight_map"
    )
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("the index has no 'weight_map'", file=index)
    names: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if not _is_plain(shard):
            raise InputError(
                f"shard name must be a plain file name, not {shard!r:.80}",
                file=index,
                tensor=tensor,
            )
        names.setdefault(shard, []).append(tensor)
    for shard, tensors in names.items():
        if not os.path.lexists(directory / shard):
            raise InputError(
                f"shard {shard} is missing, with {_counted(tensors)}", file=index
            )
    return {inside(directory, shard): names[shard] for shard in sorted(names)}


def _is_plain(shard: object) -> bool:
    return (
        isinstance(shard, str)
        and shard not in ("", ".", "..")
        and not any(c in "/\\:" or ord(c) < 32 for c in shard)
        and shard.endswith((".safetensors", ".bin"))
    )


def check_against_index(
    path: Path, promised: list[str] | None, found: Iterable[str]
) -> None:
    """Refuse a shard that lacks what the index promises of it.

    Raises:
        InputError: A tensor is missing.
    """
    missing = sorted(set(promised or ()).difference(found))
    if missing:
        raise InputError(f"the index promises {_counted(missing)}, absent", file=path)


def _counted(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer to the weights it belongs to: those of its files that exist.

    Raises:
        InputError: One of them is a link that leads out of ``source``.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(inside(source, name), target / name)
