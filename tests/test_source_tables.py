"""Tables as sources: Parquet and Arrow files, and datasets in the hub's layout, against rows written down here."""

from __future__ import annotations

import base64
import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.data.sources import Document, Faults, HubSource, JsonlSource, ParquetSource, parse_source, read
from tests.shared import SHARED
from tests.source_examples import offline, write_jsonl

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FORMS = ("x.parquet", "x.arrow", "x.feather", "stream.arrow")


def write(path: Path, table: Any, rows: int = 7) -> str:
    """`rows` is the length of a row group or batch."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    elif path.suffix == ".feather":
        pytest.importorskip("pyarrow.feather").write_feather(table, path, chunksize=rows)
    else:
        new = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return str(path)


def source_of(path: str, **settings: Any) -> ParquetSource:
    return ParquetSource(paths=(path,), **settings)


# --- parquet and arrow ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_text", [True, False])
@given(data=st.data())
def test_every_row_in_order(
    tmp_path_factory: pytest.TempPathFactory, form: str, is_text: bool, data: st.DataObject
) -> None:
    one = st.text() if is_text else st.binary()
    values = data.draw(st.lists(st.none() | one, max_size=20))
    rows = data.draw(st.integers(1, 9))
    plain = [pa.string(), pa.large_string()] if is_text else [pa.binary(), pa.large_binary()]
    column = pa.array(values, type=data.draw(st.sampled_from(plain)))
    if is_text and data.draw(st.booleans(), label="as a dictionary"):
        column = column.cast(pa.string()).dictionary_encode()
    path = write(tmp_path_factory.getbasetemp() / form, pa.table({"id": range(len(values)), "text": column}), rows)
    wanted = [(value.encode() if isinstance(value, str) else value) or b"" for value in values]
    documents = list(source_of(path, metadata="all").documents())
    assert documents == [Document(f"{path}:{i + 1}", wanted[i], {"id": i}) for i in range(len(wanted))]
    assert [d.data for d in source_of(path).documents()] == wanted


@pytest.mark.parametrize("form", FORMS)
def test_batches_longer_than_one_read(tmp_path: Path, form: str) -> None:
    texts = [f"{i} é" for i in range(2000)]
    path = write(tmp_path / form, pa.table({"text": texts}), rows=1500)
    found = list(parse_source(path).documents())
    assert [d.data.decode() for d in found] == texts and found[-1].name == f"{path}:2000"


@pytest.mark.parametrize("form", FORMS)
def test_struct_columns_and_names(tmp_path: Path, form: str) -> None:
    inner = [{"text": "a", "lang": "de"}, None, {"text": None, "lang": "fr"}]
    table = pa.table({"n": [1, 2, 3], "doc": inner, "doc.flat": ["x", "y", "z"], "text": ["p", "q", "r"]})
    path = write(tmp_path / form, table)

    def got(field: str, metadata: Any = ()) -> list[tuple[bytes, Any]]:
        return [(d.data, d.metadata) for d in source_of(path, field=field, metadata=metadata).documents()]

    assert got("doc.text") == [(b"a", None), (b"", None), (b"", None)]
    assert got("doc.text", ["doc.lang", "n"])[0] == (b"a", {"doc.lang": "de", "n": 1})
    assert got("doc.text", ["doc.lang", "n"])[1] == (b"", {"n": 2})
    assert got("doc.flat", "n")[2] == (b"z", {"n": 3})
    assert got("text", "text")[0] == (b"p", {"text": "p"})
    assert got("text", "all")[0] == (b"p", {"n": 1, "doc": inner[0], "doc.flat": "x"})
    assert got("doc.text", "all")[0] == (b"a", {"n": 1, "doc": {"lang": "de"}, "doc.flat": "x", "text": "p"})


@pytest.mark.parametrize("form", FORMS)
def test_a_column_with_dots_is_not_a_way(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / form, pa.table({"a.b": ["x"], "a": [{"b": "y"}]}))
    (document,) = source_of(path, field="a.b", metadata="all").documents()
    assert document.data == b"x" and document.metadata == {"a": {"b": "y"}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"field": "content"}, "no column 'content'.*text, id"),
        ({"field": "id"}, "type int64"),
        ({"field": "doc"}, "type struct"),
        ({"field": "doc.none"}, "no column"),
        ({"metadata": ["id", "lang"]}, "no column 'lang' for metadata"),
    ],
)
def test_wrong_columns_are_named_or_passed_over(tmp_path: Path, form: str, settings: dict[str, Any], says: str) -> None:
    path = write(tmp_path / form, pa.table({"text": ["a"], "id": [1], "doc": [{"a": 1}]}))
    with pytest.raises(ValueError, match=f"^{path}: .*{says}"):
        list(source_of(path, **settings).documents())
    faults = Faults()
    assert list(source_of(path, broken="skip", **settings).documents(faults)) == []
    assert faults.counts == {"broken": 1}


@pytest.mark.parametrize("form", FORMS)
def test_two_columns_of_one_name(tmp_path: Path, form: str) -> None:
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array([1])]
    path = write(tmp_path / form, pa.Table.from_arrays(columns, names=["text", "text", "id"]))
    with pytest.raises(ValueError, match=f"^{path}: "):
        list(source_of(path).documents())


def not_utf8(texts: list[bytes]) -> Any:
    """A column that says it is a string and is none, as careless writers make them."""
    raw = pa.array(texts, type=pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.mark.parametrize("form", FORMS)
def test_strings_that_are_no_utf8(tmp_path: Path, form: str) -> None:
    texts = [b"fine", b"\xff\xfe", b"good"]
    path = write(tmp_path / form, pa.table({"text": not_utf8(texts), "id": [1, 2, 3]}))
    faults = Faults()
    assert [d.data for d in read(source_of(path, metadata="all"), faults)] == texts
    assert faults.counts == {"not_utf8": 1}
    assert [d.data for d in read(source_of(path, not_utf8="skip"))] == [b"fine", b"good"]
    # As metadata there is no way to keep them.
    with pytest.raises(ValueError, match=f"^{path}:2: metadata"):
        list(source_of(path, metadata="text").documents())
    faults = Faults()
    found = list(source_of(path, metadata="text", broken="skip").documents(faults))
    assert [(d.name, d.metadata) for d in found] == [
        (f"{path}:{i}", {"text": t}) for i, t in ((1, "fine"), (3, "good"))
    ]
    assert faults.counts == {"broken": 1}


@pytest.mark.parametrize("form", FORMS)
def test_metadata_becomes_json(tmp_path: Path, form: str) -> None:
    when = dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC)
    table = pa.table({"text": ["a"], "when": [when], "raw": [b"\xff"], "x": [float("nan")], "list": [[1, None]]})
    (document,) = source_of(write(tmp_path / form, table), metadata="all").documents()
    raw = base64.b64encode(b"\xff").decode()
    assert document.metadata == {"when": when.isoformat(), "raw": raw, "x": None, "list": [1, None]}
    json.dumps(document.metadata, allow_nan=False)


def test_what_is_no_table(tmp_path: Path) -> None:
    good = write(tmp_path / "c.parquet", pa.table({"text": ["kept"]}))
    for name, data in (("a", b""), ("b", b"text, not a table"), ("d", b"FEA1 old"), ("e", b"PAR1 cut")):
        (tmp_path / f"{name}.parquet").write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.parquet: cannot be read"):
            list(parse_source(str(tmp_path / f"{name}.parquet")).documents())
    source, faults = source_of(str(tmp_path / "*.parquet"), broken="skip"), Faults()
    assert [d.name for d in read(source, faults)] == [f"{good}:1"] and faults.counts == {"broken": 4}


def test_damage_in_the_middle_keeps_what_was_read(tmp_path: Path) -> None:
    texts = [f"{i} " + "x" * 50 for i in range(100)]
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"text": texts}), path, row_group_size=10, compression="none", use_dictionary=False,
        write_page_checksum=True,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    data[data.index(b"55 xx")] ^= 1  # a bit of a document, which only the page's checksum shows
    path.write_bytes(data)
    source, faults = source_of(str(path), broken="skip"), Faults()
    assert [d.data.decode() for d in source.documents(faults)] == texts[:50] and faults.counts == {"broken": 1}
    with pytest.raises(ValueError, match=r"x\.parquet: cannot be read"):
        list(source_of(str(path)).documents())


def test_files_come_in_order_and_may_differ(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", pa.table({"text": ["3"], "more": [1]}))
    write(tmp_path / "a.parquet", pa.table({"id": [1, 2], "text": pa.array([b"1", b"2"])}))
    write(tmp_path / "c.arrow", pa.table({"text": ["0"]}))
    source = ParquetSource(paths=(str(tmp_path / "c.arrow"), str(tmp_path / "*.parquet")))
    assert [d.data for d in source.documents()] == [b"0", b"1", b"2", b"3"]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"bltkit\[data\]"):
        list(source_of("x.parquet").documents())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"bltkit\[hub\]"):
        list(HubSource(name="OWNER/NAME").documents())


# --- datasets in the hub's layout ---


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for datasets, without a network."""
    pytest.importorskip("datasets")
    offline(tmp_path / "cache", monkeypatch)
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


