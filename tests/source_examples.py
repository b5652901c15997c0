"""Working sources for the contract tests of tests/test_sources.py, for kinds without an `example` of their own.

A function writes the files into a folder and returns the source's fields without `kind`.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from bltkit.checkpoint.intact import sha256
from bltkit.data.sources import (
    AnnotatedSource,
    BinarySource,
    ChatSource,
    Document,
    HubSource,
    JsonlSource,
    ParquetSource,
    PromptSource,
    SourceConfig,
    StdlibSource,
    TextSource,
)
from bltkit.data.sources.shards import (
    AnnotatedDocument,
    ScorerEntry,
    ShardEntry,
    ShardManifest,
    write_manifest,
    write_shard,
)

TEXTS = ["First, in ASCII.", "Zweiter: äöü €", "third\nwith\r\nlines\n", "", "четвёртый"]


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    data = "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network for the library `datasets`, and its cache in a folder of the test's own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(cache))
    if "datasets" in sys.modules:  # it has read its settings already
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "datasets")


def _text(folder: Path) -> dict[str, Any]:
    (folder / "a.txt").write_bytes(b"one \xff\xfe document")
    (folder / "b.txt").write_bytes(b"two")
    return {"paths": str(folder / "*.txt")}


def _binary(folder: Path) -> dict[str, Any]:
    (folder / "a.bin").write_bytes(bytes(range(256)) * 3)
    (folder / "b.bin").write_bytes(b"two")
    return {"paths": str(folder / "*.bin"), "chunk_bytes": 100}


def _jsonl(folder: Path) -> dict[str, Any]:
    return {"paths": [str(write_jsonl(folder / "c.jsonl", TEXTS))], "metadata": "all"}


def _parquet(folder: Path) -> dict[str, Any]:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), folder / "a.parquet")
    return {"paths": [str(folder / "a.parquet")], "metadata": ["id"]}


def _hub(folder: Path) -> dict[str, Any]:
    pytest.importorskip("datasets")
    (folder / "set").mkdir(exist_ok=True)
    write_jsonl(folder / "set" / "train.jsonl", TEXTS)
    return {"name": str(folder / "set"), "streaming": True}


def _prompts(folder: Path) -> dict[str, Any]:
    lines = ({"prompt": text, "completion": f"{text}!"} for text in TEXTS)
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"paths": str(folder / "p.jsonl")}


def _chat(folder: Path) -> dict[str, Any]:
    roles = ("user", "assistant")
    lines = ({"messages": [{"role": role, "content": f"{text}?"} for role in roles]} for text in TEXTS)
    (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"paths": str(folder / "t.jsonl")}


def _annotated(folder: Path) -> dict[str, Any]:
    pytest.importorskip("pyarrow")
    documents = []
    for index, text in enumerate(TEXTS):
        data = text.encode()
        starts = np.arange(0, len(data), 3, dtype=np.int32)
        entropies = np.arange(len(data) + 1, dtype=np.float32)
        documents.append(AnnotatedDocument(Document(str(index), data, {"id": index}), entropies, starts, True))
    (folder / "shards").mkdir(exist_ok=True)
    write_shard(folder / "shards" / "shard-00000.parquet", documents, "fp32")
    entry = ShardEntry(
        file="shard-00000.parquet",
        source=0,
        documents=len(documents),
        bytes=sum(len(one.document.data) for one in documents),
        patches=None,
        near_threshold=0,
        content="",
        sha256=sha256(folder / "shards" / "shard-00000.parquet"),
    )
    manifest = ShardManifest(
        scorer=ScorerEntry(name="none", sha256="0"),
        rule="threshold:threshold=1.5",
        threshold=1.5,
        dtype="fp32",
        device="cpu",
        shard_bytes=1,
        sources=({"kind": "stdlib"},),
        shards=(entry,),
    )
    write_manifest(folder / "shards", manifest)
    return {"path": str(folder / "shards")}


EXAMPLES: dict[type[SourceConfig], Callable[[Path], dict[str, Any]]] = {
    TextSource: _text,
    JsonlSource: _jsonl,
    ParquetSource: _parquet,
    HubSource: _hub,
    BinarySource: _binary,
    StdlibSource: lambda _: {},
    PromptSource: _prompts,
    ChatSource: _chat,
    AnnotatedSource: _annotated,
}
