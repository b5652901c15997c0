"""The corpus: its split by content, weights, marks of bytes, faults of its sources, and the same laid down on disk."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.data import Corpus, DataConfig, Document, Loader, SourceConfig, parse_source, validation_batches
from bltkit.data import store as store_module
from tests.tiny_corpus import everything, same


def visited(corpus: Corpus, epoch: int) -> list[int]:
    visits = corpus.visits(epoch)
    return visits.documents(np.arange(len(visits))).tolist()


# --- the split ---


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=2, max_size=30), st.floats(0.01, 0.99), st.randoms())
def test_the_split_is_by_content(texts: list[bytes], fraction: float, random: object) -> None:
    corpus = Corpus.from_documents(texts, fraction)
    train = [corpus.document(i) for i in corpus.train]
    held = [corpus.document(i) for i in corpus.validation]
    assert train and held
    assert Counter(train) + Counter(held) == Counter(texts)
    if len(set(texts)) > 1:
        assert not set(train) & set(held)
        shuffled = list(texts)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        again = Corpus.from_documents(shuffled, fraction)
        assert {again.document(i) for i in again.validation} == set(held)
        assert (again.fingerprint == corpus.fingerprint) == (shuffled == texts)


def test_a_documents_side_does_not_depend_on_the_others() -> None:
    texts = [b"document %d" % i for i in range(3000)]
    few, many = Corpus.from_documents(texts[1000:2000], 0.1), Corpus.from_documents(texts, 0.1)
    held = {many.document(i) for i in many.validation}
    assert {few.document(i) for i in few.validation} == held & set(texts[1000:2000])
    assert 200 < len(held) < 400


def test_one_document_is_for_training() -> None:
    corpus = Corpus.from_documents([b"alone"], 0.5)
    assert (corpus.train.tolist(), corpus.validation.tolist()) == ([0], [])
    assert list(validation_batches(corpus, 16, 2)) == []


@given(st.text(min_size=1, max_size=600), st.floats(0.01, 0.6))
def test_of_a_single_document_the_tail_is_held_out(text: str, fraction: float) -> None:
    """At a character's border, and nothing is lost; with too little of it, it is for training."""
    data = text.encode()
    corpus = Corpus.from_documents([data], fraction)
    assert b"".join(map(corpus.document, range(len(corpus)))) == data
    whole = Corpus.from_documents([data], 0.0)
    if round(fraction * len(data)) < 16:
        assert corpus.validation.tolist() == [] and corpus.fingerprint == whole.fingerprint
        return
    tail = corpus.document(1)
    assert (corpus.train.tolist(), corpus.validation.tolist()) == ([0], [1]) and corpus.document(0)
    assert tail.decode() and 0 <= len(tail) - round(fraction * len(data)) <= 3
    (stats,) = corpus.stats
    assert (stats.num_documents, stats.validation_documents, stats.validation_bytes) == (2, 1, len(tail))
    with pytest.raises(ValueError, match=r"another corpus .*of version 0\.1\.0 .* data\.validation_fraction = 0"):
        Loader(corpus, 32, 2).restore(Loader(whole, 32, 2).state)
    assert corpus.fingerprint != whole.fingerprint and sum(b.text_bytes for b in validation_batches(corpus, 32, 2))


def test_a_tail_brings_its_marks(tmp_path: Path) -> None:
    """Bytes that are no text, stored starts among them, in memory and in a folder."""
    opens = np.arange(400) % 3 == 0
    document = Document("one", bytes([0x80]) * 400, opens=opens, learned=np.arange(400) % 2 == 0)
    corpus = Corpus.from_documents([document], 0.25)
    assert corpus.opens is not None and corpus.num_opens is not None
    cut = int(corpus.offsets[1])
    assert 296 <= cut <= 300 and corpus.opens.tolist() == opens.tolist()
    assert corpus.num_opens.tolist() == [opens[:cut].sum(), opens[cut:].sum()]
    (tmp_path / "one.txt").write_bytes(b"some text. " * 60)
    source = parse_source(str(tmp_path / "one.txt"))
    memory, folder = (Corpus.from_sources([source], 0.05, directory=at) for at in (None, tmp_path / "cache"))
    assert memory.fingerprint == folder.fingerprint and folder.validation.tolist() == [1]
    assert folder.document(1) == memory.document(1) and len(folder.document(1)) == 33


