"""`blt study evaluations`: the page of an evaluation anew, or several evaluations side by side."""

from pathlib import Path
from typing import Annotated

import typer

from bltkit.cli.terminal import Json, print_json, print_text, say


def evaluations(
    directories: Annotated[list[Path], typer.Argument(help="What `blt eval --out` wrote; the first is compared with.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The page, such as runs.html; default for a single one: its report.html.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """One HTML page: of one evaluation, or of several with their differences to the first."""
    from bltkit.eval.report import write_comparison, write_page

    if out is not None and out.suffix != ".html":
        raise ValueError(f"--out {out}: a page's name ends in .html")
    if len(directories) == 1:
        place = write_page(directories[0], out)
        if as_json:
            print_json({"page": str(place)})
    else:
        if out is None:
            raise ValueError("a comparison needs a place for its page, such as --out runs.html")
        comparison = write_comparison(directories, out)
        place = out
        if as_json:
            print_json({"page": str(place)} | comparison.to_json())
        else:
            print_text(comparison.summary(), end="")
    say(f"wrote {place}")
