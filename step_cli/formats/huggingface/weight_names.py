"""The names under which the Hugging Face libraries save weights.

A model of transformers is ``model.safetensors`` or ``pytorch_model.bin``, a part of a
diffusers pipeline ``diffusion_pytorch_model.safetensors`` or ``.bin``; a file with
``.index.json`` behind its name lists shards. A variant stands inside the name, as in
``model.fp16.safetensors`` and ``model.safetensors.index.fp16.json``.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import reason_of

# Without variants, in the order in which from_pretrained looks.
KINDS = (
    ("model", "safetensors"),
    ("pytorch_model", "bin"),
    ("diffusion_pytorch_model", "safetensors"),
    ("diffusion_pytorch_model", "bin"),
)
WEIGHTS = tuple(
    f"{stem}.{suffix}{index}" for stem, suffix in KINDS for index in ("", ".index.json")
)
_VARIANT = r"(?:\.(?!index\.)([A-Za-z0-9_-]+))?"
_NAME = re.compile(
    rf"((?:diffusion_pytorch_|pytorch_)?model){_VARIANT}\.(safetensors|bin)"
    rf"({_VARIANT}\.index{_VARIANT}\.json)?"
)
SHARD = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})\.(\w+)")


@dataclass(frozen=True)
class WeightsName:
    """A file name that the libraries give to weights, or to the index of their shards.

    Attributes:
        name: The file name.
        rank: Its place in the order in which the libraries look.
        variant: ``fp16`` and the like, or None.
        suffix: Of the weights, ``.safetensors`` or ``.bin``.
        is_index: Whether it lists shards.
    """

    name: str
    rank: int
    variant: str | None
    suffix: str
    is_index: bool


def weights_name(name: str) -> WeightsName | None:
    """Read a file name; None if it is not one that the libraries give to weights."""
    found = _NAME.fullmatch(name)
    if found is None or SHARD.fullmatch(name):
        return None
    stem, inside, suffix, index, *behind = found.groups()
    variants = [variant for variant in (inside, *behind) if variant is not None]
    if len(variants) > 1 or (stem, suffix) not in KINDS:
        return None
    rank = 2 * KINDS.index((stem, suffix)) + (index is not None)
    variant = variants[0] if variants else None
    return WeightsName(name, rank, variant, f".{suffix}", index is not None)


def weights_names(directory: Path) -> list[WeightsName]:
    """Those in a directory, in the order in which the libraries look, variants last.

    Raises:
        InputError: The directory cannot be read.
    """
    try:
        with os.scandir(directory) as entries:
            found = [weights_name(one.name) for one in entries if not one.is_dir()]
    except OSError as error:
        raise InputError(reason_of(error), file=directory) from None
    names = [name for name in found if name is not None]
    return sorted(names, key=lambda x: (x.variant is not None, x.rank, x.name))
