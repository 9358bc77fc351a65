"""docs/tutorial.md: its commands run one after the other, in a shorter training."""

from pathlib import Path

import pytest
from shown_pages import FILE, ROOT, run_shown, shown, write_files

PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
SHORTER = {"steps = 200": "steps = 40", "train.steps=300": "train.steps=10",
           "warmup_steps = 20": "warmup_steps = 2"}  # fmt: skip


def test_the_page_shows_files_and_commands() -> None:
    assert [name for name, _ in FILE.findall(PAGE)] == [
        "make_checkpoint.py", "config.toml", "load.py",
    ]  # fmt: skip
    verbs = [command.split()[1] for command, _ in shown(PAGE) if "step-cli" in command]
    assert set(verbs) == {"train", "verify-nm", "prune", "export"}


@pytest.mark.slow
@pytest.mark.tensorrt
def test_the_commands_run_and_end_as_shown(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    write_files(PAGE, tmp_path, SHORTER)
    run_shown(PAGE, tmp_path, SHORTER)
