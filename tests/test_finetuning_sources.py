"""Sources of prompts and conversations: which bytes are learned, what is broken, and that batches keep to it."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.data import IGNORE, Corpus, DataConfig, Loader, parse_source
from bltkit.data.sources import ChatSource, Faults, PromptSource, StdlibSource, chat_template, read
from bltkit.data.template import ChatTemplate
from bltkit.vocab import BOS, EOS, OFFSET

PAIRS = [("2+2=", "4"), ("Größe: ", "12 €"), ("", "unprompted"), ("spell cat: ", "c a t\n")]
CHATS = [
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ä?"},
        {"role": "assistant", "content": "ö"},
        {"role": "tool", "content": "[1]"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "thanks"},
    ],
]


def write(path: Path, records: list[Any]) -> Path:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    pack: dict[str, Any] = {".gz": gzip.compress, ".zst": zstandard.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(data))
    return path


def prompts(path: Path, pairs: list[tuple[str, str]] = PAIRS, **fields: Any) -> PromptSource:
    records = [{"id": i, "prompt": prompt, "completion": completion} for i, (prompt, completion) in enumerate(pairs)]
    return PromptSource(paths=(str(write(path, records)),), **fields)


def chats(path: Path, conversations: list[Any] = CHATS, **fields: Any) -> ChatSource:
    records = [{"messages": messages} for messages in conversations]
    return ChatSource(paths=(str(write(path, records)),), **fields)


class TestPrompts:
    @pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
    def test_the_completion_is_learned(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"a.jsonl{suffix}"
        documents = list(read(prompts(path)))
        assert [document.name for document in documents] == [f"{path}:{line}" for line in (1, 2, 3, 4)]
        for document, (prompt, completion) in zip(documents, PAIRS, strict=True):
            assert document.data == (prompt + completion).encode()
            assert document.learned is not None and document.learned.dtype == np.bool_
            assert document.learned.tolist() == [False] * len(prompt.encode()) + [True] * len(completion.encode())

    def test_other_fields(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"q": {"text": "ask "}, "answer": "reply"}])
        source = parse_source({"kind": "prompts", "paths": str(path), "prompt": "q.text", "completion": "answer"})
        assert [document.data for document in read(source)] == [b"ask reply"]

    @pytest.mark.parametrize(
        ("record", "words"),
        [
            ({"prompt": "a"}, ["'completion'", "`completion`"]),
            ({"completion": "a"}, ["'prompt'", "`prompt`"]),
            ({"prompt": "a", "completion": ""}, ["empty"]),
            ({"prompt": "a", "completion": None}, ["NoneType"]),
            ({"prompt": 3, "completion": "a"}, ["'prompt'", "int"]),
            ([], ["object"]),
        ],
    )
    def test_broken_records(self, tmp_path: Path, record: Any, words: list[str]) -> None:
        path = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}, record])
        with pytest.raises(ValueError) as error:
            list(read(PromptSource(paths=(str(path),))))
        message = str(error.value)
        assert message.startswith(f"{path}:2: ") and "\n" not in message and all(word in message for word in words)
        faults = Faults()
        kept = list(read(PromptSource(paths=(str(path),), broken="skip"), faults))
        assert [document.data for document in kept] == [b"ab"] and faults.counts == {"broken": 1}


class TestChat:
    @pytest.mark.parametrize("learn", ["assistant", "last"])
    def test_documents_are_what_the_template_renders(self, tmp_path: Path, learn: Any) -> None:
        template = ChatTemplate(turn="<", text=":", end=">\n")
        source = chats(tmp_path / "a.jsonl", learn=learn, template=template)
        for document, messages in zip(read(source), CHATS, strict=True):
            data, learned = template.render(messages, learn=learn)
            assert document.data == data and document.learned is not None
            assert document.learned.tolist() == learned.tolist()

    def test_other_field(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"chat": {"turns": CHATS[0]}}])
        (document,) = read(ChatSource(paths=(str(path),), field="chat.turns"))
        assert document.data == ChatTemplate().render(CHATS[0]).data

    @pytest.mark.parametrize(
        ("record", "words"),
        [
            ({"text": "a"}, ["'messages'", "`field`"]),
            ({"messages": []}, ["no messages"]),
            ({"messages": "a"}, ["list"]),
            ({"messages": CHATS[0][:1]}, ["no turn of the assistant"]),
            ({"messages": [*CHATS[0], {"role": "human", "content": ""}]}, ["message 3", "'human'"]),
            ({"messages": [{"role": "assistant", "content": 3}]}, ["message 1", "int"]),
            ({"messages": [{"role": "assistant", "content": "a\x03"}]}, ["message 1", "mark"]),
        ],
    )
    def test_broken_records(self, tmp_path: Path, record: Any, words: list[str]) -> None:
        path = write(tmp_path / "a.jsonl", [{"messages": CHATS[0]}, record])
        with pytest.raises(ValueError) as error:
            list(read(ChatSource(paths=(str(path),))))
        message = str(error.value)
        assert message.startswith(f"{path}:2: ") and "\n" not in message and all(word in message for word in words)
        faults = Faults()
        kept = list(read(ChatSource(paths=(str(path),), broken="skip"), faults))
        assert len(kept) == 1 and faults.counts == {"broken": 1}

    def test_the_runs_template(self, tmp_path: Path) -> None:
        source = chats(tmp_path / "a.jsonl")
        other = source.replace(template=ChatTemplate(end="</s>"))
        assert chat_template([StdlibSource()]) is None
        assert chat_template([StdlibSource(), source, source.replace(weight=2.0)]) == ChatTemplate()
        with pytest.raises(ValueError, match="different templates"):
            chat_template([source, other])

    def test_the_data_section_takes_it(self, tmp_path: Path) -> None:
        source = chats(tmp_path / "a.jsonl", learn="last", template=ChatTemplate(end="</s>"))
        config = DataConfig(sources=(source,))
        assert DataConfig.model_validate(json.loads(config.model_dump_json())) == config


def targets_of(batch: Any, asked: bytes) -> tuple[list[bytes], list[bytes]]:
    """(what is learned of each document in a batch's rows, EOS as `asked`; what is not)."""
    learned, others = [], []
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        for column, (now, target) in enumerate(zip(ids, targets, strict=True)):
            if now == BOS:
                learned.append(b"")
                others.append(b"")
            following = ids[column + 1] if column + 1 < len(ids) else BOS
            if now == EOS or following < EOS:  # nothing of this document follows
                assert target == IGNORE
                continue
            assert target in (following, IGNORE)
            shown = asked if following == EOS else bytes([following - OFFSET])
            (others if target == IGNORE else learned)[-1] += shown
    return learned, others


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.text("abcd", max_size=9), st.text("wxyz", min_size=1, max_size=9)),
        min_size=2,
        max_size=12,
        unique=True,
    ),
    st.integers(0, 3),
)
def test_batches_ask_for_completions_only(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], seed: int
) -> None:
    """Every target of a whole epoch, against the pairs themselves."""
    source = prompts(tmp_path_factory.mktemp("pairs") / "a.jsonl", pairs)
    corpus = Corpus.from_sources([source], 0.0)
    loader = Loader(corpus, 24, 1, seed)
    found: list[tuple[bytes, bytes]] = []
    while len(found) < len(pairs):
        found += zip(*targets_of(next(loader), b"$"), strict=True)
    wanted = [(completion.encode() + b"$", prompt.encode()) for prompt, completion in pairs]
    assert sorted(found) == sorted(wanted)


def test_the_end_is_learned_only_behind_the_assistant(tmp_path: Path) -> None:
    corpus = Corpus.from_sources([chats(tmp_path / "a.jsonl")], 0.0)
    loader = Loader(corpus, 128, 1, 0)
    found: set[bytes] = set()
    while len(found) < 2:
        found |= set(targets_of(next(loader), b"$")[0])
    assert found == {b"hello\x03$", "ö\x03one\x03".encode()}