def test_a_small_corpus_holds_back_a_small_document() -> None:
    corpus = Corpus.from_documents([b"x" * 1000, b"y" * 20, b"z" * 5000], 1e-9)
    assert [corpus.document(i)[:1] for i in corpus.validation] == [b"y"]


def test_documents_of_no_bytes_are_left_out() -> None:
    corpus = everything([b"", b"a", b"", b"b"])
    assert [corpus.document(i) for i in range(len(corpus))] == [b"a", b"b"]
    with pytest.raises(ValueError, match="memory"):
        everything([b"", b""])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_is_a_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="validation_fraction"):
        Corpus.from_documents([b"a"], fraction)


def test_the_text_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        everything([b"abc"]).data[0] = 0


# --- weights ---


@given(st.integers(1, 4), st.integers(0, 10_000))
def test_whole_weights_are_the_same_in_every_epoch(weight: int, epoch: int) -> None:
    corpus = Corpus.from_documents([b"a", b"bb", b"ccc"], 0.0, float(weight))
    assert np.bincount(visited(corpus, epoch)).tolist() == [weight] * 3


def test_fractional_weights_take_turns() -> None:
    corpus = Corpus.from_documents([b"document %d" % i for i in range(400)], 0.0, 0.5)
    first, second = set(visited(corpus, 0)), set(visited(corpus, 1))
    assert not first & second and first | second == set(range(400))
    assert 150 < len(first) < 250


def test_every_source_has_its_weight(tmp_path: Path) -> None:
    sources = []
    for name, weight in (("a", 1.0), ("b", 3.0), ("c", 0.5)):
        texts = [f"{name}{i}" for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        sources.append(parse_source({"kind": "jsonl", "paths": str(tmp_path / f"{name}.jsonl"), "weight": weight}))
    corpus = Corpus.from_sources(sources, 0.2)
    found = Counter(visited(corpus, 0) + visited(corpus, 1))
    wanted = {corpus_index: {0: 2, 1: 6, 2: 1}[int(corpus.source[corpus_index])] for corpus_index in corpus.train}
    assert found == wanted


# --- marks ---


def test_learned_bytes_are_kept_and_the_rest_is_learned() -> None:
    some = np.array([True, False])
    corpus = everything([Document("a", b"abc"), Document("b", b"de", learned=some), Document("c", b"f")])
    assert corpus.learned is not None and corpus.learned.tolist() == [True, True, True, True, False, True]
    assert everything([b"abc"]).learned is None
    plain, marked = everything([b"abc", b"de"]), everything([Document("a", b"abc"), Document("b", b"de", learned=some)])
    assert plain.fingerprint != marked.fingerprint
    other = everything([Document("a", b"abc"), Document("b", b"de", learned=~some)])
    assert other.fingerprint != marked.fingerprint


def test_starts_are_kept_for_all_documents_or_none() -> None:
    with_starts = [
        Document("a", b"abc", opens=np.array([True, False, True])),
        Document("b", b"d", opens=np.array([False])),
    ]
    corpus = everything(with_starts)
    assert corpus.opens is not None and corpus.opens.tolist() == [True, False, True, False]
    assert corpus.num_opens is not None and corpus.num_opens.tolist() == [2, 0]
    assert corpus.fingerprint != everything([b"abc", b"d"]).fingerprint
    for mixed in ([*with_starts, Document("plain", b"x")], [Document("plain", b"x"), *with_starts]):
        with pytest.raises(ValueError, match=r"memory: (plain|a) comes with.*annotate all sources or none"):
            everything(mixed)


# --- faults ---


def test_what_was_passed_over_stands_in_the_statistics(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"text": ""}\nbroken\n{"text": ""}\n')
    (stats,) = Corpus.from_sources([parse_source({"kind": "jsonl", "paths": str(path), "broken": "skip"})]).stats
    assert stats.faults == {"broken": 1, "empty": 2}
    assert stats.examples["empty"] == [f"{path}:2", f"{path}:4"]
    path.write_bytes(b"broken\n")
    with pytest.raises(ValueError, match=r"no documents with any bytes \(passed over: 1 broken"):
        Corpus.from_sources([parse_source({"kind": "jsonl", "paths": str(path), "broken": "skip"})])


# --- on disk ---


@pytest.fixture
def sources(tmp_path: Path) -> list[SourceConfig]:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(int(size)) for size in rng.integers(0, 200, 60)]
    for number, text in enumerate(texts):
        (tmp_path / f"{number:02d}.bin").write_bytes(text)
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(50)))
    return [parse_source(str(tmp_path / "*.bin")), parse_source(str(tmp_path / "more.jsonl")).replace(weight=1.5)]


