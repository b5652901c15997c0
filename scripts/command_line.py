"""Writes docs/reference/command-line.md from the help of `blt`; with `--check`, status 1 says that it is old."""

import os
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "command-line.md"
HEAD = """# Command line

Every verb of `blt` with its arguments and options, as `blt VERB --help` says it. This page is written by
`python -m scripts.command_line`. `--json` makes a verb print its result as one JSON object; a text of `-` is read from
stdin. Exit status: 0 success, 2 a user's mistake, which one line on stderr names, 1 a fault of the program.
`--install-completion` makes the shell complete verbs and options.
"""


def page() -> str:
    """The whole page as Markdown."""
    os.environ["COLUMNS"] = "200"
    import typer.main

    from bltkit.cli import app

    group: Any = typer.main.get_command(app)
    context = group.make_context("blt", [], resilient_parsing=True)
    return HEAD + "".join(sections(group, context, "blt"))


def sections(group: Any, context: Any, prefix: str) -> list[str]:
    """The sections of a group's commands, each followed by those of its own commands."""
    texts: list[str] = []
    for name in group.list_commands(context):
        command, title = group.get_command(context, name), f"{prefix} {name}"
        inner = type(context)(command, info_name=name, parent=context)
        usage = " ".join([title, *command.collect_usage_pieces(inner)])
        texts.append(f"\n{'##' if prefix == 'blt' else '###'} `{title}`\n\n{sentences(command.help)}\n\n")
        texts.append(f"```console\n$ {usage}\n```\n")
        records = [record for item in command.get_params(inner) if (record := item.get_help_record(inner))]
        if records:
            texts.append("\n| argument or option | meaning |\n|---|---|\n")
            texts.extend(f"| `{cell(left)}` | {plain(right)} |\n" for left, right in records)
        if hasattr(command, "list_commands"):
            texts.extend(sections(command, inner, title))
    return texts


def sentences(help_text: str | None) -> str:
    """A command's help without line breaks inside of paragraphs."""
    paragraphs = (help_text or "").strip().split("\n\n")
    return "\n\n".join(escaped(" ".join(paragraph.split())) for paragraph in paragraphs)


def cell(text: str) -> str:
    """Code inside of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def plain(text: str) -> str:
    """A meaning inside of a table; backticks stay code."""
    return escaped(" ".join(text.split())).replace("|", "\\|")


def escaped(text: str) -> str:
    """Text whose signs are not Markdown's, outside of backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    written = page()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == written else 1)
    PAGE.write_text(written, encoding="utf-8")
