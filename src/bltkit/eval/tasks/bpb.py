"""Bits per byte of whole texts, per source and per script."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from bltkit.eval.dataset_source import Place, read_rows, unpacked_name
from bltkit.eval.requests import Answer, Coded, Compression, Request
from bltkit.eval.scripts import main_script
from bltkit.eval.tasks.task import Grade, Item, Metric, Task
from bltkit.files import is_file_or_dangling, read_whole
from bltkit.files.compressed import SUFFIXES
from bltkit.vocab import to_bytes


class BitsPerByte(Task):
    """Bits per byte of one's own texts: windows of a row's bytes that advance by half of one, BOS in front of each, no
    EOS, every byte scored once.

    Source: the files of the folder `text` (or `bpb:folder=NAME`) in `--data DIR`: a document for each line of a
    `.jsonl` file (`text`), any other file as one document of whatever bytes it holds; `.gz`, `.zst`, `.xz` and `.bz2`
    are unpacked. `bpb:udhr` is one file, called by
    its name up to the first dot. Groups: `source`, the file, and `script`, that of most letters of the document.
    Normalisation: nats / (ln 2 x bytes), summed over documents first. Known difference: the papers' texts are not
    published.
    """

    kind: Literal["bpb"] = "bpb"
    folder: str = Field(default="text", description="Where in the data directory the files are.")
    max_bytes: PositiveInt | None = Field(default=None, examples=[100], description="Of a document, from its start.")
    metrics: ClassVar[Mapping[str, Metric]] = {"bpb": Metric("lower", highest=None)}
    damaged: ClassVar[tuple[str, ...]] = ("text",)
    level: ClassVar[str | None] = "source"

    def items(self, place: Place) -> Iterator[Item]:
        files: dict[str, Path] = {}
        for path in place.glob(f"{self.folder}/**/*"):
            source = path.name.partition(".")[0]
            if source and is_file_or_dangling(path) and files.setdefault(source, path) != path:
                raise ValueError(f"{path}: {files[source]} is called {source!r} too; give one of them another name")
        if not files:
            raise ValueError(f"{self.folder}/: no files in {place}; put texts there, or say bpb:folder=NAME")
        for source in self.chosen_parts(sorted(files)):
            for number, text in enumerate(_documents(files[source])):
                if text:
                    yield Item(f"{source}/{number}", {"text": text}, {"source": source, "script": main_script(text)})

    def requests(self, item: Item) -> tuple[Request, ...]:
        return (Compression(to_bytes(item["text"])[: self.max_bytes]),)

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        (answer,) = answers
        assert isinstance(answer, Coded)
        return Grade({"bpb": (answer.nats / math.log(2), float(answer.num_bytes))}, {"bytes": answer.num_bytes})


def _documents(path: Path) -> Iterator[str]:
    """Bytes that are not UTF-8 are escaped, and come back as they were."""
    if not unpacked_name(path).endswith(".jsonl"):
        data = read_whole(path) if path.suffix in SUFFIXES else path.read_bytes()
        yield data.decode("utf-8", "surrogateescape")
        return
    for number, row in enumerate(read_rows(path), 1):
        if not isinstance(row.get("text"), str):
            raise ValueError(f"{path}, document {number}: no field 'text'; the row has {', '.join(row)}")
        yield row["text"]
