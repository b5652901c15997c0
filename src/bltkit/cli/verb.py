"""The class of every command of `blt`: what typer shows of it in help."""

from typing import Any

from typer.core import TyperCommand

_TYPES = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "bool": "", "path": "PATH", "file": "PATH"}


class Verb(TyperCommand):
    """A command whose help shows types as other programs do: `TEXT`, `INTEGER`, and nothing for a switch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for param in self.params:
            display = getattr(param, "display_type_rich", None)
            if display is not None:

                def shown(ctx: Any, display: Any = display) -> str:
                    return usual_type(display(ctx) or "")

                setattr(param, "display_type_rich", shown)  # noqa: B010  an instance's, in place of the class's


def usual_type(shown: str) -> str:
    """`<int>` as INTEGER, `<list[path]>` as PATH..., `<a|b>` as a|b; what is not in angle brackets as it is."""
    if not (shown.startswith("<") and shown.endswith(">")):
        return shown
    kind, repeated = shown[1:-1].removesuffix(" range"), ""
    if kind.startswith("list[") and kind.endswith("]"):
        kind, repeated = kind[5:-1], "..."
    return _TYPES.get(kind, kind) + repeated
