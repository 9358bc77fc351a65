"""Names and messages made safe to print: they come from files, and are data."""

import unicodedata

LONGEST = 400  # characters of a name or message shown to people


def one_line(text: str, longest: int = LONGEST) -> str:
    """Escape control and direction characters, and shorten to ``longest``."""
    if len(text) > longest:
        half = longest // 2
        text = f"{text[:half]}...{text[-half:]}"
    text = "".join(c if _plain(c) else _escaped(c) for c in text)
    # GitHub's runner takes this for the start of a command wherever it stands.
    return text.replace("##[", "##\\[")


def _plain(character: str) -> bool:
    # Cc: control, Cf: format (direction marks), Zl/Zp: line ends, Cs: lone surrogates.
    return unicodedata.category(character) not in {"Cc", "Cf", "Zl", "Zp", "Cs"}


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def duration(seconds: float) -> str:
    """``1:02:03``, or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
