"""What the studies' commands have in common."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from bltkit.cli.terminal import print_json, print_text, say, threads_option

Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="DIR", help="Directory of rows, table and pictures; a broken-off study goes on there."
    ),
]
Report = Annotated[bool, typer.Option("--report", help="Table and pictures anew, from the rows in --out.")]
Threads = Annotated[int | None, typer.Option("--threads", callback=threads_option, help="Default: torch's.")]


def only_report(options: Mapping[str, Any]) -> None:
    """Raises ValueError where an option of measuring was given together with --report."""
    given = next((option for option, value in options.items() if value is not None), None)
    if given is not None:
        raise ValueError(f"{given} is for measuring; --report only reads the rows in --out")


def measured(out: Path) -> list[dict[str, Any]]:
    """The rows of a study's directory. Raises ValueError where there are none."""
    from bltkit.files.json_lines import read_lines
    from bltkit.study.row_file import ROWS

    if not (out / ROWS).is_file():
        raise ValueError(f"--out {out}: there is no {ROWS} in it to report; measure first, without --report")
    return read_lines(out / ROWS)


def named(option: str, values: Sequence[str]) -> dict[str, str]:
    """NAME=SOURCE, several times. Raises ValueError for another form, and for a name given twice."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, source = value.partition("=")
        if not (equals and name.strip() and source.strip()):
            raise ValueError(f"{option} {value!r} is not NAME=SOURCE, such as plain=bltkit:tiny or prose=book.txt")
        if name in found:
            raise ValueError(f"{option} {value!r}: the name {name!r} is given twice; each needs its own")
        found[name] = source
    return found


def circumstances() -> dict[str, Any]:
    """Under which a study measures: threads, commit, machine, command."""
    import shlex
    import sys

    import torch

    from bltkit.bench.record import commit, machine

    return {
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "machine": machine(torch.device("cpu")),
        "command": shlex.join(["blt", *sys.argv[1:]]),
    }


def show(
    rows: Sequence[Mapping[str, Any]],
    table: Path,
    text: Callable[[Any], str],
    write: Callable[[Any, Path], Sequence[Path]],
    as_json: bool,
    *,
    pages: Sequence[Path] = (),
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """A study's table on stdout, and with its pages and pictures in files; without matplotlib no pictures.

    table: where `write`, given the directory, puts the table; pages: what it writes also without matplotlib. more: keys
    of the JSON beside rows, figures and table.
    """
    try:
        figures = list(write(rows, table.parent))
    except ValueError as error:
        if "matplotlib" not in str(error):
            raise
        figures = list(pages)
        say(f"no pictures: {error}")
    if as_json:
        print_json({"rows": rows, **more, "figures": [str(figure) for figure in figures], "table": str(table)})
    else:
        print_text(text(rows), end="")
    for place in (table, *figures):
        say(f"wrote {place}")