STREAMING = pytest.mark.parametrize("streaming", [True, False])


def hub_source(folder: Path, streaming: bool, **settings: Any) -> HubSource:
    return HubSource(name=str(folder), streaming=streaming, **settings)


@STREAMING
def test_hub_parquet_shards(hub: Path, streaming: bool) -> None:
    (hub / "data").mkdir()
    texts = [None if i % 100 == 3 else f"{i} é" for i in range(700)]
    for shard, (start, stop) in enumerate([(0, 300), (300, 700)]):
        ids = range(start, stop)
        table = pa.table({"id": ids, "text": texts[start:stop], "raw": [bytes([i % 256]) for i in ids]})
        write(hub / f"data/train-{shard:05d}-of-00002.parquet", table, rows=90)
    write(hub / "data/test-00000-of-00001.parquet", pa.table({"id": [0], "text": ["held"], "raw": [b""]}))
    source = hub_source(hub, streaming, metadata="id")
    label = f"{hub}:train"
    assert list(source.documents()) == [
        Document(f"{label}:{i + 1}", (text or "").encode(), {"id": i}) for i, text in enumerate(texts)
    ]
    assert [d.data for d in hub_source(hub, streaming, field="raw").documents()] == [
        bytes([i % 256]) for i in range(700)
    ]
    assert [d.data for d in hub_source(hub, streaming, split="test").documents()] == [b"held"]
    faults = Faults()
    assert len(list(read(source, faults))) == 693 and faults.counts == {"empty": 7}


