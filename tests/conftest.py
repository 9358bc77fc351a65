"""What many tests use: the command line, in this process or in its own."""

import io
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import forks
import hypothesis
import pytest
import undrawn

from step_cli.cli import app as cli
from step_cli.formats import child_process

if TYPE_CHECKING:
    from integration.ranks import Ranks


# The same examples each time, and no wall-clock limit: a busy machine is no failure.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")
# A shell starts what runs in the background with Ctrl-C ignored; children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Outcome:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document

    @property
    def error(self) -> str:
        """The one line of an error."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Leave out what takes long and is not what the test is about.

    ``draws``: matplotlib draws the curves of a run. ``new_process``: what step-cli
    starts, as to read a torch file, is a new process and not a forked one.
    """
    page = sys.modules.get("step_cli.training.page")
    with pytest.MonkeyPatch.context() as patch:
        if page is not None and not item.get_closest_marker("draws"):
            patch.setattr(page, "draw_curves", undrawn.draw_curves)
        compared = sys.modules.get("step_cli.commands.compare.page")
        if compared is not None and not item.get_closest_marker("draws"):
            patch.setattr(compared, "draw_curves", undrawn.drawing)
            patch.setattr(compared, "draw_means", undrawn.drawing)
        if not item.get_closest_marker("new_process"):
            patch.setattr(child_process, "subprocess", forks.INSTEAD)
        return (yield)


@pytest.fixture(autouse=True)
def logs_as_of_a_library() -> Iterator[None]:
    """A command that runs in this process sets where its log goes; nothing has here.

    Also before the test, as fixtures of a module or of the session run commands.
    """
    forget_where_logs_go()
    yield
    forget_where_logs_go()


def forget_where_logs_go() -> None:
    logger = logging.getLogger("step_cli")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def step_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def run(*arguments: object) -> Outcome:
        out = io.StringIO()
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments], out)
        return Outcome(code, out.getvalue(), capsys.readouterr().err)

    return run


@pytest.fixture
def step_cli_process() -> Callable[..., Outcome]:
    """Run a command in a process of its own."""

    def run(*arguments: object, **options: Any) -> Outcome:
        words = [sys.executable, "-m", "step_cli", *(str(word) for word in arguments)]
        done = forks.run(words, capture_output=True, text=True, timeout=600, **options)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def compiler() -> None:
    """`torch.compile` works here; tried when the first test asks for it."""
    from step_cli.optim.compiled import can_compile

    if not can_compile():
        pytest.skip("torch.compile does not work here: no C++ compiler")


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Ranks]":
    """Two processes that train together."""
    from integration.ranks import Ranks

    two = Ranks(tmp_path_factory.mktemp("ranks"))
    yield two
    two.close()
