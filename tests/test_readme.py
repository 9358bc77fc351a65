"""README.md: the examples of its commands run one after the other."""

import re
from pathlib import Path

import pytest
from shown_pages import ROOT, run_shown, shown

PAGE = (ROOT / "README.md").read_text("utf-8")
# The section "In CI" is tested by test_ci_docs.py, with files of its own.
EXAMPLES = re.split(r"^## ", PAGE, flags=re.M)[1]


def test_each_command_has_an_example() -> None:
    verbs = [command.split()[1] for command, _ in shown(EXAMPLES)]
    assert set(verbs) == {"train", "autoswitch-profile", "prune", "verify-nm", "export"}


def test_the_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE)
    assert pictures == ["docs/demo.svg", "docs/report.png"]
    # Nothing is loaded from elsewhere when the page is read.
    assert "url(" not in (ROOT / "docs" / "demo.svg").read_text("utf-8").replace(
        "url(#", ""
    )


@pytest.mark.slow
def test_the_examples_run_and_end_as_shown(tmp_path: Path) -> None:
    (tmp_path / "sample_models").symlink_to(ROOT / "sample_models")
    run_shown(EXAMPLES, tmp_path, {})
