"""The verb `study`: measurements that answer a question, as rows, a table and pictures in a directory.

Each study is a command of its own, with its own options, in a file of its own. A new one is added to `STUDIES`.
"""

from typing import Any

import typer

from bltkit.cli.study.ablation import ablation
from bltkit.cli.study.efficiency import efficiency
from bltkit.cli.study.entropy import entropy
from bltkit.cli.study.evaluations import evaluations
from bltkit.cli.study.fast_decoding import fast_decoding
from bltkit.cli.study.robustness import robustness
from bltkit.cli.study.scaling import scaling
from bltkit.cli.verb import Verb, Verbs

STUDIES = (fast_decoding, entropy, evaluations, robustness, scaling, efficiency, ablation)


class _Studies(Verbs):
    """Knows its commands, and the nearest one to a name that is not among them."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            from bltkit.config import nearest

            raise ValueError(f"no study {cmd_name!r}{nearest(cmd_name, list(self.commands))}")
        return found


app = typer.Typer(
    cls=_Studies,
    help="Run a study. Each has options of its own (`blt study NAME --help`); all take --out and --json.",
)
for study in STUDIES:
    app.command(cls=Verb)(study)
