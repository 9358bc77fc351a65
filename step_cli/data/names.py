"""Names of classes that differ by nothing anybody means: case, blanks, encoding."""

import re
import unicodedata
from collections.abc import Iterable


def alike(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: one that is spelled alike."""
    same = next((other for other in known if folded(other) == folded(name)), None)
    if same is None:
        return ""
    return f"; it differs from {same!r} by case or blanks alone: rename one"


def doubles(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that are `alike`."""
    first = dict[str, str]()
    return [
        (other, name)
        for name in names
        if (other := first.setdefault(folded(name), name)) != name
    ]


def folded(name: str) -> str:
    """The name without case and forms of Unicode; what separates words is a blank."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_-]+", " ", plain.strip())
