"""Processes of their own, forked from one that has imported what they need.

A new process takes 2 s of CPU to import torch, and a quarter of one without it.
``run`` and ``Popen`` are those of `subprocess`, for ``[sys.executable, ...]`` with
``-m``, ``-c`` or a script; the curves of a run stay empty there, too. Tests about
imports, limits, closed streams and the first moments of a process use `subprocess`.
"""

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import undrawn

PLAIN = ("step_cli.cli.app", "step_cli.commands.verify.run",
         "step_cli.commands.prune.run", "step_cli.commands.export.run",
         "step_cli.commands.profile.run", "rich.live", "safetensors.numpy")  # fmt: skip
TORCH = ("torch", "step_cli.commands.train", "step_cli.commands.compare.run",
         "step_cli.training.run", "step_cli.formats.pytorch.child",
         "torch.distributed.run")  # fmt: skip
# What a run imports late, where it is installed.
LATE = ("sklearn.datasets", "torch.utils.tensorboard", "torch._dynamo", "jinja2",
        "torch.distributed.fsdp", "torch.distributed.tensor")  # fmt: skip
ELASTIC = "torch.distributed.elastic.multiprocessing.subprocess_handler."
ELASTIC += "subprocess_handler"  # starts the processes of `torchrun`
# One thread for each process: threads that wait for a core spin, and take most of it.
# And `torch.compile` would start processes that import torch, to compile in.
for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
    os.environ.setdefault(name, "1")
CODE = "import sys; sys.path.insert(0, sys.argv[1]); import forks; forks.main()"
OPTIONS = {"stdin", "stdout", "stderr", "text", "errors", "encoding", "env", "cwd",
           "pass_fds", "start_new_session"}  # fmt: skip
_folder: Path | None = None  # of the sockets
_torch = os.getpid()  # the process that has torch


def at_start(env: Mapping[str, str]) -> dict[str, str]:
    """What Python and its libraries look for when they start, and not later."""
    early = ("PYTHON", "LC_", "LANG", "OMP_NUM_THREADS")
    return {name: value for name, value in env.items() if name.startswith(early)}


AT_START = at_start(os.environ)


class Popen(subprocess.Popen[Any]):
    """A process that was forked, where command, options and environment allow it.

    Args:
        torch: From the process that has torch; else its memory is that of a plain one.
    """

    _told: Any = None  # by the process that waits for it

    def __init__(self, args: Sequence[Any], *, torch: bool = True, **more: Any) -> None:
        self._torch = torch
        self._session = bool(more.get("start_new_session"))
        alike = at_start(more.get("env") or os.environ) == AT_START
        self._forked = more.keys() <= OPTIONS and alike
        super().__init__(args, **more)

    def _execute_child(self, args: Any, *rest: Any) -> None:  # type: ignore[override]
        words = [os.fspath(word) for word in args]
        if not self._forked or program(words) is None:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        pass_fds, cwd, env, ends = rest[3], rest[4], rest[5], rest[9:15]
        given = (ends[0], ends[3], ends[5])
        standard = [own if own != -1 else at for at, own in enumerate(given)]
        request = {
            "words": words,
            "cwd": os.path.abspath(cwd or os.curdir),
            "env": dict(os.environ if env is None else env),
            "fds": [0, 1, 2, *pass_fds],
            "session": self._session,
        }
        text = json.dumps(request).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.connect(str(_server(torch=self._torch)))
            head = len(text).to_bytes(8, "little")
            socket.send_fds(server, [head], [*standard, *pass_fds])
            server.sendall(text)
            self._told = server.makefile("rb", buffering=0)
        self.pid = int(self._told.readline())
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._told is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc,no-any-return]
        if not select.select([self._told], [], [], 0 if wait_flags else None)[0]:
            return 0, 0
        with self._told:
            return self.pid, int(self._told.readline() or signal.SIGKILL)

    def _internal_poll(self, *given: Any, **more: Any) -> int | None:
        if self._told is None:
            return super()._internal_poll(*given, **more)  # type: ignore[misc,no-any-return]
        lock = self._waitpid_lock  # type: ignore[attr-defined]
        if self.returncode is None and lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                lock.release()
        return self.returncode


def run(
    args: Sequence[Any],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **more: Any,
) -> "subprocess.CompletedProcess[Any]":
    """`subprocess.run`, forked."""
    if capture_output:
        more |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        more["stdin"] = subprocess.PIPE
    with Popen(args, **more) as child:
        try:
            out, err = child.communicate(input, timeout)
        except BaseException:
            child.kill()
            raise
    done = subprocess.CompletedProcess(args, child.returncode, out, err)
    if check:
        done.check_returncode()
    return done


# What a module that starts a child with torch finds instead of `subprocess`.
INSTEAD = types.SimpleNamespace(**vars(subprocess) | {"run": run, "Popen": Popen})


def program(words: Sequence[str]) -> tuple[str, str, list[str]] | None:
    """``-m``, ``-c`` or a script, and its arguments; None for anything else."""
    if words[0] != sys.executable or len(words) < 2:
        return None
    at = 2 if words[1] in ("-P", "-u") else 1
    if words[at].endswith(".py"):
        return "", words[at], list(words[at + 1 :])
    if words[at] in ("-m", "-c"):
        return words[at], words[at + 1], list(words[at + 2 :])
    return None


