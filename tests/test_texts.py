"""Many short texts: held in little memory, and sampled as many bytes as a long one would be."""

import tracemalloc
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

from bltkit.cost.ledger import ledger_of
from bltkit.data.samples import PIECE_BYTES, SAMPLE_BYTES, sample_documents, stretches
from bltkit.data.sources import Texts, read_texts
from bltkit.diagnostics import health
from bltkit.diagnostics.findings import NGRAM_BYTES
from bltkit.generate.prompt_file import read_prompts

CONFIGS = Path(__file__).parents[1] / "configs"


def test_texts_are_a_sequence() -> None:
    texts = Texts([b"one", b"", b"two", b"x"])
    assert list(texts) == [b"one", b"two", b"x"] == texts[:] and texts[-1] == b"x" and texts[-3] == b"one"
    assert list(texts.ends) == [3, 6, 7] and texts[1:] == [b"two", b"x"]
    assert not Texts([b""])
    with pytest.raises(IndexError):
        texts[3]


def test_memory_of_many_short_texts() -> None:
    def lines() -> Iterator[bytes]:
        for number in range(100_000):
            yield b"%d" % number

    tracemalloc.start()
    texts = Texts(lines())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(texts) == 100_000 and peak < 32 * len(texts), "a list of bytes takes more than 45 each, Documents 300"


def test_a_check_looks_at_no_more_than_it_uses(tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_text('{"text": "abcde"}\n' * 1000)
    texts = read_texts([str(tmp_path / "short.jsonl")])
    sample = health._sample(texts)
    assert len(texts) == 1000 and sample.joined == b"abcde" * 1000 and set(sample.rest) == {b"abcd"}
    large = health._sample(Texts([b"x" * 1_000_000] * 5))
    assert len(large.joined) == sum(map(len, large.rest)) == NGRAM_BYTES


def test_a_sample_of_short_documents_is_as_large_as_one_of_long_ones(tmp_path: Path) -> None:
    """It was one document in place of each stretch: of lines of 100 bytes a fortieth of what is promised."""
    path = tmp_path / "short.jsonl"
    path.write_text("".join(f'{{"text": "{number:0100}"}}\n' for number in range(20_000)))
    sample = list(sample_documents([str(path)]))
    assert 0.9 * SAMPLE_BYTES < sum(map(len, sample)) <= SAMPLE_BYTES and len(set(sample)) == len(sample)


@pytest.mark.parametrize(
    "sizes", [[3] * 300_000, [5000] * 300, [100, 9000] * 200, [700_000], [1, 700_000, 1], [4096] * 200]
)
def test_stretches(sizes: list[int]) -> None:
    pieces = list(stretches(list(accumulate(sizes)), SAMPLE_BYTES))
    assert pieces == sorted(pieces) and len(pieces) == len(set(pieces))
    assert all(0 <= begin < end <= sizes[number] for number, begin, end in pieces)
    assert all(ours[0] < theirs[0] or ours[2] <= theirs[1] for ours, theirs in pairwise(pieces)), "disjoint"
    assert sum(end - begin for _, begin, end in pieces) <= SAMPLE_BYTES
    assert len(pieces) <= 64 * (SAMPLE_BYTES // PIECE_BYTES)


def test_only_a_txt_file_holds_plain_prompts(tmp_path: Path) -> None:

    path = tmp_path / "notes.txt.jsonl"
    path.write_text('{"prompt": "a"}\n')
    assert [item.prompt.data for item in read_prompts(path)] == [b"a"]


def test_a_model_of_bytes_has_no_patches() -> None:
    """`blt flops` said "4.50 bytes per patch" of a transformer over bytes, without "assumed"."""
    ledger = ledger_of(CONFIGS / "byte-tiny.toml")
    assert ledger.patch_bytes is None and "byte by byte" in ledger.summary()
