"""Griffe extension of the documentation site: `name: meaning` lines of docstrings become lists.

Our docstrings explain arguments as `name: meaning`, without a heading. As Markdown such lines would run
together into one paragraph.
"""

import re
from typing import Any

from griffe import Extension, Object

ENTRY = re.compile(r"\*{0,2}(\w+(?:, \w+)*): (\S.*)")
FURTHER = re.compile(r"\. (?=\w+(?:, \w+)*: [a-z\"`\[])")
NO_ENTRIES = ("http", "https", "Raises", "Source")


class DocstringLists(Extension):
    """Rewrites every docstring in memory before it is rendered."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(text: str) -> str:
    """The docstring with a list item for each `name: meaning`."""
    lines: list[str] = []
    entry: list[str] = []
    for line in [*text.splitlines(), ""]:
        begins = ENTRY.fullmatch(line)
        begins = None if begins is None or begins[1] in NO_ENTRIES else begins
        continues = entry and line.strip() and not line.startswith("Raises ")
        if begins or not continues:
            lines.extend(items(" ".join(entry)))
            lines.extend([""] if entry and not begins and line else [])
            entry = []
        if begins:
            lines.extend([""] if lines and lines[-1] and not lines[-1].startswith("- ") else [])
            entry = [line]
        elif continues:
            entry.append(line.strip())
        else:
            lines.append(line)
    return "\n".join(lines).rstrip()


def items(entry: str) -> list[str]:
    """Items of one paragraph: several entries may share it."""
    if not entry:
        return []
    parts = FURTHER.split(entry)
    ends = [*("." for _ in parts[1:]), ""]
    return [ENTRY.sub(r"- **\1**: \2", part) + end for part, end in zip(parts, ends, strict=True)]