# ------------------------------------------------------------------------ asking for


def _server(*, torch: bool) -> Path:
    """The socket of a process that forks; the first to ask starts it."""
    global _folder
    if _folder is None:
        _folder = Path(tempfile.mkdtemp(prefix="forks-"))
        _start(_folder)
    if not torch:
        return _folder / "plain"
    if not (_folder / "torch").exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
            plain.connect(str(_folder / "plain"))
            plain.sendall(bytes(8))  # a request without words: have one with torch
            plain.makefile().read()
    return _folder / "torch"


def _start(folder: Path) -> None:
    here = str(Path(__file__).parent)
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", CODE, here, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Else the threads of NumPy are there already.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert server.stdout is not None and server.stdin is not None
    assert server.stdout.read(1) == b"+", "the process that forks did not start"

    def end(owner: int = os.getpid()) -> None:
        if os.getpid() == owner:
            server.communicate()  # its stdin ends, and with it all of them
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    atexit.register(end)


# ------------------------------------------------------------------- where they fork


def main() -> None:
    """Fork processes until stdin ends; they return from here, as what they are."""
    global _folder
    _folder = Path(sys.argv[2])
    sys.path.remove(sys.argv[1])  # nothing of the tests is found by chance
    for name in PLAIN:
        importlib.import_module(name)
    become = _serve(_folder / "plain")
    if become is not None:
        _become(*become)
        _end()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(_torch, 0)  # or its time is nobody's
    os._exit(0)


def _serve(path: Path) -> tuple[dict[str, Any], list[int]] | None:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen(16)
    os.write(1, b"+")
    os.dup2(2, 1)
    while True:
        ready, _, _ = select.select([listening, 0], [], [])
        if 0 in ready:
            return None
        asked, _ = listening.accept()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        with asked:
            head, fds, *_ = socket.recv_fds(asked, 8, 64)
            length = int.from_bytes(head, "little")
            if not length:
                if _with_torch(path.with_name("torch")):
                    listening.close()
                    asked.close()
                    return _serve(path.with_name("torch"))
                continue
            text = asked.makefile("rb").read(length)
            if not text:
                continue
            if not os.fork():
                child = os.fork()
                if child:
                    _wait_for(child, asked)
                listening.close()
                asked.close()
                return json.loads(text), list(fds)
            for fd in fds:
                os.close(fd)


def _wait_for(child: int, asked: socket.socket) -> NoReturn:
    """Tell who asked for it its number, and then how it ended."""
    told = asked.fileno()
    os.closerange(0, told)
    os.closerange(told + 1, 1024)
    os.write(told, b"%d\n" % child)
    _, status = os.waitpid(child, 0)
    try:
        os.write(told, b"%d\n" % status)
    finally:
        os._exit(0)


def _with_torch(path: Path) -> bool:
    """Start the process that has torch, once; whether this one is it."""
    global _torch
    if path.exists():
        return False
    reading, writing = os.pipe()
    _torch = os.fork()
    if not _torch:
        _torch = os.getpid()  # no child of itself
        os.close(reading)
        for name in TORCH:
            importlib.import_module(name)
        for name in LATE:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        os.dup2(writing, 1)
        os.close(writing)
        return True
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    return False


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """Turn this process into the one that was asked for."""
    import fcntl

    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 300) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, wanted in zip(high, request["fds"], strict=True):
        os.dup2(fd, wanted)
        os.close(fd)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    words = request["words"]
    found = program(words)
    assert found is not None
    kind, what, arguments = found
    if words[1] != "-P":
        sys.path.insert(0, request["cwd"] if kind else str(Path(what).parent))
    sys.orig_argv[:] = words
    _patch()
    sys.argv[:] = [kind or what, *arguments]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        elif not kind:
            runpy.run_path(what, run_name="__main__")
        else:
            sys.modules["__main__"] = module = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), vars(module))
    except SystemExit as ended:
        _end(ended.code)
    except Exception:
        traceback.print_exc()
        _end(1)


def _patch() -> None:
    """What `conftest` does for a test."""
    child_process = importlib.import_module("step_cli.formats.child_process")
    child_process.subprocess = INSTEAD  # type: ignore[attr-defined]
    page = sys.modules.get("step_cli.training.page")
    if page is not None:  # there is torch
        page.draw_curves = undrawn.draw_curves  # type: ignore[attr-defined]
        compared = sys.modules["step_cli.commands.compare.page"]
        compared.draw_curves = undrawn.drawing  # type: ignore[attr-defined]
        compared.draw_means = undrawn.drawing  # type: ignore[attr-defined]
        torchrun = sys.modules[ELASTIC]
        torchrun.Popen = Popen  # type: ignore[attr-defined]
        system = types.SimpleNamespace(**vars(os) | {"killpg": _killpg})
        torchrun.os = system  # type: ignore[attr-defined]


def _killpg(group: int, number: int) -> None:
    """As of `os`; one that ended stays until its parent asks, a forked one is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _end(code: Any = 0) -> NoReturn:
    """End as Python does, but for taking torch apart: that takes half a second."""
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit((code or 0) & 255)
