"""What data and the configuration of a model say differently of the same thing."""

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from step_cli.data.batch import Dataset
from step_cli.data.names import folded
from step_cli.formats.huggingface.model_config import longest_by

logger = logging.getLogger(__name__)

SPARE = 1024  # tokens more than the tokenizer's that models have, to fill up a tensor


def say_misfits(data: Dataset, source: str, config: object) -> None:
    """Log a warning for each thing that the two say differently.

    Args:
        data: What the model is trained or measured on.
        source: Where they are.
        config: That of a model of transformers, or anything else.
    """
    misfits = (_other_numbers, _other_tokens, _too_long)
    for misfit in (said for find in misfits for said in find(data, config)):
        logger.warning("%s: %s", source, misfit)


def other_number(classes: Sequence[str], config: object) -> tuple[str, int, int] | None:
    """The first class that a model numbers otherwise; None: nothing tells of one.

    Args:
        classes: The name of each class, in the order of their numbers.
        config: As for :func:`say_misfits`.

    Returns:
        Its name, its number in ``classes``, and that in the configuration.
    """
    theirs = getattr(config, "label2id", None)
    if not isinstance(theirs, dict) or len(theirs) != len(classes):
        return None
    numbers = {folded(str(name)): number for name, number in theirs.items()}
    for ours, name in enumerate(classes):
        number = numbers.get(folded(name), ours)
        if number != ours:
            return name, ours, number
    return None


def name_classes(classes: Sequence[str], config: Any) -> None:
    """Write the names of classes into a configuration that only numbers them.

    Args:
        classes: As for :func:`other_number`.
        config: That of a model of transformers, or anything else, which is left alone.
    """
    theirs = getattr(config, "id2label", None)
    if not isinstance(theirs, dict) or len(theirs) != len(classes):
        return
    if all(re.fullmatch(r"LABEL_\d+", str(name)) for name in theirs.values()):
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}


def _other_numbers(data: Dataset, config: object) -> Iterator[str]:
    """Classes of the same names that have other numbers."""
    other = other_number(data.classes, config)
    if other is not None:
        name, ours, number = other
        yield (
            f"class {name!r} is {ours} here, and {number} in the configuration of "
            "the model (label2id), whose head may know it so; rename the classes, "
            "or write their numbers"
        )


def _other_tokens(data: Dataset, config: object) -> Iterator[str]:
    known, tokens = getattr(config, "vocab_size", None), data.tokens
    if tokens is None or not isinstance(known, int):
        return
    if tokens > known or known > tokens + max(SPARE, tokens // 20):
        yield (
            f"the tokenizer has {tokens} tokens, and the model knows {known}, so it "
            "may be another model's; give data.tokenizer, a directory"
        )


def _too_long(data: Dataset, config: object) -> Iterator[str]:
    most = longest_by(config)
    if data.longest is not None and most is not None and data.longest > most:
        yield (
            f"samples have up to {data.longest} tokens, and the configuration of the "
            f"model has {most} positions: set data.length = {most}"
        )
