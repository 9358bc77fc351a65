"""The command line: five functions of a config, and one place that meets errors."""

import contextlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from step_cli import render, torchrun
from step_cli.cli import signals, startup
from step_cli.cli.failures import detail_of
from step_cli.cli.global_options import GlobalOptions, command_of
from step_cli.cli.streams import ClosedStdout, log_to_stderr, results_only_on_stdout
from step_cli.config.commands import (
    AutoswitchProfileConfig,
    ExportConfig,
    PruneConfig,
    TrainCommandConfig,
    VerifyConfig,
)
from step_cli.config.options import DEBUG, JSON, QUIET, VERBOSE, options_from
from step_cli.errors import INTERRUPTED, OutputError
from step_cli.render.status_line import working_on
from step_cli.reports import ErrorDetail, Report

EXIT_CODES = (
    "Exit codes: 0 done, every check passed; 1 a check failed; 2 wrong usage; "
    "3 nothing selected; 4 input refused; 5 output not written; 6 a library, device or "
    "memory is missing; 7 non-finite numbers; 70 a bug; 75 stopped; 130 Ctrl-C."
)

app = typer.Typer(
    name="step-cli",
    help="Make a model N:M sparse with STEP or other methods, and check that it is.",
    epilog=EXIT_CODES,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(frozen=True)
class Result:
    """What a command has found, and how it is to be shown.

    Attributes:
        report: The outcome.
        format: The value of ``--format``, or None.
        file: The file that ``--output`` names, or None.
    """

    report: Report
    format: str | None = None
    file: Path | None = None


def _print_version(given: bool) -> None:
    if given:
        from step_cli.render.version import version

        options = GlobalOptions.of(sys.argv[1:])
        typer.echo(version(verbose=options.verbose, as_json=options.json))
        raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Show the version; with -v or --json, the kernels and packages too",
        ),
    ] = False,
    json_: Annotated[bool, JSON] = False,
    verbose: Annotated[bool, VERBOSE] = False,
    quiet: Annotated[bool, QUIET] = False,
    debug: Annotated[bool, DEBUG] = False,
) -> None:
    """Make a model N:M sparse with STEP or other methods, and check that it is."""


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
def verify_nm(config: VerifyConfig) -> Result:
    """Check that checkpoints hold their N:M pattern."""
    from step_cli.commands.verify import run as verify_nm

    return Result(verify_nm.run(config), config.format, config.output)


@app.command(
    epilog=_examples(
        "step-cli prune model.safetensors model-24.safetensors",
        "step-cli prune ./Llama ./Llama-24 --exclude 'lm_head.*' --dry-run",
    )
)
@options_from(PruneConfig)
def prune(config: PruneConfig) -> Result:
    """Prune a checkpoint to an N:M pattern in one shot."""
    with working_on("loading libraries"):
        from step_cli.commands.prune import run as prune

    return Result(prune.run(config))


@app.command(
    epilog=_examples(
        "step-cli train config.toml --run-dir runs/a",
        "step-cli train config.toml --set sparsity.recipe=sr-ste --set train.seed=1",
        "step-cli train config.toml --recipes dense,sr-ste,step --patterns 2:4,1:4",
    )
)
@options_from(TrainCommandConfig)
def train(config: TrainCommandConfig) -> Result:
    """Train an N:M model with STEP or another recipe."""
    with working_on("loading libraries"):
        from step_cli.commands import train

    return Result(train.run(config))


@app.command(
    epilog=_examples(
        "step-cli autoswitch-profile runs/dense --plot autoswitch.svg",
        "step-cli autoswitch-profile variance.jsonl --eps 1e-10 --t-max 0.8",
    )
)
@options_from(AutoswitchProfileConfig)
def autoswitch_profile(config: AutoswitchProfileConfig) -> Result:
    """Show where each criterion would switch."""
    with working_on("loading libraries"):
        from step_cli.commands.profile import run as autoswitch_profile

    return Result(autoswitch_profile.run(config))


@app.command(
    epilog=_examples(
        "step-cli export runs/a model.onnx --to onnx",
        "step-cli export runs/a model.plan --to tensorrt --require-sparse",
    )
)
@options_from(ExportConfig)
def export(config: ExportConfig) -> Result:
    """Write a compressed, ONNX or TensorRT file."""
    with working_on("loading libraries"):
        from step_cli.commands.export import run as export

    return Result(export.run(config))


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    signals.note()
    startup.prepare(command_of(sys.argv[1:]))
    with results_only_on_stdout(GlobalOptions.of(sys.argv[1:]).quiet) as out:
        code = run(sys.argv[1:], out)
        signals.let_end()
    if code:
        signals.let_finish()
    if torchrun.launched():
        torchrun.leave(code)
    startup.end()
    sys.exit(code)


def run(argv: Sequence[str], out: TextIO) -> int:
    """Run one command: its result goes to ``out``, the rest to stderr.

    Returns:
        The exit code.
    """
    options, command = GlobalOptions.of(argv), command_of(argv)
    several = command == "train"  # the only one that may run as many processes
    shows = not several or torchrun.rank() == 0
    log_to_stderr(quiet=options.quiet or not shows, verbose=options.verbose)
    try:
        signals.let_raise()
        options.refuse_two_formats()
        _refuse_closed(out, argv)
        selected = startup.only(app, argv)
        result = selected(list(argv), prog_name="step-cli", standalone_mode=False)
        if result == INTERRUPTED:  # how Typer answers Ctrl-C
            raise KeyboardInterrupt
        if not isinstance(result, Result):  # --help, --version
            out.flush()
            return int(result or 0)
        if shows:
            _print_errors(result.report.problems)
            _show(result, out, options)
        return result.report.exit_code
    except BaseException as ended:
        signals.let_end()
        error = signals.raised() or ended
        if options.debug and not isinstance(error, KeyboardInterrupt):
            logging.getLogger(__name__).error("", exc_info=error)
        detail = detail_of(error, argv, command_names())
        first = torchrun.failed_before(detail.exit) if several else None
        if first is not None:
            return first
        _print_errors([detail])
        if options.json:
            with contextlib.suppress(OSError):
                render.failure(detail, command, out)
        return detail.exit


def _show(result: Result, out: TextIO, options: GlobalOptions) -> None:
    try:
        render.show(
            result.report,
            out,
            format=result.format,
            file=result.file,
            as_json=options.json,
            verbose=options.verbose,
            quiet=options.quiet,
        )
        out.flush()
    except BrokenPipeError:
        pass  # the reader has seen enough; the verdict stands
    except OSError as error:
        reason, written = (error.strerror or "").lower(), result.report.written
        complete = f"; {written} is complete" if written else ""
        raise OutputError(f"cannot write to stdout: {reason}{complete}") from None


def _refuse_closed(out: TextIO, argv: Sequence[str]) -> None:
    """Refuse to work for a result that nobody can get; a verdict is the exit code."""
    if isinstance(out, ClosedStdout) and command_of(argv) != "verify-nm":
        raise OutputError("stdout is closed; send it to a file or to /dev/null")


def _print_errors(problems: Sequence[ErrorDetail]) -> None:
    with contextlib.suppress(OSError):  # the exit code still stands
        for problem in problems:
            print(render.error_line(problem), file=sys.stderr)


def command_names() -> list[str]:
    """The commands, as a user types them."""
    return [startup.name_of(command) for command in app.registered_commands]