HEADER = """---
configs:
- config_name: first
  data_files:
  - split: train
    path: a.jsonl
- config_name: second
  data_files:
  - split: train
    path: [more/c.jsonl.gz, more/b.jsonl]
  - split: dev
    path: a.jsonl
---
# A dataset
"""


@STREAMING
def test_hub_configurations_of_the_card(hub: Path, streaming: bool) -> None:
    (hub / "README.md").write_text(HEADER)
    (hub / "more").mkdir()
    for name, text in (("a.jsonl", "a"), ("more/b.jsonl", "b"), ("more/c.jsonl.gz", "c")):
        write_jsonl(hub / name, [f"{text}{i}" for i in range(3)], field="content")

    def texts(**settings: Any) -> str:
        source = hub_source(hub, streaming, field="content", **settings)
        return " ".join(d.data.decode() for d in source.documents())

    assert texts(config="first") == texts(config="second", split="dev") == "a0 a1 a2"
    assert sorted(texts(config="second").split()) == ["b0", "b1", "b2", "c0", "c1", "c2"]
    assert texts(config="second") == texts(config="second")
    assert hub_source(hub, streaming, config="second", split="dev").label == f"{hub}:second:dev"
    with pytest.raises(ValueError, match=r"first.*second"):
        texts()
    with pytest.raises(ValueError, match=r"train.*dev"):
        texts(config="second", split="test")


