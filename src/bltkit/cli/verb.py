"""The classes of the commands of `blt`: what typer shows of them in help."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

_TYPES = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "bool": "", "path": "PATH", "file": "PATH"}


class Verb(TyperCommand):
    """A command whose help shows types as other programs do: `TEXT`, `INTEGER`, and nothing for a switch.

    Paragraphs of its help are filled to the terminal's width; typer would keep the line breaks of all but the first.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if options.get("help"):
            options["help"] = "\n\n".join(" ".join(part.split()) for part in options["help"].split("\n\n"))
        super().__init__(*arguments, **options)

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, `--help` among them."""
        return _with_usual_types(super().get_params(ctx))


class Verbs(TyperGroup):
    """A group of commands, whose own options are shown in the same way."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, `--help` among them."""
        return _with_usual_types(super().get_params(ctx))


def usual_type(shown: str) -> str:
    """`<int>` as INTEGER, `<list[path]>` as PATH..., `<a|b>` as a|b; what is not in angle brackets as it is."""
    if not (shown.startswith("<") and shown.endswith(">")):
        return shown
    kind, repeated = shown[1:-1].removesuffix(" range"), ""
    if kind.startswith("list[") and kind.endswith("]"):
        kind, repeated = kind[5:-1], "..."
    return _TYPES.get(kind, kind) + repeated


def _with_usual_types(params: list[Any]) -> list[Any]:
    for param in params:
        if "display_type_rich" not in vars(param) and hasattr(param, "display_type_rich"):

            def shown(ctx: Any, display: Any = param.display_type_rich) -> str:
                return usual_type(display(ctx) or "")

            param.display_type_rich = shown  # an instance's, in place of the class's
    return params
