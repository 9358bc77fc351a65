"""Warnings and notes on stderr, one line each: names in them come from files."""

import logging
import sys

from typing_extensions import override

from step_cli.render.text import one_line


class OneLine(logging.Formatter):
    """``level: message``, escaped; a traceback stays as it is."""

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"{record.levelname}: {one_line(record.message)}"


def log_to_stderr(*, quiet: bool, verbose: bool) -> None:
    """Show what step-cli logs: errors only, notes too, or everything."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    logging.addLevelName(logging.WARNING, "warning")
    logging.addLevelName(logging.INFO, "note")
    logging.addLevelName(logging.DEBUG, "note")
    logging.addLevelName(logging.ERROR, "error")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    logger = logging.getLogger("step_cli")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)
