"""Runs the command in a process of its own, and checks what every row promises.

The child is forked from one without torch; what it opens is recorded from then on. It
reports its own peak of memory, its seconds of the processor, the files it opened, and
whether it asked for a socket; a child inherits the peak of its parent, so nobody else
can tell.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forks

CHILD = """
import atexit, json, os, resource, sys
opened, peak = [], None
def watch(event, arguments):
    if event == "open":
        opened.append(str(arguments[0]))
    elif event == "socket.__new__" and arguments[1] == 1:
        pass  # a Unix socket, to the process that forks
    elif event in ("socket.__new__", "socket.getaddrinfo"):
        opened.append("socket")
sys.addaudithook(watch)
def tell():
    with open("/proc/self/status") as status:
        peak = int(status.read().split("VmHWM:")[1].split()[0])
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    usages = [resource.getrusage(who) for who in whose]
    told = {"peak": peak, "children": usages[1].ru_maxrss, "opened": list(opened)}
    told["seconds"] = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    os.write(int(os.environ["TELL"]), json.dumps(told).encode())
atexit.register(tell)
from step_cli.cli.app import main
main()
"""
NOTHING_TOLD = '{"peak": 0, "children": 0, "opened": [], "seconds": 0}'
LONGEST_S = 30  # of the processor: others may keep the machine busy; a hang is 600 s


@dataclass(frozen=True)
class Run:
    """What a command answered, and what it took."""

    code: int
    out: str
    err: str
    cpu_seconds: float  # its child's among them
    peak_mib: float  # of the command itself
    children_mib: float  # of the process that unpickles
    opened: tuple[str, ...]

    @property
    def json(self) -> dict[str, Any]:
        """The one strict document on stdout."""
        document = json.loads(self.out, parse_constant=_refuse)
        assert isinstance(document, dict)
        return document

    @property
    def errors(self) -> list[str]:
        """The ``error:`` lines."""
        lines = self.err.splitlines()
        return [line for line in lines if line.startswith("error: ")]


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def step_cli(
    *words: object,
    env: Mapping[str, str] | None = None,
    new: bool = False,
    **more: Any,
) -> Run:
    """Run the console script, in a new Python if the environment is its subject."""
    reading, writing = os.pipe()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
    environment |= {"TELL": str(writing)} | dict(env or {})
    command = [sys.executable, "-P", "-c", CHILD, *map(str, words)]
    more = {"capture_output": True, "text": True, "errors": "surrogateescape"} | more
    try:
        more |= {"env": environment, "pass_fds": [writing], "timeout": 600}
        more |= {} if new else {"torch": False}
        done = subprocess.run(command, **more) if new else forks.run(command, **more)
    finally:
        os.close(writing)
    with open(reading, "rb") as pipe:
        told = json.loads(pipe.read() or NOTHING_TOLD)
    sizes = told["peak"] / 1024, told["children"] / 1024
    out, err = done.stdout or "", done.stderr or ""
    return Run(
        done.returncode, out, err, told["seconds"], *sizes, tuple(told["opened"])
    )


@dataclass(frozen=True)
class Want:
    """What is to be said of one checkpoint.

    Attributes:
        path: The checkpoint.
        code: The exit code that it alone would lead to.
        words: Regular expression for the error, or for any text of its report.
    """

    path: Path
    code: int
    words: str = ""


@dataclass(frozen=True)
class Row:
    """The checkpoints of one row, all given to one command, and its options.

    Attributes:
        wants: One for each checkpoint.
        options: More words of the command line.
        code: Of the whole command; None: the gravest of those wanted.
        most_mib: Bound on the peak of memory, imports included.
        outside: A directory in which nothing may be opened.
        env: More environment.
        new: In a new process, whose children tell their memory too.
    """

    wants: Sequence[Want]
    options: Sequence[object] = ()
    code: int | None = None
    most_mib: int = 300
    outside: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    new: bool = False


def check(folder: Path, row: Row) -> Run:
    """Run a row and check all that section 3 of the matrix promises of each."""
    before = state(folder)
    paths = [want.path for want in row.wants]
    run = step_cli(
        "verify-nm", *paths, "--json", *row.options, env=row.env, new=row.new
    )
    codes = [want.code for want in row.wants]
    code = min(codes, key=[4, 6, 7, 1, 3, 0].index) if row.code is None else row.code
    assert run.code == code, run.err
    assert state(folder) == before, "an input changed, or something was left"
    promised(run)
    assert run.peak_mib < row.most_mib
    assert run.children_mib < 900  # torch itself takes 250
    assert run.children_mib or not row.new
    if row.outside is not None:
        inside = [name for name in run.opened if name.startswith(f"{row.outside}/")]
        assert inside == []
    verdicts = run.json.get("checkpoints")
    if verdicts is None:  # refused as a whole
        assert len(run.errors) == 1
        assert all(re.search(want.words, run.errors[0], re.I) for want in row.wants)
        return run
    assert len(run.errors) == sum(want.code >= 2 for want in row.wants), run.err
    for want, verdict in zip(row.wants, verdicts, strict=True):
        _check_one(want, verdict, run)
    return run


def _check_one(want: Want, verdict: dict[str, Any], run: Run) -> None:
    error = verdict["error"]
    found = error["exit"] if error else 0 if verdict["ok"] else 1
    assert found == want.code, (want, verdict)
    said = error["message"] if error else json.dumps(verdict)
    notes = [line for line in run.err.splitlines() if str(want.path) in line]
    text = "\n".join([said, *(notes if not error else [])])
    assert re.search(want.words, text, re.I), (want, text)
    if error:
        assert any(line.startswith(f"error: {want.path}") for line in run.errors) or (
            not str(want.path).isprintable()
        )


def promised(run: Run) -> None:
    """What holds for every answer."""
    assert "Traceback" not in run.err
    assert run.cpu_seconds < LONGEST_S
    assert "socket" not in run.opened
    if run.code < 2:
        assert run.errors == []


def state(folder: Path) -> dict[str, object]:
    """All below a folder: kind, mode, time and content of each entry."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            stamp = (status.st_size, status.st_mtime_ns)
            big = status.st_size > 32 << 20
            content = stamp if big else (stamp, _digest(path))
        found[str(path.relative_to(folder))] = (status.st_mode, content)
    return found


def _digest(path: Path) -> str:
    mode = path.stat().st_mode
    if not mode & 0o400:
        return "unreadable"
    return hashlib.sha256(path.read_bytes()).hexdigest()
