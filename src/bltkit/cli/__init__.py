"""The command `blt`: verbs to functions, no logic. Text on stdout, progress and messages on stderr.

Exit status 0 on success, 2 on a user's mistake (one line), 1 on anything else. torch is imported by the verbs that
need it, so that `blt --help` is quick.
"""

import contextlib
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import typer

from bltkit.cli.convert import convert
from bltkit.cli.data import annotate, calibrate
from bltkit.cli.evaluation import evaluate
from bltkit.cli.flops import flops
from bltkit.cli.generation import generate
from bltkit.cli.measuring import app as bench
from bltkit.cli.models import check, models, train
from bltkit.cli.serving import serve
from bltkit.cli.sharing import pull, push
from bltkit.cli.study import app as study
from bltkit.cli.terminal import print_text, say
from bltkit.cli.text import patch, score
from bltkit.cli.verb import Verb, Verbs
from bltkit.terminal.streams import flush_result, occupy_closed_streams, usable_streams, usual_width

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for verb in (
    patch,
    generate,
    score,
    train,
    annotate,
    calibrate,
    check,
    convert,
    push,
    pull,
    flops,
    serve,
    models,
):
    app.command(cls=Verb)(verb)
app.command("eval", cls=Verb)(evaluate)
app.add_typer(bench, name="bench")
app.add_typer(study, name="study")


def _show_version(wanted: bool) -> None:
    if wanted:
        from bltkit import __version__

        print_text(f"bltkit {__version__}")
        raise typer.Exit


@app.callback()
def blt(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Language models that read bytes: patches, training, generation, evaluation."""


# typer carries its own copy of click, whose base error it does not export.
_USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def main(arguments: list[str] | None = None) -> int:
    """Run `blt`; returns the exit status."""
    arguments = _spread_files(sys.argv[1:] if arguments is None else arguments)
    usual_width()
    try:
        with usable_streams():
            try:
                status = app(args=arguments or ["--help"], prog_name="blt", standalone_mode=False)
            finally:
                flush_result()
        return status if isinstance(status, int) else 0
    except _USAGE_ERRORS as error:
        message = " ".join(str(getattr(error, "format_message", error.__str__)()).split())
        if message:
            say(f"blt: {message}")
        return 2
    except BrokenPipeError:  # whoever read stdout has seen enough, as `| head -1` does
        return 1
    except (ValueError, OSError) as error:
        say("blt: " + " ".join(str(error).split()))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        say("blt: interrupted")
        return 130
    except FloatingPointError as error:
        say(f"blt: {error}")
        return 1


def _spread_files(arguments: list[str]) -> list[str]:
    """`--files a b c` as `--files a --files b --files c`, which is all that typer reads."""
    spread: list[str] = []
    inside = False
    for position, argument in enumerate(arguments):
        if argument.startswith("-"):
            inside = argument == "--files"
        elif inside and arguments[position - 1] != "--files":
            spread.append("--files")
        spread.append(argument)
    return spread


def run() -> None:
    """The console script."""
    occupy_closed_streams()
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _stop)
    try:
        status = main()
    except Exception:  # ours; through `say`, as the text of an error may be data
        say(traceback.format_exc().rstrip())
        status = 1
    sys.exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave by way of all `finally`s, so that a bar gives the cursor back."""
    sys.exit(128 + number)
