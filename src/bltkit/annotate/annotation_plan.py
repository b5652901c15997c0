"""Which documents go into which shard: a function of the sources alone, so that every engine makes the same ones.

Planning reads all text once, without the model, and keeps a digest of each shard's documents; whoever computes a shard
reads its documents again. A shard's documents come from one source, so that sources can be given weights afterwards.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bltkit.data.sources import Document, Faults, SourceConfig, read
from bltkit.data.sources.paths import expand
from bltkit.data.sources.shards import digest

SHARD_BYTES = 64 * 1024 * 1024
"""Text in a shard by default; with its entropies it is about five times as much in memory."""

Progress = Callable[[int, int | None], None]
"""Is told bytes done, and of how many."""


@dataclass(frozen=True)
class ShardPlan:
    """Where a shard's documents stand: `documents` of them behind the first `skip` of part `first_part`."""

    number: int
    source: int
    first_part: int
    skip: int
    documents: int
    bytes: int
    content: str
    """`digest` of the documents."""


@dataclass(frozen=True)
class AnnotationPlan:
    """All shards of some sources."""

    sources: tuple[SourceConfig, ...]
    parts: tuple[tuple[SourceConfig, ...], ...]
    """Every source as sources that read one file each, where it reads files: a shard is found without reading all
    that stands in front of it."""
    shards: tuple[ShardPlan, ...]
    faults: tuple[str, ...]
    """What was passed over, a line for each source where anything was."""


def plan_shards(sources: Sequence[SourceConfig], shard_bytes: int, progress: Progress | None = None) -> AnnotationPlan:
    """Cut the sources into shards: a shard ends with the document that fills it to `shard_bytes` bytes of text.

    Raises ValueError for a source that cannot be read or holds no text.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard-bytes = {shard_bytes} must be at least 1")
    parts = tuple(tuple(_parts(source)) for source in sources)
    shards: list[ShardPlan] = []
    faults, done = [], 0
    for index, source in enumerate(sources):
        told, before = Faults(), len(shards)
        for shard in _shards_of(index, parts[index], shard_bytes, len(shards), told):
            shards.append(shard)
            done += shard.bytes
            if progress is not None:
                progress(done, None)
        if len(shards) == before:
            why = f" (passed over: {told})" if told else ""
            raise ValueError(f"data source {source.label}: no documents with any bytes{why}; name files that hold text")
        if told:
            faults.append(f"{source.label}: {told}")
    return AnnotationPlan(tuple(sources), parts, tuple(shards), tuple(faults))


class ShardReader:
    """Reads the documents of shards. Those asked for in rising order are read in one pass over the sources."""

    def __init__(self, plan: AnnotationPlan) -> None:
        self._plan = plan
        self._at = (-1, -1, 0)  # source, part, and the next document in it
        self._documents: Iterator[Document] = iter(())

    def read(self, shard: ShardPlan) -> list[Document]:
        """The documents of a shard. Raises ValueError where they are not what was planned with."""
        found: list[Document] = []
        part, skip = shard.first_part, shard.skip
        parts = self._plan.parts[shard.source]
        while len(found) < shard.documents and part < len(parts):
            self._seek(shard.source, part, skip)
            for document in self._documents:
                found.append(document)
                self._at = (shard.source, part, self._at[2] + 1)
                if len(found) == shard.documents:
                    break
            part, skip = part + 1, 0
        if len(found) != shard.documents or digest(found) != shard.content:
            label = self._plan.sources[shard.source].label
            raise ValueError(f"data source {label}: its files changed while they were annotated; run it again")
        return found

    def _seek(self, source: int, part: int, skip: int) -> None:
        if self._at[:2] != (source, part) or self._at[2] > skip:
            self._documents = read(self._plan.parts[source][part])
            self._at = (source, part, 0)
        while self._at[2] < skip and next(self._documents, None) is not None:
            self._at = (source, part, self._at[2] + 1)


def _shards_of(
    index: int, parts: Sequence[SourceConfig], shard_bytes: int, first_number: int, faults: Faults
) -> Iterator[ShardPlan]:
    open_shard: list[Document] = []
    begin, size, number = (0, 0), 0, first_number

    def closed() -> ShardPlan:
        return ShardPlan(number, index, *begin, len(open_shard), size, digest(open_shard))

    for part, source in enumerate(parts):
        for position, document in enumerate(read(source, faults)):
            if not open_shard:
                begin = (part, position)
            open_shard.append(document)
            size += len(document.data)
            if size >= shard_bytes:
                yield closed()
                open_shard, size, number = [], 0, number + 1
    if open_shard:
        yield closed()


def _parts(source: SourceConfig) -> Iterator[SourceConfig]:
    paths = getattr(source, "paths", None)
    if paths is None:
        yield source
        return
    for file in expand(paths):
        yield source.replace(paths=(str(file),))
