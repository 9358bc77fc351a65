"""A forked process is in all that tests look at what a new one would be."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pytest

Run = Callable[..., "subprocess.CompletedProcess[Any]"]


@pytest.fixture(params=["new", "plain", "torch"])
def run(request: pytest.FixtureRequest) -> Run:
    """In a new Python, forked from one without torch, and forked from one with it."""
    if request.param == "new":
        return subprocess.run
    return lambda *given, **more: forks.run(
        *given, torch=request.param == "torch", **more
    )


def code(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", text, *arguments]


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("raise SystemExit('told')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(9)", 9),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
    ],
)
def test_it_ends_as_a_new_one_does(run: Run, text: str, ended: int) -> None:
    done = run(code(text), capture_output=True, text=True)
    assert done.returncode == ended
    assert ("Traceback" in done.stderr) == ("/" in text or "SIGINT" in text)
    assert ("told" in done.stderr) == ("told" in text)


def test_it_has_its_own_streams_words_and_place(run: Run, tmp_path: Path) -> None:
    text = (
        "import os, sys, threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()\n"
        "import atexit; atexit.register(print, 'last')\n"
        "print(__name__, sys.argv[1:], os.getcwd(), os.environ['OWN'], input())"
    )
    env = {**os.environ, "OWN": "here"}
    done = run(
        code(text, "a", "b c"), input="in", capture_output=True, text=True,
        cwd=tmp_path, env=env,
    )  # fmt: skip
    said = f"__main__ ['a', 'b c'] {tmp_path} here in\nlate\nlast\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert "OWN" not in os.environ


def test_modules_and_scripts_are_run(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    script.write_text("import sys, beside; print(beside.NAME, sys.argv)\n")
    words = [sys.executable, str(script), "x"]
    assert run(words, capture_output=True, text=True).stdout == (
        f"beside {[str(script), 'x']}\n"
    )
    words = [sys.executable, "-m", "beside"]
    assert run(words, cwd=tmp_path).returncode == 0
    safe = [sys.executable, "-P", "-m", "beside"]
    assert run(safe, cwd=tmp_path, capture_output=True).returncode == 1


def test_it_can_be_waited_for_and_killed(run: Run) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(code("import time; time.sleep(60)"), timeout=0.2)


def test_descriptors_are_passed_on_and_no_others(run: Run) -> None:
    reading, writing = os.pipe()
    text = "import os, sys; os.write(int(sys.argv[1]), b'told')"
    assert run(code(text, str(writing)), pass_fds=[writing]).returncode == 0
    assert os.read(reading, 9) == b"told"
    assert run(code(text, str(writing)), capture_output=True).returncode == 1
    for end in (reading, writing):
        os.close(end)


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONHASHSEED", "LC_ALL"])
def test_what_python_reads_when_it_starts_starts_a_new_one(name: str) -> None:
    env = {**os.environ, name: "1" if name == "PYTHONHASHSEED" else "C"}
    text = "import sys; print('forks' in sys.modules, end='')"
    found = [forks.run(code(text), env=e, capture_output=True, text=True).stdout
             for e in (None, env)]  # fmt: skip
    assert found == ["True", "False"]
