"""Names of classes that differ by nothing anybody means: case, blanks, Unicode forms."""

import unicodedata
from collections.abc import Iterable, Sequence

from step_cli.errors import nearest


def alike(name: str, known: Sequence[str]) -> str:
    """The end of a message on an unknown name: one that differs by its spelling alone."""
    same = next((other for other in known if folded(other) == folded(name)), None)
    if same is not None:
        return f"; it differs from {same!r} by case, blanks or signs alone: rename one"
    return nearest(name, known)


def doubles(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that are `alike`."""
    first = dict[str, str]()
    return [
        (other, name)
        for name in names
        if (other := first.setdefault(folded(name), name)) != name
    ]


def folded(name: str) -> str:
    """The name without case, accents' forms, and what separates its words."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(sign for sign in plain if not sign.isspace() and sign not in "-_")
