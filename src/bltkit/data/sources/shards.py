"""Annotated shards: documents with the entropy of every byte's prediction and the patches that follow from it.

Between the scorer and training: `annotate` writes them once, the source `annotated` reads them as often as wanted.
A directory holds `shard-00000.parquet`, ... and `manifest.json`, which says which model, rule and sources they are of.
Notable: a shard's bytes are a function of its documents and their entropies alone, so that whoever computes a shard
again, on whatever engine, gets the same file. The manifest holds a SHA-256 of every shard and seals itself; a shard is
compared with it before the first of its documents is given out, so that a flipped bit is never read as other text.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from bltkit.checkpoint.atomic import write_atomic
from bltkit.checkpoint.intact import Tell, sha256
from bltkit.config import Config, parse
from bltkit.data.sources.source import Document
from bltkit.files import check_seal, needs_space, parse_json, read_json, require_regular, sealed
from bltkit.patching import PatchingRule, patch
from bltkit.patching.finite import check_finite
from bltkit.vocab import BOS, OFFSET, PAD

FORMAT = 2
"""Raised when older versions of the package could no longer read what is written. 2: `digest`."""

MANIFEST = "manifest.json"
ROW_GROUP_BYTES = 1 << 20
"""Text in a row group, at least: what a reader holds at once."""

EntropyType = Literal["fp32", "fp16"]
_NUMPY: dict[EntropyType, type[np.floating[Any]]] = {"fp32": np.float32, "fp16": np.float16}
_ENCODINGS = {"entropies.list.element": "BYTE_STREAM_SPLIT", "starts.list.element": "DELTA_BINARY_PACKED"}
"""A fifth smaller than plain ones."""


class ScorerEntry(Config):
    """The entropy model: its name as it was given, and `scorer_hash` of it."""

    name: str
    sha256: str


class ShardEntry(Config):
    """What one shard holds."""

    file: str
    source: int
    """Index into the manifest's sources; all documents of a shard come from one."""
    documents: int
    bytes: int
    """Of text."""
    patches: int | None
    """Without those of BOS; None without a rule."""
    near_threshold: int
    """Positions whose entropy is so near the threshold that another machine's rounding may decide otherwise."""
    content: str
    """sha256 over the documents as the source gave them (`digest`)."""
    sha256: str
    """Of the file."""


class ShardManifest(Config):
    """`manifest.json`. `shards` is empty until all are there."""

    format: int = FORMAT
    scorer: ScorerEntry
    rule: str | None
    """As `parse_rule` reads it; None: the shards hold entropies only."""
    threshold: float | None
    dtype: EntropyType
    device: str
    """Kind of device that computed: entropies of another kind differ in their last bits."""
    shard_bytes: int
    sources: tuple[dict[str, Any], ...]
    shards: tuple[ShardEntry, ...] = ()
    digest: str | None = None
    """The seal (`bltkit.files.seal`); None in what format 1 wrote, and in memory."""

    @property
    def complete(self) -> bool:
        """Are all shards there."""
        return bool(self.shards)


class AnnotatedDocument(NamedTuple):
    """One row of a shard.

    entropies   float32 [n + 1], nats; entropies[i] of the prediction of byte i, made from BOS and the bytes before
                it; the last one is of the byte behind the text
    starts      int32 [patches], offsets of the bytes that open a patch, rising, 0 among them; None without a rule
    next_opens  does the byte (or EOS) behind the text open a patch; None without a rule
    """

    document: Document
    entropies: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int32] | None
    next_opens: bool | None


class Cut(NamedTuple):
    """A document's patches by some rule: see `AnnotatedDocument`."""

    starts: npt.NDArray[np.int32]
    next_opens: bool


def cut(rule: PatchingRule, texts: Sequence[bytes], entropies: Sequence[npt.NDArray[np.float32]]) -> list[Cut]:
    """The patches of documents whose entropies are known. The rule must stream and read entropies, or nothing."""
    assert rule.streams and rule.scores in (None, "entropy"), rule
    # All in one row: patching treats each as if it stood alone. PAD behind each keeps the last answer of a document
    # apart from the BOS of the next one.
    ids, scores = [], []
    for text, values in zip(texts, entropies, strict=True):
        row = np.empty(len(text) + 2, dtype=np.int64)
        row[0], row[1:-1], row[-1] = BOS, np.frombuffer(text, dtype=np.uint8), PAD
        row[1:-1] += OFFSET
        ids.append(row)
        scores.append(np.append(values, np.float32(0)))
    if not ids:
        return []
    starts = patch(rule, torch.from_numpy(np.concatenate(ids))[None], torch.from_numpy(np.concatenate(scores))[None])
    found, at = starts.starts[0].numpy(), 0
    cuts = []
    for text in texts:
        own = found[at + 1 : at + 2 + len(text)]  # the bytes, and the answer about the one behind them
        cuts.append(Cut(np.flatnonzero(own[:-1]).astype(np.int32), bool(own[-1])))
        at += len(text) + 2
    return cuts


