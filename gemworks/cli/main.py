"""The `gemworks` command. One file per verb; this one joins them and turns every error into one message and a code.

    0     done                 2     an error the user can mend: one message on stderr, no traceback
    130   stopped by Ctrl-C    1     the question was answered with no, or whoever read the output went away

Nothing here or at the top of a verb's file imports jax: `gemworks --help` and `gemworks list` start at once.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer

import gemworks
from gemworks.cli import bench, console, data, guard, key
from gemworks.cli.convert import convert
from gemworks.cli.create import create
from gemworks.cli.doctor import doctor
from gemworks.cli.eval import eval_
from gemworks.cli.list_ import list_
from gemworks.cli.plan import plan
from gemworks.cli.ps import ps
from gemworks.cli.pull import pull
from gemworks.cli.quantize import quantize
from gemworks.cli.rm import rm
from gemworks.cli.run import run
from gemworks.cli.serve import serve
from gemworks.cli.show import show
from gemworks.cli.stop import stop
from gemworks.cli.train import train
from gemworks.cli.tune import tune
from gemworks.cli.usage import usage
from gemworks.errors import GemworksError, GemworksWarning

app = typer.Typer(
    name="gemworks",
    help="Run, make and look after Gemma 3 models.",
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EXIT_ERROR, _EXIT_STOPPED, _EXIT_BROKEN_PIPE = 2, 130, 1  # typer too leaves with 1 where a pipe broke

# typer carries its own click from 0.2x on, so the class of "wrong command line" is taken from one that it exports.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


def _print_version(wanted: bool) -> None:
    if wanted:
        console.line(f"gemworks {gemworks.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


app.command("run", help=run.__doc__)(run)
app.command("serve", help=serve.__doc__)(serve)
app.command("pull", help=pull.__doc__)(pull)
app.command("ps", help=ps.__doc__)(ps)
app.command("stop", help=stop.__doc__)(stop)
app.command("list", help=list_.__doc__)(list_)
app.command("show", help=show.__doc__)(show)
app.command("rm", help=rm.__doc__)(rm)
app.command("create", help=create.__doc__)(create)
app.command("convert", help=convert.__doc__)(convert)
app.command("quantize", help=quantize.__doc__)(quantize)
app.command("train", help=train.__doc__)(train)
app.command("tune", help=tune.__doc__)(tune)
app.command("eval", help=eval_.__doc__)(eval_)
app.command("plan", help=plan.__doc__)(plan)
app.command("doctor", help=doctor.__doc__)(doctor)
app.command("usage", help=usage.__doc__)(usage)
app.add_typer(guard.app, name="guard")
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(key.app, name="key")


def main() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    _make_streams_patient()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = app(args=list(arguments) or ["--help"], prog_name="gemworks", standalone_mode=False)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except GemworksError as error:
            console.error(str(error))
        except _USAGE_ERROR as error:
            console.error(_usage_message(error))
        except (KeyboardInterrupt, typer.Abort):
            return _EXIT_STOPPED
        except BrokenPipeError:
            # Python would complain once more when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _EXIT_BROKEN_PIPE
        except MemoryError:
            console.error("this machine has too little memory for that. See: gemworks plan MODEL")
        except OSError as error:
            console.error(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}.")
    return _EXIT_ERROR


def _usage_message(error: Any) -> str:
    """What is wrong with the command line, the nearest right one, and where to read more."""
    message = error.format_message().rstrip(".")
    context = error.ctx
    command = context.command_path if context else "gemworks"
    option = getattr(error, "option_name", None)
    if option and context and not error.possibilities:
        known = [name for parameter in context.command.params for name in parameter.opts]
        if near := get_close_matches(option, known, n=1):
            message += f". Did you mean {near[0]}"
    mark = "?" if "Did you mean" in message and not message.endswith("?") else "" if message.endswith("?") else "."
    return f"{message}{mark}\nSee: {command} --help"


def _show_warning(message: Any, category: Any, *_where: Any, **_more: Any) -> None:
    # Ours are for the user; those of libraries are for whoever develops, who runs tests where they are errors.
    if issubclass(category, GemworksWarning):
        console.warn(str(message))


def _make_streams_patient() -> None:
    """Let no character of an answer stop the program where the locale cannot show it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="replace")
