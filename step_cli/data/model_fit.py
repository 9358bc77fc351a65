"""What data and the configuration of a model say differently of the same thing."""

import logging
from collections.abc import Iterator, Sequence

from step_cli.data.batch import Dataset
from step_cli.data.names import folded

logger = logging.getLogger(__name__)

SPARE = 1024  # tokens more than the tokenizer's that models have, to fill up a tensor


def say_misfits(data: Dataset, source: str, config: object) -> None:
    """Log a warning for each thing that the two say differently.

    Args:
        data: What the model is trained or measured on.
        source: Where they are.
        config: That of a model of transformers, or anything else.
    """
    for misfit in (*_other_numbers(data, config), *_other_tokens(data, config)):
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
