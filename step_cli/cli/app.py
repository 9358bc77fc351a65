"""The command line: five functions of a config, and one place that meets errors."""

import contextlib
import copy
import gc
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn, TextIO

import typer
from typer.models import CommandInfo

from step_cli import render
from step_cli import torchrun as processes
from step_cli.cli import signals
from step_cli.cli.failures import detail_of
from step_cli.cli.logs import log_to_stderr
from step_cli.cli.presentation import Presentation, command_of
from step_cli.cli.streams import ClosedStdout, results_only_on_stdout
from step_cli.config.commands import (
    AutoswitchProfileConfig,
    ExportConfig,
    PruneConfig,
    TrainCommandConfig,
    VerifyConfig,
)
from step_cli.config.options import options_from
from step_cli.errors import INTERRUPTED, OutputError
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
    from step_cli.commands.verify import run as verify_nm

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
    from step_cli.commands.prune import run as prune

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
    from step_cli.commands.profile import run as autoswitch_profile

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
    from step_cli.commands.export import run as export

    return export.run(config)


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    signals.note()
    if command_of(sys.argv[1:]) == "verify-nm":
        _start_fast()
    else:
        gc.enable()
    with results_only_on_stdout() as out:
        code = run(sys.argv[1:], out)
        signals.let_end()
    if code:
        signals.let_finish()
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
    shown, command = Presentation.of(argv), command_of(argv)
    together = command == "train"  # the only one that may run as many processes
    speaks = not together or processes.rank() == 0
    log_to_stderr(quiet=shown.quiet or not speaks, verbose=shown.verbose)
    try:
        signals.let_raise()
        shown.refuse_two_formats()
        _refuse_closed(out, argv)
        report = _only(argv)(list(argv), prog_name="step-cli", standalone_mode=False)
        if report == INTERRUPTED:  # how Typer answers Ctrl-C
            raise KeyboardInterrupt
        if not isinstance(report, Report):  # --help, --version
            out.flush()
            return int(report or 0)
        if speaks:
            _tell(report.problems)
            _show(report, out, shown)
        return report.exit_code
    except BaseException as ended:
        signals.let_end()
        error = signals.raised() or ended
        if shown.debug and not isinstance(error, KeyboardInterrupt):
            logging.getLogger(__name__).error("", exc_info=error)
        detail = detail_of(error, argv, command_names())
        told = processes.failed_before(detail.exit) if together else None
        if told is not None:
            return told
        _tell([detail])
        if shown.json:
            with contextlib.suppress(OSError):
                render.failure(detail, command, out)
        return detail.exit


def _only(argv: Sequence[str]) -> typer.Typer:
    """The app with the command asked for alone, as Typer builds every one it has."""
    asked = [info for info in app.registered_commands if [_name_of(info)] == argv[:1]]
    if not asked:
        return app
    alone = copy.copy(app)
    alone.registered_commands = asked
    return alone


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
        reason = (error.strerror or "").lower()
        complete = f"; {report.written} is complete" if report.written else ""
        raise OutputError(f"cannot write to stdout: {reason}{complete}") from None


def _refuse_closed(out: TextIO, argv: Sequence[str]) -> None:
    """Refuse to work for a result that nobody can get; a verdict is the exit code."""
    if isinstance(out, ClosedStdout) and command_of(argv) != "verify-nm":
        raise OutputError("stdout is closed; send it to a file or to /dev/null")


def _tell(problems: Sequence[ErrorDetail]) -> None:
    with contextlib.suppress(OSError):  # the exit code still tells
        for problem in problems:
            print(render.error_line(problem), file=sys.stderr)


def command_names() -> list[str]:
    """The commands, as a user types them."""
    return [_name_of(command) for command in app.registered_commands]
