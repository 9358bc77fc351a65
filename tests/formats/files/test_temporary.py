"""Temporary files are gone afterwards; where there can be none, that is said."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from step_cli.cli import app as cli
from step_cli.cli.failures import detail_of
from step_cli.errors import OutputError
from step_cli.formats.files.temporary import temporary_directory, temporary_file
from step_cli.formats.open import open_checkpoint

NOWHERE = FileNotFoundError(
    errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']"
)
TOLD = (
    r"[Nn]o usable temporary directory found in .*; set TMPDIR to a directory that can"
)


def test_they_are_gone_afterwards() -> None:
    with temporary_directory("use") as folder, temporary_file() as file:
        (folder / "x").write_text("x")
        assert file.is_file() and folder.name.startswith("step-cli-use-")
    assert not folder.exists() and not file.exists()


@pytest.mark.parametrize("error", [NOWHERE, OSError(errno.ENOSPC, "No space left")])
def test_nowhere_to_write_is_an_output_error(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(OutputError, match=r"no temporary file: no .*; set TMPDIR"):
        temporary_directory("use").__enter__()
    with pytest.raises(OutputError, match=r"no temporary file: no .*; set TMPDIR"):
        temporary_file().__enter__()


def test_a_library_that_finds_none_is_told_alike() -> None:
    detail = detail_of(NOWHERE, [], cli.command_names())
    assert detail.exit == 5
    assert "set TMPDIR to a directory that can be written to" in detail.message


def test_a_library_in_the_reading_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a.weight": torch.zeros(4, 8)}, tmp_path / "m.pt")
    broken = tmp_path / "broken"
    broken.mkdir()
    # As dill does, which torch imports where it is installed.
    (broken / "sitecustomize.py").write_text(
        "import tempfile, torch\n"
        "def load(*arguments, **more):\n"
        "    tempfile._get_default_tempdir = refuse\n"
        "    tempfile.tempdir = None\n"
        "    tempfile.gettempdir()\n"
        "def refuse(*arguments):\n"
        "    raise FileNotFoundError(2, 'No usable temporary directory found in []')\n"
        "torch.load = load\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(broken), prepend=os.pathsep)
    with pytest.raises(OutputError, match=TOLD):
        open_checkpoint(tmp_path / "m.pt")
