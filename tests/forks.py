"""Processes of their own, forked from one that has imported what they need.

A new process takes 2 s of CPU to import torch, and a quarter of one without it.
``run`` and ``Popen`` are those of `subprocess`, for ``[sys.executable, ...]`` with
``-m``, ``-c`` or a script; the curves of a run stay empty there, too. Tests about
imports, limits, closed streams and the first moments of a process use `subprocess`.
"""

import atexit
import ctypes
import importlib.util
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import undrawn

PLAIN = ("step_cli.cli.app", "step_cli.commands.verify.run",
         "step_cli.commands.prune.run", "step_cli.commands.export.run",
         "step_cli.commands.profile.run", "rich.live", "safetensors.numpy")  # fmt: skip
TORCH = ("torch", "step_cli.commands.train", "step_cli.training.run",
         "step_cli.formats.pytorch.child", "torch.distributed.run")  # fmt: skip
ELASTIC = "torch.distributed.elastic.multiprocessing.subprocess_handler."
ELASTIC += "subprocess_handler"  # starts the processes of `torchrun`
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
CODE = "import sys; sys.path.insert(0, sys.argv[1]); import forks; forks.main()"
OPTIONS = {"stdin", "stdout", "stderr", "text", "errors", "encoding", "env", "cwd",
           "pass_fds", "start_new_session"}  # fmt: skip
_folder: Path | None = None  # of the sockets


class Popen(subprocess.Popen[Any]):
    """A child that was forked, where the command and the options allow it.

    Args:
        torch: From the process that has torch; else its memory is that of a plain one.
    """

    def __init__(self, args: Sequence[Any], *, torch: bool = True, **more: Any) -> None:
        self._torch = torch
        self._session = bool(more.get("start_new_session"))
        self._forked = more.keys() <= OPTIONS
        super().__init__(args, **more)

    def _execute_child(self, args: Any, *rest: Any) -> None:  # type: ignore[override]
        words = [os.fspath(word) for word in args]
        if not self._forked or program(words) is None:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        pass_fds, cwd, env, reads, *_ = rest[3], rest[4], rest[5], rest[9:15]
        given = (reads[0], reads[3], reads[5])
        standard = [own if own != -1 else at for at, own in enumerate(given)]
        request = {
            "words": words,
            "cwd": os.path.abspath(cwd or os.curdir),
            "env": dict(os.environ if env is None else env),
            "fds": [0, 1, 2, *pass_fds],
            "session": self._session,
        }
        self.pid = _forked(request, [*standard, *pass_fds], torch=self._torch)
        self._child_created = True
        self._close_pipe_fds(*reads)  # type: ignore[attr-defined]


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


def starters() -> list[Any]:
    """The modules of step-cli that start processes."""
    names = ("step_cli.formats.child_process", "step_cli.formats.pytorch.reader")
    found = [importlib.import_module(n) for n in names if importlib.util.find_spec(n)]
    return [module for module in found if hasattr(module, "subprocess")]


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


def _forked(request: dict[str, Any], fds: list[int], *, torch: bool) -> int:
    """The number of a new process that is a child of this one."""
    prctl = ctypes.CDLL(None).prctl
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(str(_server(torch=torch)))
        # The process that forks it ends, and leaves its orphan to this one.
        prctl(SUBREAPER, 1, 0, 0, 0)
        try:
            text = json.dumps(request).encode()
            socket.send_fds(server, [len(text).to_bytes(8, "little")], fds)
            server.sendall(text)
            return int(server.makefile().read())
        finally:
            prctl(SUBREAPER, 0, 0, 0, 0)


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
            reading, writing = os.pipe()
            between = os.fork()
            if not between:
                own = os.getpid()
                child = os.fork()
                if child:
                    os.write(writing, str(child).encode())
                    os._exit(0)
                for fd in (reading, writing):
                    os.close(fd)
                listening.close()
                asked.close()
                while os.getppid() == own:  # until the tests are its parent
                    time.sleep(1e-4)
                return json.loads(text), list(fds)
            os.waitpid(between, 0)
            os.close(writing)
            asked.sendall(os.read(reading, 20))
            for fd in (reading, *fds):
                os.close(fd)


def _with_torch(path: Path) -> bool:
    """Start the process that has torch, once; whether this one is it."""
    if path.exists():
        return False
    reading, writing = os.pipe()
    if not os.fork():
        os.close(reading)
        for name in TORCH:
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
    paths = os.environ.get("PYTHONPATH")
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    words = request["words"]
    found = program(words)
    assert found is not None
    kind, what, arguments = found
    if words[1] != "-P":
        sys.path.insert(0, request["cwd"] if kind else str(Path(what).parent))
    if os.environ.get("PYTHONPATH") != paths:
        sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
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
    for module in starters():
        module.subprocess = INSTEAD
    page = sys.modules.get("step_cli.training.run_page")
    if page is not None:  # there is torch
        page.draw_curves = undrawn.draw_curves  # type: ignore[attr-defined]
        sys.modules[ELASTIC].Popen = Popen  # type: ignore[attr-defined]


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
