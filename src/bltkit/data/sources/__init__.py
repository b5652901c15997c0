"""Data sources (seam 2): where documents come from.

A source is a frozen config with a `kind`, its policies and a method `documents()`; `read` gives what the policies
let through. A new source is its own file and a line in `SOURCES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator

from bltkit.config import parse, parse_value
from bltkit.data.sources.annotated import AnnotatedSource
from bltkit.data.sources.binary import BinarySource
from bltkit.data.sources.chat import ChatSource, chat_template
from bltkit.data.sources.hub_datasets import HubSource
from bltkit.data.sources.jsonl import JsonlSource
from bltkit.data.sources.parquet import ParquetSource
from bltkit.data.sources.plain_text import TextSource
from bltkit.data.sources.prompts import PromptSource
from bltkit.data.sources.source import Document, Fault, Faults, Input, SourceConfig, read
from bltkit.data.sources.stdlib import StdlibSource
from bltkit.data.sources.text_sequence import Texts
from bltkit.files.compressed import SUFFIXES
from bltkit.registry import Registry

__all__ = [
    "SOURCES",
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
    "Texts",
    "chat_template",
    "parse_source",
    "read",
    "read_documents",
    "read_texts",
]

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
    for kind, member in SOURCES.items():
        if name.endswith(member.suffixes):
            return {"kind": kind, "paths": [value]}
    if name.endswith(_NOT_PLAIN):
        # Training on the compressed bytes would work and be worthless, so it has to be asked for.
        raise ValueError(
            f"{value!r}: only JSON lines are unpacked ({', '.join(JsonlSource.suffixes)}); unpack it, "
            f'or say {{kind = "text", paths = ["{value}"]}} to take its raw bytes'
        )
    if not value.strip():
        raise ValueError('an empty name; say "stdlib" or the path of a file')
    return {"kind": "text", "paths": [value]}


SOURCES = Registry(
    "data source",
    SourceConfig,
    "bltkit.data.sources.plain_text:TextSource",
    "bltkit.data.sources.jsonl:JsonlSource",
    "bltkit.data.sources.parquet:ParquetSource",
    "bltkit.data.sources.hub_datasets:HubSource",
    "bltkit.data.sources.binary:BinarySource",
    "bltkit.data.sources.stdlib:StdlibSource",
    "bltkit.data.sources.annotated:AnnotatedSource",
    "bltkit.data.sources.prompts:PromptSource",
    "bltkit.data.sources.chat:ChatSource",
)
"""Every source by its kind."""

Source = Annotated[SourceConfig, SOURCES, BeforeValidator(_from_string)]
"""Every source there is: a table `{kind = "...", ...}`, also as a string, or its short form as a string."""


def parse_source(spec: str | dict[str, Any]) -> SourceConfig:
    """One source from its short form or its table. `ValueError`, one line, for what is not a source."""
    source: SourceConfig = parse(Source, spec, "data source")
    return source


def read_documents(specs: Iterable[str]) -> list[Document]:
    """All documents of some sources that hold any bytes. `ValueError` where there is none."""
    return list(_documents(list(specs)))


def read_texts(specs: Iterable[str]) -> Texts:
    """The bytes of all documents of some sources, close together. `ValueError` where there is none."""
    return Texts(document.data for document in _documents(list(specs)))


def _documents(specs: list[str]) -> Iterator[Document]:
    faults, count = Faults(), 0
    for spec in specs:
        for document in read(parse_source(spec), faults):
            count += 1
            yield document
    if not count:
        why = f" (passed over: {faults})" if faults else ""
        raise ValueError(f"no text in {', '.join(specs)}{why}; name files that hold some")
