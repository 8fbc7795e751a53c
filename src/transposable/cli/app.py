"""The command group: verbs loaded on use, errors turned into messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import click

from transposable._version import __version__
from transposable.cli.show import safe
from transposable.cli.signals import Interrupted, catching_signals
from transposable.errors import (
    FileError,
    LayoutError,
    MethodError,
    OutputError,
    PatternError,
    SelectionError,
    SolverError,
    TransposableError,
)

OK: Final = 0
VIOLATED: Final = 1
USAGE: Final = 2
BAD_INPUT: Final = 3
BAD_OUTPUT: Final = 4
SOLVER_FAILED: Final = 5
INTERNAL: Final = 70
READER_GONE: Final = 141

EXIT_CODES: Final = """\b
Exit codes:
    0  done
    1  verification failed: the pattern is violated
    2  usage: an option, a pattern, or a name that matches nothing
    3  bad input: missing, corrupt, a pickle, a wrong dtype, NaN; a missing package
    4  output not writable or disk full; what was there is untouched
    5  the solver failed
   70  an error in this program
  130  interrupted by Ctrl-C (143 by SIGTERM, 129 by SIGHUP)
  141  the reader of the output went away
"""

_VERBS: Final = ("prune", "verify", "inspect", "analyze", "solvers", "demo")


@dataclass
class State:
    """What the verbs share with the group."""

    debug: bool = False


def exit_code(error: BaseException) -> int:
    """The exit code that belongs to an error."""
    if isinstance(error, Interrupted):
        return 128 + error.signal
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return 130
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, PatternError | SelectionError | LayoutError | MethodError):
        return USAGE
    if isinstance(error, OutputError):
        return BAD_OUTPUT
    if isinstance(error, FileError):
        return BAD_INPUT
    if isinstance(error, SolverError | MemoryError):
        return SOLVER_FAILED
    if isinstance(error, TransposableError):
        return BAD_INPUT
    return INTERNAL


def message(error: BaseException) -> str:
    """One line for an error: what, which rule, what to do."""
    if isinstance(error, Interrupted | click.Abort | KeyboardInterrupt):
        name = error.name if isinstance(error, Interrupted) else "Ctrl-C"
        return (
            f"interrupted by {name}; what an unfinished output would have replaced is untouched, "
            "and nothing is left behind; run again"
        )
    if isinstance(error, TransposableError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory for the largest tensor; use a machine with more, or --exclude it"
    return (
        f"internal error: {type(error).__name__}: {error}; run again with --debug and "
        "report what it prints"
    )


class ReaderGone(Exception):
    """Whoever read our output through a pipe closed it."""


class App(click.Group):
    """A group whose verbs are imported on use, so that --help does not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"transposable.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error  # click would exit with 1, which means "violated" here

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; exits with the documented codes."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        # Read when torch is loaded, which is later. By default its threads spin while they wait for
        # each other: with another busy process beside them, ten times the time of the work itself.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        state = State()
        try:
            with catching_signals():
                code = super().main(args, prog_name, complete_var, False, obj=state, **extra)
                sys.stdout.flush()
        except (Exception, Interrupted, KeyboardInterrupt) as error:
            _fail(error, state.debug)
        sys.exit(code if isinstance(code, int) else OK)


def _fail(error: BaseException, debug: bool) -> NoReturn:
    if isinstance(error, ReaderGone | BrokenPipeError):
        _drop_stdout()
        sys.exit(READER_GONE)  # as if killed by SIGPIPE, silently like every filter
    if isinstance(error, OSError) and not isinstance(error, FileError):
        _drop_stdout()
        error = OutputError(
            f"write standard output: {error.strerror or error}; redirect it elsewhere"
        )
    if debug:
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.show()
    else:
        click.echo(f"error: {safe(message(error))}", err=True)
    sys.exit(exit_code(error))


def _drop_stdout() -> None:
    """Keep the interpreter from flushing, at exit, what could not be written."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
    except OSError:
        pass  # a replaced standard output, as in tests, has no descriptor to drop


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"transposable {__version__}")
        ctx.exit()


def _set_debug(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and isinstance(ctx.obj, State):
        ctx.obj.debug = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show the traceback of an error.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on standard output, nothing else."
)

main = App(
    name="transposable",
    help=(
        "N:M sparsity that speeds up both passes of a neural network.\n\n"
        "PATTERN is N:MT (transposable: N kept of M along rows and columns of every M x M tile), "
        "N:M "
        "(plain), N:MS (sequential) or P% (unstructured). N counts the weights that are kept."
    ),
    epilog=EXIT_CODES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_print_version,
            help="Show the version and exit.",
        )
    ],
)
