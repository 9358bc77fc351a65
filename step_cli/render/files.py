"""Reports written to files: replaced as a whole, or left as they were."""

from pathlib import Path

from step_cli.formats.files.staged import staged


def replace(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, atomically; what was there is replaced.

    Raises:
        OutputError: The system refuses; the old file is untouched.
    """
    with staged(path, force=True) as staging:
        staging.write_text(text, encoding="utf-8", errors="backslashreplace")
