"""Plain text without a width, or rich on a terminal: one or the other."""

import io

import pytest

from step_cli.render.console import console_for

NAME = "model.layers.0.self_attn.q_proj.weight"
SWITCHES = ("NO_COLOR", "CI", "TERM")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "30")


def shown(out: io.StringIO) -> str:
    console = console_for(out)
    console.table(("layer", "bad"), [(NAME, "3"), ("ü", "10")], right=("bad",))
    console.paragraph(NAME + " " + NAME)
    console.verdict(True, NAME)
    return out.getvalue()


PLAIN = f"""\
layer{" " * 33}   bad
{"─" * 44}
{NAME}     3
ü{" " * 37}    10
{NAME} {NAME}
ok  {NAME}
"""


def test_a_file_or_pipe_gets_lines_of_any_length() -> None:
    assert shown(io.StringIO()) == PLAIN


@pytest.mark.parametrize(
    ("name", "value"), [("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb")]
)
def test_a_terminal_that_is_to_get_no_colour_gets_the_same(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert shown(Terminal()) == PLAIN


def test_a_terminal_gets_colour_and_its_own_width() -> None:
    text = shown(Terminal())
    assert "\x1b[32mok" in text
    assert f"ok  {NAME}" in text  # to be copied, so the terminal alone folds it
    table = text.partition("ok ")[0]
    assert NAME not in table
