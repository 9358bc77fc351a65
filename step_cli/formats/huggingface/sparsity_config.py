"""What old libraries noted on sparsity in a ``config.json``: what they left dense.

SparseML and older releases of compressed-tensors note what they pruned in
``sparsity_config``, under ``quantization_config`` or ``compression_config``: ``ignore``
and ``targets`` are lists of module names, of regular expressions that begin with
``re:``, and of class names. No file tells a module's class, so those decide nothing.

No current library reads it: compressed-tensors dropped it in 0.15, and vLLM refuses a
model whose ``sparsity_config`` has targets (vLLM issue 51188).

Source: compressed-tensors 0.9.4, ``config/base.py``.
"""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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


KEY = "sparsity_config"
HOLDERS = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class _Holder:
    """A part of a config that has a ``sparsity_config``: itself, and what it is in."""

    value: dict[str, Any]
    name: str
    above: dict[str, Any] | None = None
    path: str = ""  # of ``above``, with a dot at its end


def remove_sparsity_config(config: dict[str, Any]) -> list[str]:
    """Take out of a config what no current library reads in it.

    A ``quantization_config`` that then describes no quantization goes too: transformers
    would look for the library that it names.

    Args:
        config: What is in the file; changed in place.

    Returns:
        The dotted names of what was taken out, with the format it told of.
    """
    left_out = []
    for holder in list(_holders(config)):
        form = _format_of(holder.value.pop(KEY))
        name = f"{holder.path}{holder.name}"
        if holder.above is not None and not _quantizes(holder.value):
            del holder.above[holder.name]
            left_out.append(f"{name}, with a {KEY}{form}")
        else:
            left_out.append(f"{name}.{KEY}{form}" if name else f"{KEY}{form}")
    return left_out


def _format_of(found: object) -> str:
    form = found.get("format") if isinstance(found, dict) else None
    return f" of format {form:.40}" if isinstance(form, str) else ""


def _quantizes(holder: dict[str, Any]) -> bool:
    """Whether what is left of a quantization_config describes a quantization."""
    ours = holder.get("quant_method") in (None, "compressed-tensors", "sparseml")
    return not ours or any(holder.get(k) for k in ("config_groups", "kv_cache_scheme"))


def _holders(config: dict[str, Any]) -> Iterator[_Holder]:
    """Where a ``sparsity_config`` stands: in the config, or in one of its parts."""
    parts = [("", config), *((f"{k}.", v) for k, v in config.items())]
    for path, part in parts:
        if not isinstance(part, dict) or path.removesuffix(".") in HOLDERS:
            continue
        for name in HOLDERS:
            inner = part.get(name)
            if isinstance(inner, dict) and KEY in inner:
                yield _Holder(inner, name, part, path)
        if KEY in part:
            yield _Holder(part, path.removesuffix("."))


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
    for holder in _holders(config):
        found = holder.value[KEY]
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
