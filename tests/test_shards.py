"""Shards give back what was put into them, and the same documents make the same file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bltkit.data import Document
from bltkit.data.sources import shards
from bltkit.data.sources.shards import (
    AnnotatedDocument,
    Cut,
    ShardFile,
    cut,
    digest,
    opens_of,
    read_manifest,
    write_shard,
)
from bltkit.patching import PatchingRule, parse_rule
from bltkit.patching.patched import patch_text

pytest.importorskip("pyarrow")

RULES = [
    "threshold:threshold=1.0",
    "rise:rise=0.0,max_patch_bytes=3",
    "both:threshold=1.0,rise=0.0",
    "space",
    "stride:k=3",
]


def rows() -> list[AnnotatedDocument]:
    random = np.random.RandomState(0)
    found = []
    for number, size in enumerate((1, 9, 300, 17)):
        data = random.bytes(size)
        document = Document(
            f"a/{number}",
            data,
            {"b": [1, None], "a": "ä\ud800"} if number % 2 else None,
            random.rand(size) < 0.5 if number > 1 else None,
        )
        entropies = random.rand(size + 1).astype(np.float32)
        patches = None if number == 2 else Cut(np.array([0], dtype=np.int32), bool(number % 2))
        found.append(AnnotatedDocument(document, entropies, *(patches or (None, None))))
    return found


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 200)
    write_shard(tmp_path / "a", rows(), dtype)
    shard = ShardFile(tmp_path / "a")
    assert (shard.num_documents, shard.num_groups) == (4, 2)
    for wanted, found in zip(rows(), shard.documents(), strict=True):
        assert found.document[:3] == wanted.document[:3]
        for one, two in (
            (found.document.learned, wanted.document.learned),
            (found.starts, wanted.starts),
            (found.entropies, wanted.entropies.astype(np.float16 if dtype == "fp16" else np.float32)),
        ):
            assert (one is None) == (two is None)
            assert one is None or two is None or one.tolist() == two.tolist()
        assert found.entropies.dtype == np.float32 and found.next_opens == wanted.next_opens
    write_shard(tmp_path / "b", iter(rows()), dtype)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@given(
    st.sampled_from(RULES).map(parse_rule),
    st.lists(st.tuples(st.text("ab \n", min_size=1, max_size=12), st.integers(0, 99)), max_size=4),
)
def test_documents_are_cut_as_if_each_stood_alone(rule: PatchingRule, drawn: list[tuple[str, int]]) -> None:
    texts = [text.encode() for text, _ in drawn]
    entropies = [2 * np.random.RandomState(seed).rand(len(text) + 1).astype(np.float32) for text, seed in drawn]
    for text, values, found in zip(texts, entropies, cut(rule, texts, entropies), strict=True):
        alone = patch_text(text, rule, lambda ids, values=values: torch.from_numpy(values)[None])
        assert (tuple(found.starts.tolist()), found.next_opens) == (alone.starts, alone.next_opens)
        opens = opens_of(found, len(text))
        assert [at + 1 in alone.starts for at in range(len(text) - 1)] == opens[:-1].tolist()
        assert opens[-1] == alone.next_opens


def test_a_digest_tells_documents_apart() -> None:
    base = Document("n", b"ab", {"k": 1}, np.array([True, False]))
    others = [
        base._replace(name="m"),
        base._replace(data=b"ac"),
        base._replace(metadata=None),
        base._replace(metadata={"k": 2}),
        base._replace(learned=None),
        base._replace(learned=np.array([True, True])),
    ]
    found = [digest([one]) for one in (base, *others)] + [digest([]), digest([base, base])]
    assert len(set(found)) == len(found)
    assert digest([base]) == digest([base._replace(metadata={"k": 1})])
    assert digest([Document("n", b"ab"), Document("", b"")]) != digest([Document("n", b"a"), Document("", b"b")])


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        yield rows()[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path / "a", broken(), "fp32")
    assert list(tmp_path.iterdir()) == []


def test_broken_manifests_are_said(tmp_path: Path) -> None:
    for content, message in (
        ("{", "manifest.json: not JSON"),
        (json.dumps({"format": 99}), "has format 99, but this bltkit reads up to 2; upgrade"),
        (json.dumps({"format": 1, "rul": None}), "unknown key 'rul'; did you mean 'rule'"),
    ):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_manifest(tmp_path)
