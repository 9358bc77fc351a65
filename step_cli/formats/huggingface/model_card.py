"""``README.md`` of a model: a marked section is step-cli's, the rest somebody else's.

On the Hugging Face Hub this file is the model card. What stands between two lines of
three dashes at its top is YAML, for machines.
"""

import logging
import re
from pathlib import Path

from step_cli.errors import InputError
from step_cli.formats.huggingface.directory import inside

log = logging.getLogger(__name__)

NAME = "README.md"
BEGIN, END = "<!-- step-cli: begin -->", "<!-- step-cli: end -->"
OURS = "# Written by step-cli; a later run replaces it."  # a comment of YAML
LARGEST = 1 << 20  # bytes
RULE = re.compile(r"^---[ \t]*\r?(?:\n|\Z)", re.MULTILINE)


def read_card(directory: Path) -> str:
    """The card of a model; empty where there is none, or none that can be kept."""
    if not (directory / NAME).is_file():
        return ""
    try:
        path = inside(directory, NAME)
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read(LARGEST + 1)
    except (InputError, OSError, UnicodeDecodeError) as error:
        log.warning("%s: not kept: %s", directory / NAME, error)
        return ""
    if len(text) > LARGEST:
        log.warning("%s: not kept: over %d characters", directory / NAME, LARGEST)
        return ""
    return text


def has_other_metadata(card: str) -> bool:
    """Whether the metadata at the top of a card were written by somebody else."""
    front, _ = _parts(card)
    return bool(front) and OURS not in front


def with_section(card: str, metadata: str, title: str, section: str) -> str:
    """A card with the section of a run in it, in place of an older one or at its end.

    Args:
        card: What there is; may be empty.
        metadata: YAML for its top; left out where somebody else's stands there.
        title: The heading of a new card, in Markdown.
        section: Markdown.
    """
    front, body = _parts(card)
    if not has_other_metadata(card):
        front = f"---\n{OURS}\n{metadata}---\n"
    marked = f"{BEGIN}\n{section.strip()}\n{END}"
    before, found, after = _apart(body)
    if found:
        return front + before + marked + after
    text = body.rstrip() or f"\n# {title}"
    return f"{front}{text}\n\n{marked}\n"


def without_section(card: str) -> str:
    """A card without what step-cli has written into it."""
    front, body = _parts(card)
    before, found, after = _apart(body)
    front = front if has_other_metadata(card) else ""
    return front + (f"{before.rstrip()}\n{after.lstrip()}" if found else body)


def _parts(card: str) -> tuple[str, str]:
    """The metadata with both its lines of dashes, if there are any, and the rest."""
    first = RULE.match(card)
    last = RULE.search(card, first.end()) if first else None
    return (card[: last.end()], card[last.end() :]) if last else ("", card)


def _apart(body: str) -> tuple[str, bool, str]:
    """What stands before and after our section, and whether there is one."""
    end = body.rfind(END)
    # The nearest mark: one that is never closed is not ours, nor what follows it.
    start = body.rfind(BEGIN, 0, max(end, 0))
    if start < 0:
        return body, False, ""
    return body[:start], True, body[end + len(END) :]
