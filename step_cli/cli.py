"""The command line: five functions of a config, and one place that meets errors."""

import contextlib
import difflib
import gc
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NoReturn, TextIO

import typer
from typer.models import CommandInfo

from step_cli import render, signals
from step_cli.config import (
    AutoswitchProfileConfig,
    ExportConfig,
    PruneConfig,
    TrainCommandConfig,
    VerifyConfig,
)
from step_cli.errors import (
    BUG,
    EXTRA_OF,
    INTERRUPTED,
    OutputError,
    StepError,
    StoppedError,
    UsageError,
)
from step_cli.logs import log_to_stderr
from step_cli.options import options_from
from step_cli.reports import ErrorDetail, Report

EXIT_CODES = (
    "Exit codes: 0 done, every check passed; 1 a check failed; 2 wrong usage; "
    "3 nothing selected; 4 input refused; 5 output not written; 6 something missing "
    "on this machine; 7 non-finite numbers; 70 a bug; 75 stopped; 130 Ctrl-C."
)

app = typer.Typer(
    name="step-cli",
    help="Take a model to N:M structured sparsity with STEP, and prove it.",
    epilog=EXIT_CODES,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        verbose = Presentation.of(sys.argv[1:]).verbose
        typer.echo(render.version(verbose=verbose))
        raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version"
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say errors only")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks")] = False,
) -> None:
    """Take a model to N:M structured sparsity with STEP, and prove it."""


def _examples(*lines: str) -> str:
    # "\b": the paragraph keeps its line ends.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@app.command(
    epilog=_examples(
        "step-cli verify-nm model.safetensors --nm 2:4",
        "step-cli verify-nm ./Llama --exclude 'lm_head.*' --output nm.txt",
    )
)
@options_from(VerifyConfig)
def verify_nm(config: VerifyConfig) -> Report:
    """Check that checkpoints hold their N:M pattern."""
    from step_cli.commands import verify_nm

    return verify_nm.run(config)


@app.command(
    epilog=_examples(
        "step-cli prune model.safetensors model-24.safetensors",
        "step-cli prune ./Llama ./Llama-24 --exclude 'lm_head.*' --dry-run",
    )
)
@options_from(PruneConfig)
def prune(config: PruneConfig) -> Report:
    """Prune a checkpoint to an N:M pattern in one shot."""
    from step_cli.commands import prune

    return prune.run(config)


@app.command(
    epilog=_examples(
        "step-cli train config.toml --run-dir runs/a",
        "step-cli train config.toml --set sparsity.recipe=sr-ste --set train.seed=1",
    )
)
@options_from(TrainCommandConfig)
def train(config: TrainCommandConfig) -> Report:
    """Train to an N:M pattern, by STEP or a baseline."""
    from step_cli.commands import train

    return train.run(config)


@app.command(
    epilog=_examples(
        "step-cli autoswitch-profile runs/dense --plot autoswitch.svg",
        "step-cli autoswitch-profile variance.jsonl --eps 1e-10 --t-max 0.8",
    )
)
@options_from(AutoswitchProfileConfig)
def autoswitch_profile(config: AutoswitchProfileConfig) -> Report:
    """Find and explain the switch point of a run."""
    from step_cli.commands import autoswitch_profile

    return autoswitch_profile.run(config)


@app.command(
    epilog=_examples(
        "step-cli export runs/a model.onnx --to onnx",
        "step-cli export runs/a model.plan --to tensorrt --require-sparse",
    )
)
@options_from(ExportConfig)
def export(config: ExportConfig) -> Report:
    """Write a compressed file, ONNX or an engine."""
    from step_cli.commands import export

    return export.run(config)


@dataclass(frozen=True)
class Presentation:
    """How the user wants to be answered; known even when the command line is wrong."""

    json: bool = False
    format: str | None = None
    verbose: bool = False
    quiet: bool = False
    debug: bool = False

    @classmethod
    def of(cls, argv: Sequence[str]) -> "Presentation":
        """Read the options that hold for every command, wherever they stand."""
        words = list(argv)
        if "--" in words:
            words = words[: words.index("--")]
        short = "".join(word for word in words if re.fullmatch(r"-[vq]+", word))
        given = re.search(r"(?:^|\0)--format[=\0]([^\0]*)", "\0".join(words))
        to_file = any(re.match(r"--output(=|$)", word) for word in words)
        asked = given is not None and given[1] == "json" and not to_file
        return cls(
            json="--json" in words or asked,
            format=given and given[1],
            verbose="--verbose" in words or "v" in short,
            quiet="--quiet" in words or "q" in short,
            debug="--debug" in words,
        )

    def refuse_two_formats(self) -> None:
        """Raise UsageError for --json with another --format."""
        if self.json and self.format not in (None, "json"):
            raise UsageError(f"--json and --format {self.format}: use one")


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    signals.note()
    if _command_of(sys.argv[1:]) == "verify-nm":
        _start_fast()
    with _results_only_on_stdout() as out:
        code = run(sys.argv[1:], out)
        signals.let_end()
    gc.freeze()  # or Python looks at everything for garbage before it ends: 20 ms
    sys.exit(code)


