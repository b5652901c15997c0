"""What sources do about what is wrong: policies, the tally of faults, and files that were damaged anywhere."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bltkit.data.sources import (
    BinarySource,
    Document,
    Faults,
    Input,
    JsonlSource,
    SourceConfig,
    TextSource,
    parse_source,
    read,
    read_documents,
)
from bltkit.data.sources.jsonl import JsonLines
from bltkit.data.sources.paths import FileSource
from bltkit.data.sources.records import as_json, choose_metadata, find


class Given(SourceConfig):
    """A source of documents that a test names."""

    given: tuple[Any, ...]

    @property
    def label(self) -> str:
        return "given"

    def inputs(self) -> tuple[Input, ...] | None:
        return None

    def documents(self, faults: Faults | None = None) -> Iterator[Document]:
        yield from (Document(*one) for one in self.given)


MIXED = Given(given=(("a", b"fine"), ("b", b""), ("c", b"\xff"), ("d", "é".encode()), ("e", "é".encode()[:1])))


# --- whole documents, judged in one place ---


@pytest.mark.parametrize(
    ("policies", "names", "counts"),
    [
        ({}, "acde", {"empty": 1, "not_utf8": 2}),
        ({"not_utf8": "skip"}, "ad", {"empty": 1, "not_utf8": 2}),
    ],
)
def test_policies_keep_or_skip_and_count(policies: dict[str, Any], names: str, counts: dict[str, int]) -> None:
    faults = Faults()
    assert "".join(d.name for d in read(MIXED.replace(**policies), faults)) == names
    assert faults.counts == counts
    assert faults.examples["empty"] == ("b",) and [e[:2] for e in faults.examples["not_utf8"]] == ["c:", "e:"]
    assert str(faults).count("first: ") == 2 and "2 not_utf8" in str(faults)


@pytest.mark.parametrize(("policies", "place"), [({"empty": "refuse"}, "b"), ({"not_utf8": "refuse"}, "c")])
def test_policies_refuse_with_the_place_and_the_remedy(policies: dict[str, str], place: str) -> None:
    with pytest.raises(ValueError) as error:
        list(read(MIXED.replace(**policies)))
    (field,) = policies
    assert str(error.value).startswith(f"{place}: ") and f'{field} = "skip"' in str(error.value)


@given(st.lists(st.binary(max_size=8)))
def test_reading_is_a_filter(texts: list[bytes]) -> None:
    def is_utf8(data: bytes) -> bool:
        try:
            return data.decode() is not None
        except UnicodeDecodeError:
            return False

    source = Given(given=tuple((str(i), data) for i, data in enumerate(texts)))
    for policy in ("keep", "skip"):
        faults = Faults()
        found = [(d.name, d.data) for d in read(source.replace(not_utf8=policy), faults)]
        assert found == [one for one in source.given if one[1] and (policy == "keep" or is_utf8(one[1]))]
        assert faults.counts.get("empty", 0) == sum(not data for data in texts)
        assert faults.counts.get("not_utf8", 0) == sum(not is_utf8(data) for data in texts)


def test_masks_go_through_and_must_fit() -> None:
    mask = np.array([True, False])
    (document,) = read(Given(given=(("a", b"xy", {"k": 1}, mask, ~mask),)))
    assert document.metadata == {"k": 1} and document.learned is mask and np.array_equal(document.opens, ~mask)
    with pytest.raises(AssertionError):
        list(read(Given(given=(("a", b"xyz", None, mask),))))


def test_faults_hold_only_the_first_examples() -> None:
    faults = Faults()
    assert not faults and str(faults) == "none" and faults.counts == {} and faults.examples == {}
    for index in range(100):
        faults.add("broken", f"line {index}")
    assert faults and faults.counts == {"broken": 100}
    assert faults.examples["broken"] == tuple(f"line {index}" for index in range(Faults.SHOWN))


def test_why_nothing_was_found_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no text in .*1 empty \(first: .*x\.txt\)"):
        read_documents([str(path)])


# --- lines ---


BROKEN_LINES = [b'{"text": "cut', b'{"text": "\xff"}', b'{"other": 1}', b'{"text": 3}', b"[1]", b"[" * 20_000]


@given(st.lists(st.one_of(st.text(), st.sampled_from(BROKEN_LINES)), max_size=12))
def test_broken_lines_are_skipped_and_counted(tmp_path_factory: pytest.TempPathFactory, lines: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(
        b"".join(b if isinstance(b, bytes) else json.dumps({"text": b}).encode() for b in intersperse(lines))
    )
    source, faults = JsonlSource(paths=(str(path),), broken="skip"), Faults()
    good = [(f"{path}:{i}", text) for i, text in enumerate(lines, start=1) if isinstance(text, str)]
    found = [(d.name, d.data.decode("utf-8", "surrogatepass")) for d in source.documents(faults)]
    assert found == good
    assert faults.counts.get("broken", 0) == len(lines) - len(good)
    assert list(source.documents()) == list(source.documents(Faults()))  # a tally is not needed
    if len(good) < len(lines):
        with pytest.raises(ValueError, match=r'broken = "skip"'):
            list(source.replace(broken="refuse").documents())


def intersperse(lines: list[Any]) -> Iterator[Any]:
    for line in lines:
        yield line
        yield b"\n"


def test_a_null_is_an_empty_document(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": null}\n{"text": "a"}\n')
    faults = Faults()
    assert [d.data for d in read(parse_source(str(path)), faults)] == [b"a"]
    assert faults.counts == {"empty": 1} and faults.examples["empty"] == (f"{path}:1",)


def test_a_subclass_says_what_an_object_becomes(tmp_path: Path) -> None:
    class Sums(JsonLines):
        def document(self, record: dict[str, Any], where: str) -> Document:
            if "a" not in record:
                raise ValueError(f"{where}: no a")
            return Document(where, str(record["a"] + 1).encode())

    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{}\n{"a": 5}\n')
    faults = Faults()
    assert [d.data for d in read(Sums(paths=(str(path),), broken="skip"), faults)] == [b"2", b"6"]
    assert faults.examples["broken"] == (f"{path}:2: no a",)


# --- files ---


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    # A link to itself: there for a listing, unreadable for every user, root included.
    for name in ("b.txt", "b.jsonl", "b.parquet"):
        (tmp_path / name).symlink_to(tmp_path / name)
    (tmp_path / "a.txt").write_bytes(b"here")
    files = (tmp_path / "a.txt", tmp_path / "b.txt")
    for kind in (TextSource, BinarySource):
        source, faults = kind(paths=tuple(map(str, files)), broken="skip"), Faults()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{kind.__module__}.expand", lambda _: files)
            assert [d.data for d in read(source, faults)] == [b"here"]
            assert faults.counts == {"broken": 1} and str(files[1]) in str(faults)
            with pytest.raises(ValueError, match=r"b\.txt: cannot be read"):
                list(source.replace(broken="refuse").documents())


@pytest.mark.parametrize(("kind", "suffix"), [(TextSource, "txt"), (BinarySource, "txt"), (JsonlSource, "jsonl")])
@pytest.mark.parametrize("pattern", ["*", "b"])
def test_a_link_that_leads_nowhere_is_counted(
    tmp_path: Path, kind: type[FileSource], suffix: str, pattern: str
) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b'{"text": "a"}')
    (tmp_path / f"b.{suffix}").symlink_to(tmp_path / "unplugged")
    (tmp_path / f"c.{suffix}").mkdir()
    os.mkfifo(tmp_path / f"d.{suffix}")
    source, faults = kind(paths=(str(tmp_path / f"{pattern}.{suffix}"),), broken="skip"), Faults()
    assert len(list(source.documents(faults))) == (pattern == "*")
    assert faults.counts == {"broken": 1}
    assert faults.examples["broken"] == (f"{tmp_path}/b.{suffix}: cannot be read (No such file or directory)",)
    with pytest.raises(ValueError, match=r"b\..*cannot be read"):
        list(source.replace(broken="refuse").documents())
    before = source.inputs()
    assert before is not None and before[-1].path == f"{tmp_path}/b.{suffix}"
    (tmp_path / "unplugged").write_bytes(b'{"text": "b"}')
    assert source.inputs() != before and len(list(source.documents())) == 1 + (pattern == "*")


def test_what_was_read_of_a_damaged_file_stays(tmp_path: Path) -> None:
    texts = [f"{index} text" for index in range(50)]
    for name, whole in (("a.gz", packed(texts, gzip.compress)), ("b.bz2", packed(texts, bz2.compress))):
        for damage in (whole + b"garbage", whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]):
            path = tmp_path / name
            path.write_bytes(damage)
            source, faults = JsonlSource(paths=(str(path),), broken="skip"), Faults()
            assert [d.data.decode() for d in source.documents(faults)] == texts
            assert faults.counts == {"broken": 1}


def packed(texts: list[str], pack: Callable[[bytes], bytes]) -> bytes:
    return pack(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts))


def tables(texts: list[str], form: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, sink = pa.table({"id": range(len(texts)), "text": texts}), io.BytesIO()
    if form == "parquet":
        pq.write_table(table, sink, row_group_size=7)
        return sink.getvalue()
    with (pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


WHOLE: dict[str, Callable[[list[str]], bytes]] = {
    "jsonl.gz": lambda texts: packed(texts, lambda data: gzip.compress(data, mtime=0)),
    "jsonl.zst": lambda texts: packed(texts, zstandard.compress),
    "jsonl.xz": lambda texts: packed(texts, lzma.compress),
    "jsonl.bz2": lambda texts: packed(texts, bz2.compress),
    "parquet": lambda texts: tables(texts, "parquet"),
    "arrow": lambda texts: tables(texts, "arrow"),
    "stream.arrow": lambda texts: tables(texts, "stream"),
}


@pytest.mark.parametrize("suffix", WHOLE)
@given(st.data())
def test_a_file_cut_anywhere_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    """What is read of it is the beginning of what was there, and the loss is counted or refused."""
    if not suffix.startswith("jsonl"):
        pytest.importorskip("pyarrow")
    texts = [f"{index} text {index**7}" for index in range(30)]
    path = tmp_path_factory.getbasetemp() / f"cut.{suffix}"
    whole = WHOLE[suffix](texts)
    path.write_bytes(whole)
    source = parse_source(str(path)).replace(broken="skip")
    assert [d.data.decode() for d in source.documents()] == texts
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), label="bytes kept")])
    faults = Faults()
    found = [d.data.decode() for d in source.documents(faults)]
    assert found == texts[: len(found)]
    assert faults.counts == {"broken": 1} and str(path) in faults.examples["broken"][0]
    with pytest.raises(ValueError) as error:
        list(source.replace(broken="refuse").documents())
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_the_other_files_are_read(tmp_path: Path) -> None:
    for name, data in (("a", b'{"text": "1"}\n'), ("b", b"no archive"), ("c", b'{"text": "2"}\n')):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(data if name == "b" else gzip.compress(data))
    with pytest.raises(ValueError, match=r"b\.jsonl\.gz: neither gzip nor zstd"):
        list(parse_source(str(tmp_path / "*.jsonl.gz")).documents())
    source, faults = JsonlSource(paths=(str(tmp_path / "*.gz"),), broken="skip"), Faults()
    assert [d.data for d in read(source, faults)] == [b"1", b"2"] and faults.counts == {"broken": 1}


# --- binary ---


@given(st.binary(max_size=40), st.integers(1, 12))
def test_binary_pieces_are_the_file(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "x.bin"
    path.write_bytes(data)
    source, faults = BinarySource(paths=(str(path),), chunk_bytes=size), Faults()
    documents = list(source.documents())
    assert b"".join(d.data for d in documents) == data
    assert all(len(d.data) == size for d in documents[:-1])
    assert [d.name for d in documents] == [f"{path}@{i * size}" for i in range(max(1, math.ceil(len(data) / size)))]
    assert [d.data for d in read(source, faults)] == [d.data for d in documents if d.data]
    assert faults.counts == ({} if data else {"empty": 1})  # never not_utf8


def test_binary_does_not_judge_text() -> None:
    with pytest.raises(ValueError, match="not_utf8"):
        parse_source({"kind": "binary", "paths": "x", "not_utf8": "skip"})


# --- fields and metadata ---


def test_dotted_names_and_metadata(tmp_path: Path) -> None:
    record = {"doc": {"text": "a", "lang": "de"}, "doc.lang": "flat", "n": [1, {"x": None}]}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(record) + "\n")

    def metadata(**settings: Any) -> Any:
        (document,) = JsonlSource(paths=(str(path),), field="doc.text", **settings).documents()
        assert document.data == b"a"
        return document.metadata

    assert metadata() is None
    assert metadata(metadata="n") == {"n": [1, {"x": None}]}
    assert metadata(metadata=["doc.lang", "doc.text", "none", "n.x"]) == {"doc.lang": "flat", "doc.text": "a"}
    assert metadata(metadata="all") == {"doc": {"lang": "de"}, "doc.lang": "flat", "n": [1, {"x": None}]}
    (flat,) = JsonlSource(paths=(str(path),), field="doc.lang").documents()
    assert flat.data == b"flat"
    for field in ("doc", "doc.none", "n.x", "doc.text.more", "", "."):
        with pytest.raises(ValueError, match=rf"^{path}:1: .*field"):
            list(JsonlSource(paths=(str(path),), field=field).documents())


NAMES = st.text("ab.", max_size=4)
RECORDS = st.dictionaries(
    NAMES, st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, max_size=3)), max_size=4
)


@given(RECORDS, NAMES)
def test_all_metadata_is_the_record_without_the_text(record: dict[str, Any], field: str) -> None:
    before = json.dumps(record)
    try:
        value = find(record, field, "here")
    except ValueError:
        assert choose_metadata(record, field, "all") == record
        return
    rest = choose_metadata(record, field, "all")
    assert rest is not None and json.dumps(record) == before and rest != record
    # Put back where it was, it is the record again.
    *way, last = [field] if field in record else field.split(".")
    place = rest
    for name in way:
        place = place[name]
    assert last not in place
    place[last] = value
    assert rest == record


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.datetimes()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), st.tuples(inner, st.timedeltas())),
    )
)
def test_metadata_can_be_written_as_json(value: Any) -> None:
    plain = as_json(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert as_json(plain) == plain