def opens_of(cut: Cut, num_bytes: int) -> npt.NDArray[np.bool_]:
    """`Document.opens` of a document of `num_bytes` bytes: does the byte (or EOS) after each byte open a patch."""
    opens = np.zeros(num_bytes, dtype=np.bool_)
    opens[cut.starts[cut.starts > 0] - 1] = True
    if num_bytes:
        opens[-1] = cut.next_opens
    return opens


def digest(documents: Iterable[Document]) -> str:
    """sha256 over everything that a shard keeps of documents that come from a source."""
    state = hashlib.sha256()
    for document in documents:
        learned = None if document.learned is None else np.packbits(document.learned).tobytes()
        for part in (document.name.encode("utf-8", "surrogateescape"), document.data, _metadata(document), learned):
            part = part.encode() if isinstance(part, str) else part
            state.update((-1 if part is None else len(part)).to_bytes(8, "little", signed=True))
            state.update(part or b"")
    return state.hexdigest()


def shard_name(number: int) -> str:
    """The file of shard `number`."""
    return f"shard-{number:05d}.parquet"


def write_shard(path: Path, documents: Iterable[AnnotatedDocument], dtype: EntropyType) -> None:
    """Write a shard under a temporary name and rename it. The same documents give the same bytes.

    Raises ValueError where pyarrow is missing, OSError where writing fails.
    """
    import_pyarrow()
    import pyarrow.parquet as parquet

    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    rows = list(documents)
    num_bytes = sum(len(row.document.data) + row.entropies.nbytes for row in rows)
    try:
        schema = _schema(dtype)
        # No dictionaries and no statistics: nothing in the file may hang on what the library thinks worth its while.
        with (
            needs_space(path, num_bytes),
            parquet.ParquetWriter(
                temporary,
                schema,
                compression="zstd",
                compression_level=3,
                use_dictionary=False,
                write_statistics=False,
                column_encoding=_ENCODINGS,
                write_page_checksum=True,
            ) as writer,
        ):
            for group in _groups(rows):
                writer.write_table(_table(group, schema, dtype))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class ShardFile:
    """A shard that is read, row group by row group. Raises ValueError where it is damaged."""

    def __init__(self, path: Path, entry: ShardEntry | None = None) -> None:
        """entry: the manifest's; if any, the file is read whole and compared with it first. Checksums of pages, which
        hold for what changes between that and reading, are written since format 2.
        """
        import_pyarrow()
        import pyarrow.parquet as parquet

        self.path = path
        if (line := None if entry is None else damage(path, entry)) is not None:
            raise ValueError(line)
        require_regular(path)
        try:
            self._file = parquet.ParquetFile(path, page_checksum_verification=True)
        except (OSError, ValueError) as error:  # pyarrow's errors are kinds of these
            raise self._damaged(error) from None

    @property
    def num_groups(self) -> int:
        """Row groups, each of about `ROW_GROUP_BYTES` of text."""
        return int(self._file.num_row_groups)

    @property
    def num_documents(self) -> int:
        """Documents in the shard."""
        return int(self._file.metadata.num_rows)

    def group(self, number: int) -> Iterator[AnnotatedDocument]:
        """The documents of a row group, in order."""
        try:
            rows = list(_documents(self._file.read_row_group(number)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from None
        for document in rows:
            check_finite(document.entropies, "entropy", f"stored in {self.path}, document {document.document.name}")
            yield document

    def documents(self) -> Iterator[AnnotatedDocument]:
        """All documents, in order."""
        for number in range(self.num_groups):
            yield from self.group(number)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _damaged(self, error: Exception) -> ValueError:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ValueError(f"{self.path}: no complete shard ({first}); run the same `blt annotate` again to mend it")


def damage(path: Path, entry: ShardEntry, tell: Callable[[int], None] = lambda num_bytes: None) -> str | None:
    """What is wrong with a shard's file, in one line; None where it is the one that was written. Reads it whole."""
    mend = "run the same `blt annotate` again to mend it"
    try:
        if sha256(path, tell) == entry.sha256:
            return None
    except FileNotFoundError:
        return f"{path} is missing, but {MANIFEST} lists it; {mend}"
    except ValueError as error:
        return f"{error}; {mend}"
    return f"{path} is damaged or changed: its sha256 is not the one that {MANIFEST} says; {mend}"


def damages(directory: Path, tell: Tell = lambda done, total: None) -> Iterator[str]:
    """One line for each shard of a directory that is missing, damaged or changed. Reads all of them.

    Raises ValueError where the manifest is damaged, or there is none.
    """
    manifest = read_manifest(directory)
    paths = [directory / entry.file for entry in manifest.shards]
    total, done = sum(path.stat().st_size for path in paths if path.is_file()), 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        tell(done, total)

    if not manifest.complete:
        yield f"{directory} is not complete: `blt annotate` was broken off; run the same command again"
    for path, entry in zip(paths, manifest.shards, strict=True):
        if (line := damage(path, entry, count)) is not None:
            yield line


def read_manifest(directory: Path) -> ShardManifest:
    """Raises ValueError where the directory holds none, or one that this version cannot read."""
    path = directory / MANIFEST
    try:
        require_regular(path)
    except FileNotFoundError:
        raise ValueError(f"{directory} holds no {MANIFEST}; write annotated shards with `blt annotate`") from None
    data = read_json(path, escaped_bytes=True)
    number = data.get("format") if isinstance(data, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise ValueError(f"{path} has format {number}, but this bltkit reads up to {FORMAT}; upgrade bltkit")
    manifest: ShardManifest = parse(ShardManifest, data, str(path))
    check_seal(data, str(path))
    for entry in manifest.shards:
        if set(entry.file) & {"/", "\\", "\0"} or entry.file in ("", ".", ".."):
            raise ValueError(f"{path} lists {entry.file!r}; expected names of files in the same directory")
    return manifest.replace(digest=None)


def write_manifest(directory: Path, manifest: ShardManifest) -> None:
    """Replace `manifest.json` whole. Raises OSError."""
    content = sealed(json.loads(manifest.replace(format=FORMAT).model_dump_json(exclude={"digest"})))
    write_atomic(directory / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def import_pyarrow() -> None:
    """Raises ValueError, which names the extra, where pyarrow is not installed."""
    try:
        import pyarrow as pa  # noqa: F401
    except ImportError:
        raise ValueError("annotated shards are parquet files: pip install 'bltkit[data]'") from None


def _schema(dtype: EntropyType) -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("name", pa.string(), nullable=False),
            pa.field("data", pa.large_binary(), nullable=False),
            pa.field("metadata", pa.string()),
            pa.field("learned", pa.large_binary()),  # bits, the first byte's is the highest of the first
            pa.field("entropies", pa.list_(pa.float32() if dtype == "fp32" else pa.float16()), nullable=False),
            pa.field("starts", pa.list_(pa.int32())),
            pa.field("next_opens", pa.bool_()),
        ]
    )


def _groups(documents: Iterable[AnnotatedDocument]) -> Iterator[list[AnnotatedDocument]]:
    group: list[AnnotatedDocument] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.document.data)
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _table(group: Sequence[AnnotatedDocument], schema: Any, dtype: EntropyType) -> Any:
    import pyarrow as pa

    def lists(rows: Sequence[npt.NDArray[Any] | None], kind: type[np.generic]) -> Any:
        offsets = np.cumsum([0] + [0 if row is None else len(row) for row in rows]).astype(np.int32)
        given = [row for row in rows if row is not None]
        values = np.concatenate(given).astype(kind) if given else np.empty(0, kind)
        missing = pa.array([row is None for row in rows])
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=missing)

    documents = [row.document for row in group]
    learned = [None if row.learned is None else np.packbits(row.learned).tobytes() for row in documents]
    columns = [
        # A file's name may hold bytes that are no UTF-8; it is for messages only.
        pa.array([row.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for row in documents]),
        pa.array([row.data for row in documents], pa.large_binary()),
        pa.array([_metadata(row) for row in documents], pa.string()),
        pa.array(learned, pa.large_binary()),
        lists([row.entropies for row in group], _NUMPY[dtype]),
        lists([row.starts for row in group], np.int32),
        pa.array([row.next_opens for row in group], pa.bool_()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _documents(table: Any) -> Iterator[AnnotatedDocument]:
    def lists(name: str) -> list[npt.NDArray[Any] | None]:
        column = table.column(name).combine_chunks()
        ends, values = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=False)
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        return [values[ends[i] : ends[i + 1]] if valid[i] else None for i in range(len(column))]

    plain = [table.column(name).to_pylist() for name in ("name", "data", "metadata", "learned", "next_opens")]
    for name, data, metadata, learned, opens, entropies, starts in zip(
        *plain, lists("entropies"), lists("starts"), strict=True
    ):
        bits = None
        if learned is not None:
            bits = np.unpackbits(np.frombuffer(learned, dtype=np.uint8), count=len(data)).astype(np.bool_)
        record = None if metadata is None else parse_json(metadata, name, escaped_bytes=True)
        document = Document(name, data, record, bits)
        yield AnnotatedDocument(document, entropies.astype(np.float32), starts, opens)


def _metadata(document: Document) -> str | None:
    if document.metadata is None:
        return None
    return json.dumps(dict(document.metadata), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
