"""Files of prompts, and the file of results beside which a job of many prompts keeps what it was asked for.

A prompt file is read line by line, once to check all of it and once to continue it, so memory holds a line, and
the ids. Results are JSON lines in the order in which prompts finish; the next run removes a line that was cut off.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bltkit.config import nearest
from bltkit.files.compressed import SUFFIXES, lines
from bltkit.files.structured import parse_json, read_json
from bltkit.generate.options import Prompt, parse_options

KEYS = ("id", "prompt", "prompt_hex", "seed", "max_bytes", "stop", "strategy")


@dataclass(frozen=True)
class NamedPrompt:
    """A line of a prompt file."""

    id: str | int
    """As the line says, else the line's number, from 1."""
    prompt: Prompt

    @property
    def digest(self) -> str:
        """What was asked for under this id: 16 hex digits of SHA-256."""
        options = {name: value for name, value in self.prompt.options.items() if name != "stop"}
        stop = self.prompt.stop
        texts = [] if stop is None else [stop] if isinstance(stop, str | bytes) else list(stop)
        shown = [self.prompt.data.hex(), options, [str(text) for text in texts]]
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


def read_prompts(path: Path) -> Iterator[NamedPrompt]:
    """The prompts of a file, one a line; lines without text are passed over.

    The file may be compressed (gz, zst, xz, bz2). `.txt`: a line's bytes are the prompt. Else a line is a JSON object
    with `prompt`, or `prompt_hex` for bytes that are no text; and if wanted `id` (text or a whole number, in all lines
    or in none), `seed`, `max_bytes`, `stop`, `strategy`.

    Raises ValueError that names file and line, OSError where it cannot be read.
    """
    ids: set[str | int] = set()
    named: bool | None = None
    plain = [suffix for suffix in path.suffixes if suffix not in SUFFIXES][-1:] == [".txt"]
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        if plain:
            yield NamedPrompt(number, Prompt(line.removesuffix(b"\r")))
            continue
        where = f"{path}:{number}"
        value = parse_json(line, where)
        item = _named_prompt(value, number, where)
        if named is None:
            named = "id" in value
        if named != ("id" in value):
            raise ValueError(f"{where}: give every line an 'id', or none (then it is the line's number)")
        if named:
            if item.id in ids:
                raise ValueError(f"{where}: id {item.id!r} is that of an earlier line; ids must differ")
            ids.add(item.id)
        yield item


def check_prompts(path: Path) -> int:
    """The number of prompts in a file. Raises ValueError as `read_prompts` does, and where there are none."""
    if not path.exists():
        raise ValueError(f"prompts file {path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file; prompts are read twice, so give a file")
    count = sum(1 for _ in read_prompts(path))
    if not count:
        raise ValueError(f"{path}: no prompts; each line is one")
    return count


class ResultFile:
    """The results of a job and, in `OUT.run/` beside them, the options that they were made with.

    Raises ValueError for a place that cannot hold results, and results of another job or made with other options.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self.path, self._options = path, parse_json(json.dumps(options), "options")

    @property
    def directory(self) -> Path:
        """Beside the file: options and lock."""
        return self.path.with_name(self.path.name + ".run")

    @property
    def _settings(self) -> Path:
        return self.directory / "options.json"

    def check_place(self) -> None:
        """Raise ValueError where the results cannot be written, before anything is read or made."""
        if self.path.is_dir():
            raise ValueError(f"--out {self.path} is a directory; name a file for the results, such as results.jsonl")
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"--out {self.path} is not a regular file, so no rerun could continue it; name a file")
        if not self.path.absolute().parent.is_dir():
            raise ValueError(f"--out {self.path}: directory {self.path.absolute().parent} does not exist")
        if self.path.suffix.lower() in (".gz", ".zst", ".xz", ".bz2"):
            raise ValueError(f"--out {self.path}: results are written uncompressed; let the name end in .jsonl")
        if self.path.exists() and self.path.stat().st_size and not self._settings.exists():
            raise ValueError(f"--out {self.path} holds something else ({self._settings} is missing); name another file")

    def open(self) -> dict[str | int, str]:
        """Digests of the finished prompts, by id; a last line that was cut off is removed."""
        settings = self._settings
        finished: dict[str | int, str] = {}
        if self.path.exists() and self.path.stat().st_size:
            self._refuse_others(read_json(settings))
            self._cut()
            for number, line in enumerate(lines(self.path), 1):
                row = parse_json(line, f"{self.path}:{number}")
                if not isinstance(row, dict) or not isinstance(row.get("id"), str | int):
                    raise ValueError(f"{self.path}:{number}: not a result with an 'id'; remove the line")
                finished[row["id"]] = str(row.get("request"))
        elif not settings.exists() or read_json(settings) != self._options:
            temporary = settings.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._options, indent=1) + "\n", encoding="utf-8")
            temporary.replace(settings)
        return finished

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line. Raises OSError where the disk is full: the next run removes what was written of it."""
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; finished results are kept", str(self.path)) from None

    def _refuse_others(self, before: Any) -> None:
        before = before if isinstance(before, dict) else {}
        for name in {**before, **self._options}:
            old, new = before.get(name), self._options.get(name)
            if old != new:
                raise ValueError(
                    f"--out {self.path} was begun with {name} = {old!r}, now it is {new!r}; "
                    f"repeat the former, or choose another --out"
                )

    def _cut(self) -> None:
        """Remove a last line without an end, reading backwards."""
        with self.path.open("rb+") as file:
            end = file.seek(0, 2)
            position = end
            while position:
                start = max(0, position - 65536)
                file.seek(start)
                at = file.read(position - start).rfind(b"\n")
                position = start + at + 1 if at >= 0 else start
                if at >= 0:
                    break
            if position < end:
                file.truncate(position)


def _named_prompt(value: Any, number: int, where: str) -> NamedPrompt:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a JSON object with 'prompt' is needed, got {type(value).__name__}")
    for key in value:
        if key not in KEYS:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, KEYS)}")
    if ("prompt" in value) == ("prompt_hex" in value):
        raise ValueError(f"{where}: give 'prompt' (text) or 'prompt_hex' (bytes), one of them")
    text = value.get("prompt", value.get("prompt_hex"))
    if not isinstance(text, str):
        raise ValueError(f"{where}: the prompt must be text, got {type(text).__name__}")
    name = value.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"{where}: id = {name!r} must be text or a whole number")
    try:
        text_or_bytes = text if "prompt" in value else bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"{where}: prompt_hex = {text[:40]!r} is not hexadecimal, two digits a byte") from None
    options = {key: value[key] for key in ("seed", "max_bytes", "stop", "strategy") if value.get(key) is not None}
    try:
        parse_options(b"", options)
        return NamedPrompt(name, Prompt(text_or_bytes, **options))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
