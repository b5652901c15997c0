"""Data sources (seam 2): where documents come from.

A source is a frozen config with a `kind`, its policies and a method `documents()`; `read` gives what the policies
let through. To add one, write its file and name it in `Source`: TOML, command line and contract tests know it from
there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from bltkit.config import parse, parse_value
from bltkit.data.sources.annotated import AnnotatedSource
from bltkit.data.sources.binary import BinarySource
from bltkit.data.sources.chat import ChatSource, chat_template
from bltkit.data.sources.hub import HubSource
from bltkit.data.sources.jsonl import JsonlSource
from bltkit.data.sources.parquet import ParquetSource
from bltkit.data.sources.prompts import PromptSource
from bltkit.data.sources.source import Document, Fault, Faults, Input, SourceConfig, read
from bltkit.data.sources.stdlib import StdlibSource
from bltkit.data.sources.text import TextSource
from bltkit.files.compressed import SUFFIXES

__all__ = [
    "AnnotatedSource",
    "BinarySource",
    "ChatSource",
    "Document",
    "Fault",
    "Faults",
    "HubSource",
    "Input",
    "JsonlSource",
    "ParquetSource",
    "PromptSource",
    "Source",
    "SourceConfig",
    "StdlibSource",
    "TextSource",
    "chat_template",
    "parse_source",
    "read",
    "read_documents",
]

_JSONL = (".jsonl", *(f".jsonl{suffix}" for suffix in SUFFIXES))
_TABLES = (".parquet", ".arrow", ".feather")
_NOT_PLAIN = (*SUFFIXES, ".zip", ".json")
_HUB = "hf:"  # as for models


def _from_string(value: Any) -> Any:
    """`"stdlib"`, `"hf:OWNER/NAME"`, a path or a glob -> the table it is short for; anything else is passed on."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):  # a table on the command line
        table = parse_value(value)
        if not isinstance(table, dict):
            raise ValueError(f'{value!r} is not a table; say for example {{kind = "jsonl", paths = ["a.jsonl"]}}')
        return table
    if value == "stdlib":
        return {"kind": "stdlib"}
    if value.startswith(_HUB):
        return {"kind": "hub", "name": value.removeprefix(_HUB)}
    name = value.lower()
    if name.endswith(_JSONL):
        return {"kind": "jsonl", "paths": [value]}
    if name.endswith(_TABLES):
        return {"kind": "parquet", "paths": [value]}
    if name.endswith(_NOT_PLAIN):
        # Training on the compressed bytes would work and be worthless, so it has to be asked for.
        raise ValueError(
            f"{value!r}: only JSON lines are unpacked ({', '.join(_JSONL)}); unpack it, "
            f'or say {{kind = "text", paths = ["{value}"]}} to take its raw bytes'
        )
    if not value.strip():
        raise ValueError('an empty name; say "stdlib" or the path of a file')
    return {"kind": "text", "paths": [value]}


# A new kind is named here.
AnySource = (
    TextSource  # one to a line
    | JsonlSource
    | ParquetSource
    | HubSource
    | BinarySource
    | StdlibSource
    | AnnotatedSource
    | PromptSource
    | ChatSource
)
Source = Annotated[Annotated[AnySource, Field(discriminator="kind")], BeforeValidator(_from_string)]
"""Every source there is: a table `{kind = "...", ...}`, also as a string, or its short form as a string."""


def parse_source(spec: str | dict[str, Any]) -> AnySource:
    """One source from its short form or its table. `ValueError`, one line, for what is not a source."""
    source: AnySource = parse(Source, spec, "data source")
    return source


def read_documents(specs: Iterable[str]) -> list[Document]:
    """All documents of some sources that hold any bytes. `ValueError` where there is none."""
    specs, faults = list(specs), Faults()
    found = [document for spec in specs for document in read(parse_source(spec), faults)]
    if not found:
        why = f" (passed over: {faults})" if faults else ""
        raise ValueError(f"no text in {', '.join(specs)}{why}; name files that hold some")
    return found
