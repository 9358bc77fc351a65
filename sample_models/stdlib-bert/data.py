"""Snippets of Python's own standard library, labelled with the module they are of."""

import re
import sysconfig
import zlib
from pathlib import Path

import torch

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset, TensorSplit
from step_cli.errors import InputError

MODULES = (
    "_pydecimal", "argparse", "ast", "difflib", "doctest", "ftplib", "imaplib",
    "inspect", "ipaddress", "mailbox", "optparse", "pdb", "pickle", "statistics",
    "subprocess", "tarfile",
)  # fmt: skip
HELD_OUT = 5  # every fifth snippet of a module is held out
LENGTH, VOCABULARY = 64, 4096  # as in the model
BEGIN = 1  # the token that the classifier looks at
WORD = re.compile(r"[A-Za-z]+|[0-9]+|[^A-Za-z0-9\s]")


def load(section: DataSection) -> Dataset:
    """Snippets of 64 tokens that do not overlap; the label is the module's place."""
    library = Path(sysconfig.get_path("stdlib"))
    parts = [snippets_of(library / f"{module}.py") for module in MODULES]
    rows = torch.tensor([row for part in parts for row in part])
    labels = torch.tensor([label for label, part in enumerate(parts) for _ in part])
    place = torch.tensor([place for part in parts for place in range(len(part))])
    held_out = place % HELD_OUT == HELD_OUT // 2
    return Dataset(
        train=TensorSplit({"input_ids": rows[~held_out]}, labels[~held_out]),
        held_out=TensorSplit({"input_ids": rows[held_out]}, labels[held_out]),
    )


def snippets_of(file: Path) -> list[list[int]]:
    """A file cut into snippets; what does not fill the last one is left out.

    Words, numbers and signs are tokens by their hash; an identifier is its words.
    """
    if not file.is_file():
        raise InputError("the standard library lacks this module", file=file)
    words = WORD.findall(file.read_text(encoding="utf-8"))
    tokens = [2 + zlib.crc32(word.encode()) % (VOCABULARY - 2) for word in words]
    size = LENGTH - 1
    starts = range(0, len(tokens) - size + 1, size)
    return [[BEGIN, *tokens[start : start + size]] for start in starts]
