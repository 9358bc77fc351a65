"""Text files line by line, in bounded memory, with the number of a line at fault."""

from collections.abc import Iterator
from pathlib import Path

from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import reason_of

LONGEST = 64 << 20  # bytes of a line: more is no line of text


def lines_of(path: Path) -> Iterator[str]:
    r"""The lines of a UTF-8 file, without ``\n`` or ``\r\n`` and the byte order mark.

    Only ``\n`` ends a line: corpora hold other separators of Unicode inside lines, and
    line numbers of parallel files would no longer agree.

    Raises:
        InputError: The file cannot be read, or a line is not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait
            raise InputError("not a regular file", file=path)
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST):
                number += 1
                if len(raw) == LONGEST:
                    raise InputError(f"line {number} is not text: too long", file=path)
                yield _text(raw, number, path)
    except OSError as error:
        raise InputError(reason_of(error), file=path) from None


def _text(raw: bytes, number: int, path: Path) -> str:
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"line {number}, byte {error.start + 1} is not UTF-8; convert the file, "
            "for example with iconv",
            file=path,
        ) from None
    return text.removesuffix("\n").removesuffix("\r")
