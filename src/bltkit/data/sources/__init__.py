"""Data sources (seam 2): where documents come from.

A source is a frozen config with a `kind` and one method, `documents()`. To add one, write its file and name
it in `Source`: TOML, command line and contract tests know it from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from bltkit.config import parse
from bltkit.data.sources.jsonl import JsonlSource
from bltkit.data.sources.source import Document, SourceConfig
from bltkit.data.sources.stdlib import StdlibSource
from bltkit.data.sources.text import TextSource

__all__ = [
    "Document",
    "JsonlSource",
    "Source",
    "SourceConfig",
    "StdlibSource",
    "TextSource",
    "parse_source",
    "read_documents",
]

_JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_NOT_PLAIN = (".gz", ".zst", ".zip", ".xz", ".bz2", ".parquet", ".arrow", ".json")


def _from_string(value: Any) -> Any:
    """`"stdlib"`, a path or a glob -> the table it is short for; anything else is passed on."""
    if not isinstance(value, str):
        return value
    if value == "stdlib":
        return {"kind": "stdlib"}
    name = value.lower()
    if name.endswith(_JSONL):
        return {"kind": "jsonl", "paths": [value]}
    if name.endswith(_NOT_PLAIN):
        # Training on the compressed bytes would work and be worthless, so it has to be asked for.
        raise ValueError(
            f"{value!r}: only .jsonl, .jsonl.gz and .jsonl.zst are unpacked; unpack it, "
            f'or say {{kind = "text", paths = ["{value}"]}} to take its raw bytes'
        )
    if not value.strip():
        raise ValueError('an empty name; say "stdlib" or the path of a file')
    return {"kind": "text", "paths": [value]}


Source = Annotated[
    Annotated[TextSource | JsonlSource | StdlibSource, Field(discriminator="kind")],
    BeforeValidator(_from_string),
]
"""Every source there is: a table `{kind = "...", ...}`, or its short form as a string."""


def parse_source(spec: str | dict[str, Any]) -> TextSource | JsonlSource | StdlibSource:
    """One source from its short form or its table. `ValueError`, one line, for what is not a source."""
    source: TextSource | JsonlSource | StdlibSource = parse(Source, spec, "data source")
    return source


def read_documents(specs: Iterable[str]) -> list[Document]:
    """All documents of some sources that hold any bytes. `ValueError` where there is none."""
    specs = list(specs)
    found = [document for spec in specs for document in parse_source(spec).documents() if document.data]
    if not found:
        raise ValueError(f"no text in {', '.join(specs)}; name files that hold some")
    return found