def _start_fast() -> None:
    """Start as a linter does: leave out what a process this short has no use for."""
    # Threads for matrix products, a search for plugins, collecting garbage: 80 ms.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.disable()


def run(argv: Sequence[str], out: TextIO) -> int:
    """Run one command: its result goes to ``out``, the rest to stderr.

    Returns:
        The exit code.
    """
    shown = Presentation.of(argv)
    log_to_stderr(quiet=shown.quiet, verbose=shown.verbose)
    try:
        signals.let_raise()
        shown.refuse_two_formats()
        report = app(list(argv), prog_name="step-cli", standalone_mode=False)
        if report == INTERRUPTED:  # how Typer answers Ctrl-C
            raise KeyboardInterrupt
        if not isinstance(report, Report):  # --help, --version
            out.flush()
            return int(report or 0)
        _tell(report.problems)
        _show(report, out, shown)
        return report.exit_code
    except BaseException as error:
        signals.let_end()
        if shown.debug and not isinstance(error, KeyboardInterrupt):
            logging.getLogger(__name__).error("", exc_info=error)
        detail = _detail(error, argv)
        _tell([detail])
        if shown.json:
            with contextlib.suppress(OSError):
                render.failure(detail, _command_of(argv), out)
        return detail.exit


def _name_of(command: CommandInfo) -> str:
    assert command.callback is not None
    return command.callback.__name__.replace("_", "-")


def _show(report: Report, out: TextIO, shown: Presentation) -> None:
    try:
        render.show(report, out, as_json=shown.json, verbose=shown.verbose)
        out.flush()
    except BrokenPipeError:
        pass  # the reader has seen enough; the verdict stands
    except OSError as error:
        raise OutputError(f"cannot write to stdout: {error.strerror}") from None


def _tell(problems: Sequence[ErrorDetail]) -> None:
    with contextlib.suppress(OSError):  # the exit code still tells
        for problem in problems:
            print(render.error_line(problem), file=sys.stderr)


def _detail(error: BaseException, argv: Sequence[str]) -> ErrorDetail:
    """Say what an exception means: its exit code and its one line."""
    if isinstance(error, StepError):
        return ErrorDetail(
            exit=error.exit_code,
            file=error.file,
            tensor=error.tensor,
            message=error.message,
        )
    if isinstance(error, StoppedError):
        return ErrorDetail(exit=error.exit_code, message=str(error))
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return ErrorDetail(exit=INTERRUPTED, message="interrupted, nothing written")
    if isinstance(error, typer.TyperException):
        return ErrorDetail(exit=2, message=_usage_message(error, argv))
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF:
        extra = f"pip install 'step-cli[{EXTRA_OF[error.name]}]'"
        return ErrorDetail(exit=6, message=f"{error.name} is not installed: {extra}")
    if isinstance(error, OSError) and error.filename is None:
        reason = error.strerror or type(error).__name__
        return ErrorDetail(exit=5, message=f"cannot write: {reason.lower()}")
    if isinstance(error, MemoryError):
        wanted = str(error).partition(" with shape")[0]  # Unable to allocate 512. MiB
        message = "not enough memory on this machine" + (wanted and f": {wanted}")
        return ErrorDetail(exit=6, message=message)
    return ErrorDetail(
        exit=BUG,
        message=f"a bug in step-cli: {type(error).__name__}: {error}; "
        "run again with --debug and report the traceback",
    )


def _usage_message(error: typer.TyperException, argv: Sequence[str]) -> str:
    message = str(getattr(error, "message", "") or error).rstrip(".")
    if isinstance(getattr(error, "option_name", None), str) and "No such" in message:
        name = str(error.option_name)  # type: ignore[attr-defined]
        known = getattr(error, "possibilities", None) or []
        return f"no such option {name}{_did_you_mean(name, known)}; see --help"
    if "No such command" in message:
        name = next((word for word in argv if not word.startswith("-")), "")
        known = [_name_of(command) for command in app.registered_commands]
        return f"no such command {name!r}{_did_you_mean(name, known)}; see --help"
    return f"{message[:1].lower()}{message[1:] or 'missing command'}; see --help"


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]}" if close else ""


def _command_of(argv: Sequence[str]) -> str:
    return next((word for word in argv if not word.startswith("-")), "step-cli")


@contextlib.contextmanager
def _results_only_on_stdout() -> Iterator[TextIO]:
    """Yield the real stdout, and send to stderr whatever libraries print.

    Native libraries write to descriptor 1 directly, so the descriptor itself moves.
    """
    sys.stdout.flush()
    out = open(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    os.dup2(2, 1)
    # Typer prints help and version itself; whatever else is printed is no result.
    asks = {"--help", "-h", "--version"}.intersection(sys.argv[1:])
    python_stdout, sys.stdout = sys.stdout, out if asks else sys.stderr
    try:
        yield out
    finally:
        sys.stdout = python_stdout
        with contextlib.suppress(OSError):  # met and judged when the result was written
            out.close()
