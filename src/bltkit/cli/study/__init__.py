"""The verb `study`: measurements that answer a question, as rows, a table and pictures in a directory.

A new study is its own folder below `study/` and a line in `STUDIES`. A line names a subclass of `Study`, which gets the
options that all studies have, or a function, which is a command with options of its own. Modules are imported when
their study is asked for.
"""

from typing import Any

import typer

from bltkit.cli.verb import Verb, Verbs

STUDIES = {
    "fast-decoding": "bltkit.cli.study.fast_decoding:fast_decoding",
    "entropy": "bltkit.cli.study.entropy_quality:entropy",
    "evaluations": "bltkit.cli.study.evaluations:evaluations",
    "robustness": "bltkit.cli.study.robustness:robustness",
    "scaling": "bltkit.cli.study.scaling:scaling",
    "efficiency": "bltkit.cli.study.efficiency:efficiency",
    "ablation": "bltkit.cli.study.ablation:ablation",
}
"""Every study: its name, and `module:attribute`."""


class _Studies(Verbs):
    """Knows its commands, and the nearest one to a name that is not among them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(STUDIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from bltkit.config import nearest

        if cmd_name not in STUDIES:
            raise ValueError(f"no study {cmd_name!r}{nearest(cmd_name, list(STUDIES))}")
        return study_command(cmd_name, STUDIES[cmd_name])


def study_command(name: str, target: str) -> Any:
    """The click command of a study. Raises ValueError where `target` names none."""
    from bltkit.registry import resolve

    function = resolve(target)
    if isinstance(function, type):
        from bltkit.cli.study.command import command_of

        function = command_of(name, function)
    command = typer.Typer(add_completion=False)
    command.command(name, cls=Verb)(function)
    return typer.main.get_command(command)


app = typer.Typer(
    cls=_Studies,
    help="Run a study. Each has options of its own (`blt study NAME --help`); all take --out and --json.",
)
