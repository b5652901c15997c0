"""Texts of the study `entropy`: those that the user names, or one for each type of data that every install has.

Of a long source, stretches spread evenly over all of it are measured, cut between characters; what follows each may
prime the context-mixing model. The default texts need no download: prose and code come with Python, the binary one is
compiled code and a shared library, the structured one is written out of Python's own tables. Nothing that every user
has holds running text in many scripts, so a short one was written for this (`scripts.txt`).
"""

import csv
import io
import json
import marshal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from bltkit.bench.prompt_texts import character_end
from bltkit.data import read_documents
from bltkit.data.sources import StdlibSource

PIECE_BYTES = 4096
"""Approximate length of a stretch: models see little more of a text at once."""

_MODULES = (
    "argparse.py",
    "csv.py",
    "difflib.py",
    "heapq.py",
    "json/decoder.py",
    "pathlib.py",
    "shutil.py",
    "zipfile.py",
)


@dataclass(frozen=True)
class StudyText:
    """A text to measure, and the bytes that a model that learns may read before it (`primed`)."""

    name: str
    source: str
    data: bytes
    primed: bytes

    @property
    def digest(self) -> str:
        """Hash of both parts."""
        return sha256(b"%d:" % len(self.data) + self.data + self.primed).hexdigest()[:16]


def read_texts(sources: Mapping[str, str], num_bytes: int, primed_bytes: int) -> list[StudyText]:
    """Text of each source (a file, a folder with all files below it, a glob, a data source such as FILE.jsonl.zst).

    sources: by name; none for the default texts. num_bytes, primed_bytes: maximum of each, to measure and to prime.

    Raises ValueError for a source without text.
    """
    if not sources:
        whole = {name: ("default", make()) for name, make in DEFAULTS.items()}
    else:
        whole = {name: (source, _read(source)) for name, source in sources.items()}
    return [StudyText(name, source, *excerpt(data, num_bytes, primed_bytes)) for name, (source, data) in whole.items()]


def excerpt(data: bytes, num_bytes: int, primed_bytes: int) -> tuple[bytes, bytes]:
    """Stretches of `data`, about `num_bytes` in all, and at most `primed_bytes` of what lies between them.

    A text that is not longer is returned whole. Stretches begin where a character does.
    """
    if len(data) <= num_bytes:
        return data, b""
    count = -(-num_bytes // PIECE_BYTES)
    size, primed = num_bytes // count, primed_bytes // count
    begins = [number * len(data) // count for number in range(count)]
    ends = [*begins[1:], len(data)]
    places = [(character_end(data, begin), end) for begin, end in zip(begins, ends, strict=True)]
    middles = [character_end(data, min(begin + size, end)) for begin, end in places]
    taken = [data[begin:middle] for (begin, _), middle in zip(places, middles, strict=True)]
    between = [data[middle : min(middle + primed, end)] for (_, end), middle in zip(places, middles, strict=True)]
    return b"".join(taken), b"".join(between)


def _read(source: str) -> bytes:
    folder = Path(source).expanduser()
    documents = read_documents([str(folder / "**" / "*") if folder.is_dir() else source])
    return b"".join(document.data for document in documents)


def _prose() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def _modules() -> dict[str, bytes]:
    return {one.name: one.data for one in StdlibSource().documents() if one.name in _MODULES}


def _code() -> bytes:
    return b"".join(_modules().values())


def _structured() -> bytes:
    """JSON, CSV and XML of Python's tables: named characters, properties of characters, types of files."""
    import html.entities
    import mimetypes
    import plistlib
    import unicodedata

    entities = [{"name": name, "codes": [ord(one) for one in text]} for name, text in html.entities.html5.items()]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("code", "name", "category", "bidirectional", "combining", "decomposition"))
    for code in range(0x20, 0x500):
        one = chr(code)
        kind = unicodedata.category(one), unicodedata.bidirectional(one), unicodedata.combining(one)
        writer.writerow((f"{code:04X}", unicodedata.name(one, ""), *kind, unicodedata.decomposition(one)))
    types = {name: {"type": kind, "binary": not kind.startswith("text")} for name, kind in mimetypes.types_map.items()}
    return json.dumps(entities, indent=1).encode()[:65536] + table.getvalue().encode() + plistlib.dumps(types)


def _binary() -> bytes:
    """Contents of .pyc files, and as much from the middle of a shared library of machine code."""
    compiled = b"".join(
        marshal.dumps(compile(data, name, "exec", dont_inherit=True)) for name, data in _modules().items()
    )
    machine = Path(str(import_module("numpy._core._multiarray_umath").__file__)).read_bytes()
    middle = len(machine) // 2
    return compiled + machine[middle : middle + len(compiled)]


def _scripts() -> bytes:
    return files("bltkit.study.entropy_quality").joinpath("scripts.txt").read_bytes().rstrip()


DEFAULTS: Mapping[str, Callable[[], bytes]] = {
    "prose": _prose,
    "code": _code,
    "structured": _structured,
    "binary": _binary,
    "scripts": _scripts,
}
"""Type of data -> function that makes its default text."""