@STREAMING
def test_hub_mistakes_are_one_line(hub: Path, streaming: bool) -> None:
    def says(**settings: Any) -> str:
        with pytest.raises(ValueError) as error:
            list(HubSource(**{"name": str(hub), "streaming": streaming} | settings).documents())
        message = str(error.value)
        assert message.startswith("data source ") and "\n" not in message
        return message

    assert str(hub) in says()  # an empty folder
    write_jsonl(hub / "train.jsonl", ["a"])
    assert "no column 'content'" in says(field="content")
    assert "int64" in says(field="id")
    assert "OWNER/NAME" in says(name="./none/such")
    assert "OWNER/NAME" in says(name="/none/such")
    assert "none/such" in says(name="none/such")  # and no network
    (hub / "README.md").write_text("---\nconfigs: [: broken\n---\n")
    assert str(hub) in says()


@STREAMING
def test_hub_broken_files_stop_whatever_the_policy(hub: Path, streaming: bool) -> None:
    write_jsonl(hub / "train.jsonl.gz", [f"{i} text" for i in range(3000)])
    data = (hub / "train.jsonl.gz").read_bytes()
    (hub / "train.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError) as error:
        list(hub_source(hub, streaming, broken="skip").documents(Faults()))
    assert str(error.value).startswith(f"data source {hub}:train: ") and "\n" not in str(error.value)


@STREAMING
def test_hub_inputs_show_a_change_and_it_is_read(hub: Path, streaming: bool) -> None:
    source = hub_source(hub, streaming)
    write_jsonl(hub / "train.jsonl", ["a"])
    before = source.inputs()
    assert before and [one.path for one in before] == [str(hub / "train.jsonl")]
    assert [d.data for d in source.documents()] == [b"a"]
    write_jsonl(hub / "train.jsonl", ["b", "c"])
    assert source.inputs() != before
    assert [d.data for d in source.documents()] == [b"b", b"c"]


def test_hub_elsewhere_has_no_inputs_while_streaming() -> None:
    assert HubSource(name="OWNER/NAME", streaming=True).inputs() is None


def test_hub_is_quiet_where_nobody_watches(hub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_jsonl(hub / "train.jsonl", ["a"])
    assert list(hub_source(hub, streaming=False).documents())
    assert capfd.readouterr() == ("", "")


# --- a real corpus, in every form ---


@pytest.mark.skipif(SHARED is None, reason="needs the shared texts")
def test_a_real_corpus_is_the_same_in_every_form(hub: Path, tmp_path: Path) -> None:
    assert SHARED is not None
    original = SHARED / "data/text/udhr.jsonl.zst"
    lines = list(JsonlSource(paths=(str(original),), metadata="all").documents())
    assert len(lines) > 50 and all(d.metadata for d in lines)
    names = sorted({name for d in lines for name in d.metadata or {}})
    columns = {name: [(d.metadata or {}).get(name) for d in lines] for name in names}
    table = pa.table({**columns, "text": [d.data.decode() for d in lines]})
    write(hub / "train-00000-of-00001.parquet", table, rows=20)
    wanted = [(d.data, {name: (d.metadata or {}).get(name) for name in names}) for d in lines]
    forms = [source_of(write(tmp_path / form, table, rows=20), metadata="all") for form in FORMS]
    hubs = [hub_source(hub, streaming, metadata="all") for streaming in (True, False)]
    for source in (*forms, *hubs):
        assert [(d.data, d.metadata) for d in source.documents()] == wanted
