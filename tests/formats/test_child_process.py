import os
from pathlib import Path

import pytest

from step_cli.formats.child_process import ChildDiedError, ask

HEAD = (
    "import os, signal, sys, time\nfrom step_cli.formats.child_process import answer\n"
)


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that answers with its request, and what it does first."""
    (tmp_path / "some_child.py").write_text(
        f"{HEAD}"
        "def work(request):\n"
        "    exec(request['first'])\n"
        "    return request\n"
        "answer(work)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return "some_child"


def test_what_a_library_prints_is_no_part_of_the_answer(child: str) -> None:
    noise = "print('one'); os.write(1, b'two'); os.write(2, b'three')"
    answer = ask(child, {"first": noise, "name": "\udc80ä\n"})
    assert answer.document == {"first": noise, "name": "\udc80ä\n"}
    assert answer.stderr == "three"


@pytest.mark.parametrize(
    ("first", "signal", "said"),
    [
        ("raise ValueError('not that')", 0, "ValueError: not that"),
        ("os._exit(3)", 0, "exit 3"),
        ("os._exit(0)", 0, "exit 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 9, "exit -9"),
    ],
)
def test_a_child_without_an_answer_is_one_error(
    child: str, first: str, signal: int, said: str
) -> None:
    with pytest.raises(ChildDiedError) as caught:
        ask(child, {"first": first})
    assert (str(caught.value), caught.value.signal) == (said, signal)


def test_a_child_that_takes_too_long_is_killed(child: str, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    first = f"open({str(marker)!r}, 'w').write(str(os.getpid()))\nwhile True: pass"
    with pytest.raises(TimeoutError, match="took more than 1 s of processor time"):
        ask(child, {"first": first}, limit_s=1)
    assert not Path("/proc", marker.read_text()).exists()


def test_waiting_takes_no_processor_time(child: str) -> None:
    """As a child does on a busy machine, while others have the processor."""
    assert ask(child, {"first": "time.sleep(3)"}, limit_s=1).document
