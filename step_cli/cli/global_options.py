"""The options of every command, known even when the command line is wrong."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from step_cli.errors import UsageError


@dataclass(frozen=True)
class GlobalOptions:
    """Options that decide what is printed, read from the arguments themselves.

    Attributes:
        json: Whether stdout is to be one JSON document.
        format: The value of ``--format``.
        output: The file that ``--output`` names.
        verbose: ``--verbose``.
        quiet: ``--quiet``.
        debug: ``--debug``.
    """

    json: bool = False
    format: str | None = None
    output: str | None = None
    verbose: bool = False
    quiet: bool = False
    debug: bool = False

    @classmethod
    def of(cls, argv: Sequence[str]) -> "GlobalOptions":
        """Read the options wherever they stand."""
        words = list(argv)
        if "--" in words:
            words = words[: words.index("--")]
        short = "".join(word for word in words if re.fullmatch(r"-[vq]+", word))
        format, output = _value(words, "--format"), _value(words, "--output")
        return cls(
            json="--json" in words or (format == "json" and output is None),
            format=format,
            output=output,
            verbose="--verbose" in words or "v" in short,
            quiet="--quiet" in words or "q" in short,
            debug="--debug" in words,
        )

    def refuse_two_formats(self) -> None:
        """Raise UsageError for --json with another --format."""
        if self.json and self.format not in (None, "json"):
            raise UsageError(f"--json and --format {self.format}: use one")


def command_of(argv: Sequence[str]) -> str:
    """The given command, or the name of the program."""
    return next((word for word in argv if not word.startswith("-")), "step-cli")


def _value(words: Sequence[str], option: str) -> str | None:
    """What follows an option, in the next word or after an equals sign."""
    for number, word in enumerate(words):
        if word.startswith(option + "="):
            return word.partition("=")[2]
        if word == option:
            return words[number + 1] if number + 1 < len(words) else ""
    return None
