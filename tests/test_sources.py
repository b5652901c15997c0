"""Data sources: the contract that every member of `Source` keeps, and what each reads and refuses."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import zstandard
from pydantic import ValidationError

from bltkit.config import load_toml, parse
from bltkit.data import Corpus, DataConfig, Document, Source, SourceConfig, parse_source
from bltkit.data.sources import (
    BinarySource,
    Faults,
    HubSource,
    JsonlSource,
    ParquetSource,
    StdlibSource,
    TextSource,
    read,
)
from tests.shared import SHARED
from tests.source_examples import EXAMPLES, TEXTS, offline, write_jsonl


@pytest.fixture(autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(tmp_path_factory.getbasetemp() / "datasets", monkeypatch)


def example(kind: type[SourceConfig], folder: Path) -> SourceConfig:
    """A working source of every kind; a new kind has to add its own in tests/source_examples.py."""
    return kind(**EXAMPLES[kind](folder))


def same(first: Document, second: Document) -> bool:
    arrays = zip(first[3:], second[3:], strict=True)
    return first[:3] == second[:3] and all(np.array_equal(a, b) if a is not None else b is None for a, b in arrays)


def members() -> tuple[type[SourceConfig], ...]:
    union = get_args(get_args(Source)[0])  # Annotated[A | B | ..., discriminator]
    found = get_args(union) or union
    assert all(issubclass(kind, SourceConfig) for kind in found)
    return tuple(found)


@pytest.mark.parametrize("kind", members(), ids=lambda kind: kind.__name__)
class TestContract:
    def test_documents_are_bytes_and_repeatable(self, kind: type[SourceConfig], tmp_path: Path) -> None:
        source = example(kind, tmp_path)
        first, second = list(source.documents()), list(source.documents())
        assert first and len(first) == len(second) and all(map(same, first, second))
        assert all(isinstance(d, Document) and type(d.data) is bytes and d.name for d in first)
        assert len({d.name for d in first}) == len(first)

    def test_reading_leaves_out_only_the_empty(self, kind: type[SourceConfig], tmp_path: Path) -> None:
        source, faults = example(kind, tmp_path), Faults()
        every = list(source.documents())
        found = list(read(source, faults))
        wanted = [d for d in every if d.data]
        assert len(found) == len(wanted) and all(map(same, found, wanted))
        assert faults.counts.get("empty", 0) == len(every) - len(wanted)
        assert "broken" not in faults.counts

    def test_metadata_is_json(self, kind: type[SourceConfig], tmp_path: Path) -> None:
        for document in example(kind, tmp_path).documents():
            assert document.metadata is None or isinstance(document.metadata, dict)
            assert json.loads(json.dumps(document.metadata, allow_nan=False)) == document.metadata

    def test_inputs_are_the_files_and_show_a_change(self, kind: type[SourceConfig], tmp_path: Path) -> None:
        source = example(kind, tmp_path)
        inputs = source.inputs()
        assert inputs and inputs == source.inputs() and len({one.path for one in inputs}) == len(inputs)
        for one in inputs:
            stat = Path(one.path).stat()
            assert Path(one.path).is_absolute() and (one.size, one.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        for one in inputs if kind is not StdlibSource else ():
            with Path(one.path).open("ab") as file:
                file.write(b"\n")
            assert source.inputs() != inputs
            inputs = source.inputs() or ()

    def test_table_round_trips(self, kind: type[SourceConfig], tmp_path: Path) -> None:
        source = example(kind, tmp_path).replace(weight=2.5, broken="skip", empty="refuse")
        assert parse_source(source.model_dump()) == source
        assert parse_source(json.loads(source.model_dump_json())) == source

    def test_frozen_and_strict(self, kind: type[SourceConfig], tmp_path: Path) -> None:
        source = example(kind, tmp_path)
        with pytest.raises(ValidationError):
            source.weight = 3.0  # type: ignore[misc]
        with pytest.raises(ValueError, match="wieght"):
            parse_source({**source.model_dump(), "wieght": 2.0})

    @pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
    def test_weight_must_make_sense(self, kind: type[SourceConfig], weight: float, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="weight"):
            parse_source({**example(kind, tmp_path).model_dump(), "weight": weight})

    def test_becomes_a_corpus(self, kind: type[SourceConfig], tmp_path: Path) -> None:
        source = example(kind, tmp_path)
        corpus = Corpus.from_sources([source])
        wanted = [d.data for d in source.documents() if d.data]
        assert [corpus.document(i) for i in range(len(corpus))] == wanted
        (stats,) = corpus.stats
        assert (stats.num_documents, stats.num_bytes) == (len(wanted), sum(map(len, wanted)))


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("stdlib", StdlibSource()),
        ("path/to/file.txt", TextSource(paths=("path/to/file.txt",))),
        ("dir/*.py", TextSource(paths=("dir/*.py",))),
        ("x.jsonl.zst", JsonlSource(paths=("x.jsonl.zst",))),
        ("x.jsonl.gz", JsonlSource(paths=("x.jsonl.gz",))),
        ("*.jsonl", JsonlSource(paths=("*.jsonl",))),
        ("dir/*.parquet", ParquetSource(paths=("dir/*.parquet",))),
        ("x.arrow", ParquetSource(paths=("x.arrow",))),
        ("x.Feather", ParquetSource(paths=("x.Feather",))),
        ("hf:OWNER/NAME", HubSource(name="OWNER/NAME")),
        ({"kind": "text", "paths": "stdlib"}, TextSource(paths=("stdlib",))),
        ({"kind": "binary", "paths": "x.parquet"}, BinarySource(paths=("x.parquet",))),
        ({"kind": "jsonl", "paths": "x", "metadata": "id"}, JsonlSource(paths=("x",), metadata=("id",))),
        ({"kind": "jsonl", "paths": "x", "metadata": "all"}, JsonlSource(paths=("x",), metadata="all")),
    ],
)
def test_short_forms(spec: Any, source: SourceConfig) -> None:
    assert parse_source(spec) == source


@pytest.mark.parametrize(
    "spec",
    [
        "",
        " ",
        "hf:",
        "text.txt.gz",
        {"kind": "csv", "paths": "x"},
        {"kind": "text"},
        {"kind": "text", "broken": "keep"},
    ],
)
def test_what_is_no_source_is_one_line(spec: Any) -> None:
    with pytest.raises(ValueError) as error:
        parse_source(spec)
    assert "\n" not in str(error.value) and "data source" in str(error.value)


def test_data_section_from_toml_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[data]\nsources = ["stdlib", {kind = "jsonl", paths = ["b.jsonl"], weight = 2.0}]\n')
    config = parse(DataConfig, load_toml(path)["data"], str(path))
    assert config.sources == (StdlibSource(), JsonlSource(paths=("b.jsonl",), weight=2.0))
    changed = parse(DataConfig, load_toml(path, ['data.sources=["x.txt"]'])["data"], str(path))
    assert changed.sources == (TextSource(paths=("x.txt",)),)
    single = parse(DataConfig, load_toml(path, ["data.sources=x.txt"])["data"], str(path))
    assert single == changed
    assert DataConfig().sources == (StdlibSource(),)
    with pytest.raises(ValueError, match="sources"):
        parse(DataConfig, {"sources": []}, "here")


# --- text ---


def test_text_keeps_every_byte_and_sorts(tmp_path: Path) -> None:
    every = bytes(range(256)) + b"\r\n\xed\xa0\x80"
    (tmp_path / "b.bin").write_bytes(every)
    (tmp_path / "a.bin").write_bytes(b"a")
    (tmp_path / "folder.bin").mkdir()
    documents = list(parse_source(str(tmp_path / "*.bin")).documents())
    assert [d.data for d in documents] == [b"a", every]


def test_globs_go_deep_and_files_come_once(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    for name in ("x/1.md", "x/y/2.md"):
        (tmp_path / name).write_text(name)
    source = TextSource(paths=(str(tmp_path / "x/y/2.md"), str(tmp_path / "**" / "*.md")))
    assert [d.data for d in source.documents()] == [b"x/y/2.md", b"x/1.md"]


def test_a_name_with_brackets_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("here")
    assert [d.data for d in parse_source(str(tmp_path / "a[1].txt")).documents()] == [b"here"]


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "binary"])
@pytest.mark.parametrize(
    ("path", "says"), [("none", "does not exist"), ("no*", "matches no file"), ("", "is a folder")]
)
def test_missing_paths_are_named(tmp_path: Path, kind: str, path: str, says: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    wanted = f"{tmp_path}/{path}"
    with pytest.raises(ValueError, match=says) as error:
        list(parse_source({"kind": kind, "paths": wanted}).documents())
    assert wanted in str(error.value)


def test_sources_without_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "full.txt").write_bytes(b"full")
    with pytest.raises(ValueError, match=r"empty\.txt"):
        Corpus.from_sources([parse_source(str(tmp_path / name)) for name in ("full.txt", "empty.txt")])
    (tmp_path / "blank.jsonl").write_bytes(b"\n\n")
    with pytest.raises(ValueError, match=r"blank\.jsonl"):
        Corpus.from_sources([parse_source(str(tmp_path / "blank.jsonl"))])


# --- jsonl ---


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_jsonl_reads_what_was_written(tmp_path: Path, suffix: str) -> None:
    # Longer than one read, and than one line of it, in both directions.
    texts = [*TEXTS, "long " * 40_000, *(f"{i} é" for i in range(20_000)), "last"]
    path = write_jsonl(tmp_path / f"x{suffix}", texts, field="content")
    documents = list(JsonlSource(paths=(str(path),), field="content").documents())
    assert [d.data.decode() for d in documents] == texts
    assert documents[-1].name == f"{path}:{len(texts)}"


def test_jsonl_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n\n  \n{"text": "b"}')
    assert [d.data for d in parse_source(str(path)).documents()] == [b"a", b"b"]


def test_half_a_surrogate_pair_is_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(rb'{"text": "a\ud83d\ude00b"}' + b"\n" + rb'{"text": "a\ud800b"}')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: .*\\ud800 is half a surrogate pair"):
        list(parse_source(str(path)).documents())
    source = JsonlSource(paths=(str(path),), broken="skip")
    assert [d.data.decode() for d in source.documents()] == ["a\U0001f600b"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress, lzma.compress, bz2.compress])
@pytest.mark.parametrize(
    ("kind", "line", "data"),
    [
        ("jsonl", b'{"text": "a"}', b"a"),
        ("prompts", b'{"prompt": "a", "completion": "b"}', b"ab"),
        ("chat", b'{"messages": [{"role": "assistant", "content": "a"}]}', None),
    ],
)
def test_rows_are_read_by_content(
    tmp_path: Path, pack: Callable[[bytes], bytes], kind: str, line: bytes, data: bytes | None
) -> None:
    """Of every kind of rows: any compression under any name, byte order marks, half a surrogate pair."""
    mark, path = b"\xef\xbb\xbf", tmp_path / "x.jsonl"
    path.write_bytes(pack(mark + line + b"\r\n" + line + b"\n") + pack(mark + line + b"\n"))
    source = parse_source({"kind": kind, "paths": [str(path)]})
    documents = list(source.documents())
    assert [d.name for d in documents] == [f"{path}:{n}" for n in (1, 2, 3)]
    assert {d.data for d in documents} == {data or documents[0].data} and b"\xef\xbb\xbf" not in documents[2].data
    half = line.replace(b'"a"', rb'"\ud83d"')
    path.write_bytes(pack(line + b"\n" + half + b"\n" + line))
    with pytest.raises(ValueError, match=r"x\.jsonl:2: .*half a surrogate pair.* or set the source's broken"):
        list(source.documents())
    assert [d.name for d in source.replace(broken="skip").documents()] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize("suffix", ["gz", "zst", "xz", "bz2", "GZ"])
def test_short_forms_of_compressed_rows(tmp_path: Path, suffix: str) -> None:
    assert isinstance(parse_source(f"a.jsonl.{suffix}"), JsonlSource)
    with pytest.raises(ValueError, match="only JSON lines are unpacked"):
        parse_source(f"a.txt.{suffix}")
    # Asked for by its kind, a text is its bytes as they stand.
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(gzip.compress(b"a"))
    (document,) = parse_source({"kind": "text", "paths": [str(path)]}).documents()
    assert document.data == path.read_bytes()


def test_zstd_files_of_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(b'{"text": "%d"}\n' % i) for i in range(3)))
    assert [d.data for d in parse_source(str(path)).documents()] == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "cut', "JSON"),
        (b'{"text": "\xff"}', "JSON"),
        (b'{"content": "x", "id": 1}', "content"),
        (b'{"text": 3}', "int"),
        (b'["text"]', "list"),
    ],
)
def test_broken_lines_name_file_and_line(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=says) as error:
        list(parse_source(str(path)).documents())
    assert str(error.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "wrong"])
def test_damaged_archives_are_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    path = write_jsonl(tmp_path / f"x.jsonl{suffix}", [f"{i} text" for i in range(3000)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"not an archive at all")
    with pytest.raises(ValueError) as error:
        list(parse_source(str(path)).documents())
    assert str(path) in str(error.value)


@pytest.mark.skipif(SHARED is None, reason="needs the shared texts")
def test_real_file() -> None:
    assert SHARED is not None
    documents = list(parse_source(str(SHARED / "data/text/udhr.jsonl.zst")).documents())
    assert len(documents) > 50
    assert sum(len(d.data.decode()) for d in documents) > 500_000


# --- stdlib ---


def test_stdlib_is_the_library_without_its_tests() -> None:
    names = [d.name for d in StdlibSource().documents()]
    assert names == sorted(names) and len(names) > 300
    assert {"pydoc_data/topics.py", "json/decoder.py", "os.py"} <= set(names)
    assert not any(part in {"test", "tests", "idle_test", "site-packages"} for n in names for part in n.split("/"))
    assert not any(n.startswith(("_sysconfigdata", "/")) for n in names)


def test_stdlib_without_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match="stdlib"):
        list(StdlibSource().documents())