def arrays(corpus: Corpus) -> dict[str, np.ndarray]:
    found = {name: value for name, value in vars(corpus).items() if isinstance(value, np.ndarray)}
    assert len(found) >= 7
    return found


def test_on_disk_it_is_the_same_corpus(sources: list[SourceConfig], tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    memory = Corpus.from_sources(sources, 0.1)
    disk = Corpus.from_sources(
        sources, 0.1, directory=tmp_path / "cache", progress=lambda label, *counts: told.append((label, *counts))
    )
    assert disk.folder is not None and disk.folder.parent == tmp_path / "cache"
    assert (disk.fingerprint, disk.stats) == (memory.fingerprint, memory.stats)
    assert arrays(disk).keys() == arrays(memory).keys()
    for name, array in arrays(memory).items():
        assert np.array_equal(arrays(disk)[name], array) and arrays(disk)[name].dtype == array.dtype
        assert not arrays(disk)[name].flags.writeable
    assert told == [(stats.label, stats.num_documents, stats.num_bytes) for stats in memory.stats]
    left, right = Loader(memory, 64, 4, 1), Loader(disk, 64, 4, 1)
    assert all(same(next(left), next(right)) for _ in range(100))
    batches = zip(validation_batches(memory, 64, 4), validation_batches(disk, 64, 4), strict=True)
    assert all(same(a, b) for a, b in batches)


def test_it_is_mapped_and_sent_as_its_name(sources: list[SourceConfig], tmp_path: Path) -> None:
    corpus = Corpus.from_sources(sources, 0.1, directory=tmp_path / "cache")
    base = corpus.data
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base  # type: ignore[assignment]
    assert isinstance(base, np.memmap)
    sent = pickle.dumps(corpus)
    assert len(sent) < 1000 < len(corpus.data)
    assert np.array_equal(pickle.loads(sent).data, corpus.data)
    in_memory = pickle.loads(pickle.dumps(Corpus.from_sources(sources, 0.1)))
    assert np.array_equal(in_memory.data, corpus.data) and in_memory.stats == corpus.stats
    # Whoever asks later gets another corpus or none, never other bytes under the old fingerprint.
    (tmp_path / "00.bin").write_bytes(b"changed meanwhile")
    Corpus.from_sources(sources, 0.1, directory=tmp_path / "cache")
    with pytest.raises(ValueError, match="was recreated meanwhile"):
        pickle.loads(sent)


def test_it_is_made_once_and_again_when_an_input_changes(
    sources: list[SourceConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, built = tmp_path / "cache", []
    build = store_module.laid_down
    monkeypatch.setattr(
        "bltkit.data.store.laid_down",
        lambda *args: build(*args[:3], lambda shelf: built.append(1) or args[3](shelf)),
    )

    def made(fraction: float = 0.1) -> tuple[int, Corpus]:
        before = len(built)
        corpus = Corpus.from_sources(sources, fraction, directory=cache)
        return len(built) - before, corpus

    first, old = made()
    assert first == 1 and made()[0] == 0
    changes = [
        lambda: (tmp_path / "00.bin").write_bytes(b"another size"),
        lambda: os.utime(tmp_path / "01.bin", ns=(1, 1)),
        lambda: (tmp_path / "99.bin").write_bytes(b"one file more"),
        lambda: (tmp_path / "02.bin").unlink(),
        lambda: (old.folder / "manifest.json").write_text("{"),  # type: ignore[operator]
    ]
    before = old.data.copy()
    for change in changes:
        change()
        number, corpus = made()
        assert number == 1 and corpus.fingerprint == Corpus.from_sources(sources, 0.1).fingerprint
        assert made()[0] == 0
    assert np.array_equal(old.data, before), "what is mapped stays as it was"
    assert made(0.2)[0] == 1 and made(0.1)[0] == 0, "other settings lie beside it"
    assert [path.name for path in cache.iterdir() if ".tmp-" in path.name] == []


def test_a_failure_leaves_nothing_and_damage_is_named(sources: list[SourceConfig], tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "a"}\nbroken\n')
    with pytest.raises(ValueError, match=r"more\.jsonl:2"):
        Corpus.from_sources(sources, 0.1, directory=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")] == []
    (tmp_path / "more.jsonl").write_text('{"text": "a"}\n')
    corpus = Corpus.from_sources(sources, 0.1, directory=tmp_path / "cache")
    assert corpus.folder is not None
    (corpus.folder / "offsets.i8").unlink()
    with pytest.raises(ValueError, match=r"data\.cache: .*damaged.*remove it"):
        Corpus.from_sources(sources, 0.1, directory=tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data\.cache: .*file is not a folder"):
        Corpus.from_sources(sources, 0.1, directory=tmp_path / "file")


def test_what_a_killed_process_left_is_removed(sources: list[SourceConfig], tmp_path: Path) -> None:
    corpus = Corpus.from_sources(sources, 0.1, directory=tmp_path / "cache")
    assert corpus.folder is not None
    rest = corpus.folder.with_name(f".{corpus.folder.name}.tmp-0123abcd")
    rest.mkdir()
    (rest / "data.u1").write_bytes(b"half")
    other = tmp_path / "cache" / ".corpus-of-another.tmp-0123abcd"
    other.mkdir()
    Corpus.from_sources(sources, 0.1, directory=tmp_path / "cache")
    assert not rest.exists() and other.exists()


def test_processes_wait_for_the_one_that_makes_it(sources: list[SourceConfig], tmp_path: Path) -> None:
    """All of them get the same corpus, and it was made once: each would have written a manifest of its own."""
    program = (
        "import sys; from pathlib import Path; from bltkit.data import Corpus, parse_source\n"
        "from bltkit.data import store\n"
        "build = store.laid_down\n"
        "def told(*args): build(*args[:3], lambda shelf: print('made') or args[3](shelf))\n"
        "store.laid_down = told\n"
        f"sources = [parse_source({str(tmp_path / '*.bin')!r}), parse_source({str(tmp_path / 'more.jsonl')!r})]\n"
        f"print(Corpus.from_sources(sources, 0.1, directory=Path({str(tmp_path / 'cache')!r})).fingerprint)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for one in running for line in one.communicate()[0].split()]
    assert [one.returncode for one in running] == [0, 0]
    assert lines.count("made") == 1 and len(set(lines)) == 2 and len(lines) == 3


def test_large_documents_go_to_disk_as_they_come(tmp_path: Path) -> None:
    """Marks that begin late are filled up for what came before, in pieces."""
    texts = [Document("a", b"x" * (1 << 21)), Document("b", b"yz", learned=np.array([False, True]))]
    corpus = everything(texts)
    assert corpus.learned is not None and len(corpus.learned) == len(corpus.data)
    assert corpus.learned[: 1 << 21].all() and corpus.learned[-2:].tolist() == [False, True]


def test_the_section_has_its_limits() -> None:
    assert DataConfig().row_patches is None and DataConfig().workers == 0 and DataConfig().cache is None
    for wrong in ({"row_patches": 2}, {"workers": -1}, {"row_bytes": 7}, {"batch_rows": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DataConfig(**wrong)  # type: ignore[arg-type]


def test_held_out_of_a_source_is_its_part_of_what_is_held_out(tmp_path: Path) -> None:
    """Also of a source that alone would hold back what the corpus trains on."""
    for number in range(300):
        (tmp_path / f"many{number}.txt").write_bytes(b"text %d" % number)
    (tmp_path / "few0.txt").write_bytes(b"one")
    (tmp_path / "few1.txt").write_bytes(b"another one")
    sources = [parse_source(str(tmp_path / "many*.txt")), parse_source(str(tmp_path / "few*.txt"))]
    corpus = Corpus.from_sources(sources, 0.05)
    parts = [corpus.held_out_of(number) for number in range(2)]
    assert sorted([*parts[0].validation, *parts[1].validation]) == corpus.validation.tolist()
    assert all((corpus.source[part.validation] == number).all() for number, part in enumerate(parts))
    assert not set(parts[1].validation) & set(corpus.train)
    assert len(parts[1].validation) == 0 and len(Corpus.from_sources(sources[1:], 0.05).validation) == 1


def test_a_source_may_be_a_table_in_a_string(tmp_path: Path) -> None:
    source = parse_source('{kind = "jsonl", paths = ["a.jsonl"], field = "body"}')
    assert source == parse_source({"kind": "jsonl", "paths": ["a.jsonl"], "field": "body"})
    with pytest.raises(ValueError, match="is not a table"):
        parse_source('{kind = "jsonl", ')
