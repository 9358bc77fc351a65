"""Which tensors a ``config.json`` says were left dense on purpose.

SparseML and older releases of compressed-tensors note what they pruned in
``sparsity_config``, under ``quantization_config`` or ``compression_config``: ``ignore``
and ``targets`` are lists of module names, of regular expressions that begin with
``re:``, and of class names. No file tells a module's class, so those decide nothing.

Source: compressed-tensors 0.9.4, ``config/base.py``.
"""

import re
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats.checkpoint import NamedTensor

# A regular expression of a file must not run for long: short, without groups that
# repeat, with few choices, on short names, and all of them for a limited time.
LONGEST_EXPRESSION = 200
LONGEST_NAME = 200
MOST_CHOICES = 4  # repetitions and groups
SECONDS = 5.0  # of processor time
_END = re.compile(r"(?<!\\)\.\*\$?$")  # matches whatever follows
_CHOICE = re.compile(r"(?<!\()[*+?]|\(")
_UNSAFE = re.compile(r"\(\?(?!:)|[{}]|\)[*+?]|\\[1-9]|[*+?]\+")


def left_dense(
    config: dict[str, Any], tensors: Iterable[NamedTensor], path: Path
) -> tuple[str, ...]:
    """The names of matrices that a config leaves dense.

    Args:
        config: What is in the file.
        tensors: Of the checkpoint that it belongs to.
        path: Of the file, for messages.

    Raises:
        InputError: Its regular expressions take too long.
    """
    ignore, targets = _lists(config)
    if not ignore and not targets:
        return ()
    modules = {
        tensor.name: tensor.name.rpartition(".")[0]
        for tensor in tensors
        if len(tensor.shape) > 1
    }
    until = time.process_time() + SECONDS
    ignored = _matched(ignore, modules.values(), until, path)
    targeted = set(modules.values())
    if targets and not any(_is_class(entry) for entry in targets):
        # Where none is found the names have changed since, and tell nothing.
        targeted = _matched(targets, modules.values(), until, path) or targeted
    return tuple(
        name
        for name, module in modules.items()
        if module in ignored or module not in targeted
    )


def _lists(config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """``ignore`` and ``targets`` of the first ``sparsity_config`` in a config."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for holder in (
            part.get("quantization_config"),
            part.get("compression_config"),
            part,
        ):
            found = holder.get("sparsity_config") if isinstance(holder, dict) else None
            if isinstance(found, dict):
                return _texts(found.get("ignore")), _texts(found.get("targets"))
    return [], []


def _texts(value: object) -> list[str]:
    entries = value if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, str) and entry]


def _is_class(entry: str) -> bool:
    """Whether an entry names a class, such as ``Linear``, and not a module."""
    return entry[0].isupper() and entry.isidentifier()


def _matched(
    entries: list[str], modules: Iterable[str], until: float, file: Path
) -> set[str]:
    """The modules that some of the entries name."""
    names = {entry for entry in entries if not entry.startswith("re:")}
    expressions = [
        partial(_match, expression, until, file) for expression in _expressions(entries)
    ]
    found = set()
    for module in set(modules):
        # A name without dots is that of the last component, below any prefix.
        named = module in names or module.rpartition(".")[2] in names
        short = len(module) <= LONGEST_NAME
        if named or (short and any(match(module) for match in expressions)):
            found.add(module)
    return found


def _match(
    expression: re.Pattern[str], until: float, file: Path, module: str
) -> re.Match[str] | None:
    if time.process_time() > until:
        raise InputError(
            "the regular expressions of its sparsity_config take too long; remove "
            "them, and use --exclude",
            file=file,
        )
    return expression.match(module)


def _expressions(entries: list[str]) -> Iterator[re.Pattern[str]]:
    for entry in entries:
        text = entry.removeprefix("re:")
        if text == entry or len(text) > LONGEST_EXPRESSION or _UNSAFE.search(text):
            continue
        text = _END.sub("", text)
        if len(_CHOICE.findall(text)) > MOST_CHOICES:
            continue
        try:
            yield re.compile(text)
        except (re.error, RecursionError, OverflowError):
            continue
