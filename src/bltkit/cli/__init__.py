"""The command `blt`: verbs to functions, no logic. Text on stdout, progress and messages on stderr.

Exit status 0 on success, 2 on a user's mistake (one line), 1 on anything else. torch is imported by the verbs that
need it, so that `blt --help` is quick.
"""

import os
import sys

import typer

from bltkit.cli.data import annotate, calibrate
from bltkit.cli.evaluation import evaluate
from bltkit.cli.flops import flops
from bltkit.cli.generation import generate
from bltkit.cli.measuring import bench
from bltkit.cli.models import check, train
from bltkit.cli.study import app as study
from bltkit.cli.terminal import say
from bltkit.cli.text import patch, score

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for verb in (patch, generate, score, train, annotate, calibrate, check, flops, bench):
    app.command()(verb)
app.command("eval")(evaluate)
app.add_typer(study, name="study")

# typer carries its own copy of click, whose base error it does not export.
_USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def main(arguments: list[str] | None = None) -> int:
    """Run `blt`; returns the exit status."""
    arguments = _spread_files(sys.argv[1:] if arguments is None else arguments)
    try:
        status = app(args=arguments or ["--help"], prog_name="blt", standalone_mode=False)
        _flush()
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


def _flush() -> None:
    """Hand over what was printed. Where nobody takes it, Python would complain once more at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


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
    sys.exit(main())
