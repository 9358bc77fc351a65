"""What is logged stays on one line, whatever a file's names hold."""

import logging

import pytest

from step_cli.cli.logs import log_to_stderr


@pytest.mark.parametrize(
    ("quiet", "verbose", "levels"),
    [
        (False, False, ["note", "warning"]),
        (True, False, []),
        (False, True, ["note", "note", "warning"]),
    ],
)
def test_one_line_each_at_the_level_asked_for(
    quiet: bool, verbose: bool, levels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr(quiet=quiet, verbose=verbose)
    log = logging.getLogger("step_cli.commands.verify.run")
    for tell in (log.debug, log.info, log.warning):
        tell("%s: read", "a\n::error::\x1b[31m")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == levels
    assert all(line.endswith(": a\\n::error::\\x1b[31m: read") for line in lines)
