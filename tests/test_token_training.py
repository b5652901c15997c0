"""Training a token model: the same bytes as byte models, figures per byte, and a run that keeps its tokenizer."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bltkit import cli
from bltkit.checkpoint import load_token_model
from bltkit.config import dump_toml, load_toml, parse
from bltkit.data import Batch, Corpus, Loader, TokenBatch, parse_source, validation_batches
from bltkit.model import TokenConfig, TokenLlama
from bltkit.tokens import Vocabulary, train_bpe
from bltkit.train import TrainConfig, read_metrics, train
from bltkit.train.token_vocabulary import trained_vocabulary
from bltkit.vocab import BOS, EOS, OFFSET
from tests.tiny_training import Workplace, documents, same

ONE = "trainer.max_steps=1"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def pieces(row: list[int]) -> list[tuple[bytes, bool]]:
    """Texts of a row, and does each end there."""
    found: list[tuple[bytes, bool]] = []
    for value in row:
        if value == BOS:
            found.append((b"", False))
        elif value == EOS:
            found[-1] = (found[-1][0], True)
        elif value >= OFFSET:
            found[-1] = (found[-1][0] + bytes([value - OFFSET]), False)
    return found


@torch.no_grad()
def by_hand(model: TokenLlama, vocabulary: Vocabulary, rows: list[list[int]]) -> tuple[float, float, int, int]:
    """Document by document, alone: nats of all targets, nats of text, targets, bytes of text."""
    nats, text_nats, targets, num_bytes = 0.0, 0.0, 0, 0
    for row in rows:
        for text, ended in pieces(row):
            tokens = vocabulary.tokenizer.encode(text)
            ids = [vocabulary.bos, *tokens, *([vocabulary.eos] if ended else [])]
            logp = model(torch.tensor([ids]))[0].double().log_softmax(-1)
            each = [-float(logp[at, ids[at + 1]]) for at in range(len(ids) - 1)]
            nats, text_nats = nats + sum(each), text_nats + sum(each[: len(tokens)])
            targets, num_bytes = targets + len(each), num_bytes + len(text)
    return nats, text_nats, targets, num_bytes


def test_figures_by_hand(place: Workplace) -> None:
    """The loss is a mean over tokens, EOS among them; bits per byte are those of text, without EOS."""
    config = place.config("bpe", ONE, "optim.lr=1e-30")
    result = train(config, place.path / "run", say=lambda line: None)
    kept = load_token_model(place.path / "run")
    corpus = Corpus.from_sources(config.data.sources, 0.1)
    batch = next(Loader(corpus, 64, 2, 3))
    nats, text_nats, targets, num_bytes = by_hand(kept.model, kept.vocabulary, batch.ids.tolist())
    step, validation = read_metrics(place.path / "run")
    assert step["loss"] == pytest.approx(nats / targets, rel=1e-5)
    assert step["bits_per_byte"] == pytest.approx(text_nats / math.log(2) / num_bytes, rel=1e-5)
    assert num_bytes == batch.text_bytes == step["bytes_seen"] == result.bytes_seen
    text = [vocabulary_tokens(kept.vocabulary, row) for row in batch.ids.tolist()]
    assert step["patch_bytes"] == pytest.approx(num_bytes / sum(text)) == result.mean_patch_bytes
    held = [row for one in validation_batches(corpus, 64, 2, 16) for row in one.ids.tolist()]
    _, text_nats, _, num_bytes = by_hand(kept.model, kept.vocabulary, held)
    expected = text_nats / math.log(2) / num_bytes
    assert validation["validation_bits_per_byte"] == result.bits_per_byte == pytest.approx(expected, rel=1e-5)


def vocabulary_tokens(vocabulary: Vocabulary, row: list[int]) -> int:
    return sum(len(vocabulary.tokenizer.encode(text)) for text, _ in pieces(row))


def test_every_family_sees_the_same_bytes(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for kind in ("entropy", "bpe"):
        rows = seen[kind] = []
        original = Loader.__next__

        def watched(self: Loader, rows: list[torch.Tensor] = rows, original: Any = original) -> Any:
            batch = original(self)
            rows.append(batch.ids)
            return batch

        with monkeypatch.context() as patched:
            patched.setattr(Loader, "__next__", watched)
            place.train(kind, kind, "trainer.max_steps=4")
    assert len(seen["bpe"]) == 4 and all(map(torch.equal, seen["entropy"], seen["bpe"]))
    ours, theirs = (
        [row["bytes_seen"] for row in read_metrics(place.path / kind) if "loss" in row] for kind in ("bpe", "entropy")
    )
    assert ours == theirs


def test_the_run_directory_is_a_llama_with_its_record(place: Workplace) -> None:
    result = place.train("run", "bpe", "trainer.max_steps=2")
    found = load_token_model(place.path / "run")
    record = found.record
    assert (record["steps"], record["row_bytes"], record["bytes_seen"]) == (2, 64, result.bytes_seen)
    assert record["tokenizer"] == {"sha256": found.vocabulary.sha256, "tokens": 300}
    assert record["mean_patch_bytes"] == result.mean_patch_bytes
    config = place.config("bpe", "trainer.max_steps=2")
    assert result.mean_patch_bytes is not None
    assert result.train_flops == record["train_flops"] == config.train_flops(result.bytes_seen, result.mean_patch_bytes)
    assert parse(TrainConfig, record["config"], "record") == config
    kept: TrainConfig = parse(TrainConfig, load_toml(place.path / "run" / "config.toml"), "kept")
    assert kept == config and kept.objective.kind == "next-token"
    stored = json.loads((place.path / "run" / "bltkit.json").read_text())
    assert stored["kind"] == "bpe" and stored["tokenizer"]["tokens"] == 300


def test_evaluation_gives_the_same_bits(place: Workplace) -> None:
    """A text in one window, BOS in front: as the trainer's objective counts it, and as `blt eval` does."""
    pytest.importorskip("transformers")
    from bltkit.eval.requests import Coded, Compression
    from bltkit.eval.subjects import open_subject

    place.train("run", "bpe", "optim.lr=3e-2")
    found = load_token_model(place.path / "run")
    texts = [
        b"the of and a to in is you",
        "that it was \N{SNOWMAN} Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n".encode(),
    ]
    subject = open_subject(f"token:{place.path / 'run'}")
    for at, answer in subject.answers([Compression(text) for text in texts]):
        ids = torch.tensor([[BOS, *(byte + OFFSET for byte in texts[at]), EOS]])
        batch = TokenBatch.of(Batch.from_ids(ids), found.vocabulary)
        with torch.no_grad():
            losses = place.config("bpe").objective.loss(found.model, batch, None, 0)
        assert isinstance(answer, Coded) and answer.num_bytes == batch.text_bytes == len(texts[at])
        assert answer.nats == pytest.approx(float(losses.text), rel=1e-5) and losses.text < losses.total


def test_a_run_goes_on_with_its_own_tokenizer(place: Workplace) -> None:
    """Stored with every checkpoint, also where no model is exported; the file that it came from may be gone."""
    file = place.path / "given.json"
    file.write_text(train_bpe(documents(), 290))
    more = [f"model.tokenizer={file}", "checkpoint.export=end"]
    place.train("whole", "bpe", *more)
    place.train("parts", "bpe", *more, "trainer.max_steps=5")
    file.unlink()
    place.train("parts", "bpe", *more, resume=True)
    same(place.tensors("parts"), place.tensors("whole"))
    assert place.losses("parts") == place.losses("whole")
    branch = f"trainer.branch={place.path / 'parts'}"
    place.train("branch", "bpe", *more, branch, "trainer.max_steps=12")
    assert load_token_model(place.path / "branch").vocabulary == load_token_model(place.path / "parts").vocabulary


def test_the_tokenizer_is_the_same_for_every_seed(place: Workplace) -> None:
    for seed in (1, 2):
        place.train(f"seed{seed}", "bpe", ONE, f"trainer.seed={seed}")
    one, two = (load_token_model(place.path / f"seed{seed}") for seed in (1, 2))
    assert one.vocabulary == two.vocabulary
    assert not torch.equal(one.model.embed.weight, two.model.embed.weight)
    place.train("small", "bpe", ONE, "model.tokenizer={kind='trained', sample_bytes=40}")
    assert load_token_model(place.path / "small").vocabulary.size < 300


def test_the_tokenizer_is_trained_on_what_the_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sources' weights: a sample of the mixture, not of the files."""
    for number in range(200):
        (tmp_path / f"a{number}.txt").write_bytes(b"a%d" % number)
        (tmp_path / f"b{number}.txt").write_bytes(b"b%d" % number)
    sources = [parse_source(str(tmp_path / "a*.txt")), parse_source(str(tmp_path / "b*.txt")).replace(weight=3.0)]
    seen: list[bytes] = []
    monkeypatch.setattr(Vocabulary, "train", lambda sample, size: seen.extend(sample))
    model = parse(TokenConfig, {"width": 8, "layers": 1, "heads": 1, "vocab_size": 300}, "test")
    trained_vocabulary(model.replace(tokenizer=model.tokenizer.replace(sample_bytes=400)), Corpus.from_sources(sources))
    share = sum(text.startswith(b"b") for text in seen) / len(seen)
    assert 0.65 < share < 0.85


@pytest.mark.slow
def test_workers_make_the_same_rows(place: Workplace) -> None:
    place.train("alone", "bpe")
    place.train("workers", "bpe", "data.workers=2")
    assert place.losses("alone") == place.losses("workers")


def test_a_run_takes_shape_and_tokens_of_the_one_that_it_starts_from(place: Workplace) -> None:
    place.train("first", "bpe", "model.tied=true")
    fields = place.fields("bpe", f"trainer.init={place.path / 'first'}", ONE, "optim.lr=1e-30")
    del fields["model"]
    (place.path / "00.txt").write_bytes(b"quite another text " * 9)
    config: TrainConfig = parse(TrainConfig, fields, "test")
    assert isinstance(config.model, TokenConfig) and config.model.tied
    train(config, place.path / "second", say=lambda line: None)
    first, second = (load_token_model(place.path / name) for name in ("first", "second"))
    assert first.vocabulary == second.vocabulary
    same(dict(first.model.state_dict()), dict(second.model.state_dict()))
    with pytest.raises(ValueError, match=r"trainer.init.* holds no model of kind 'entropy'|holds a token model"):
        place.train("third", "entropy", f"trainer.init={place.path / 'first'}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.vocab_size=258",), "model.vocab_size = 258: the 256 bytes and special tokens alone need 259"),
        (("model.tokenizer=none.json",), "model.tokenizer = 'none.json': no such file; name a tokenizer.json"),
        (("model.tokenizer=00.txt",), "not a tokenizer.json"),
        (("model.tokenizer=given.json", "model.vocab_size=270"), "is too small for the tokenizer's 283 tokens"),
        (("objective={kind = 'next-byte'}",), "model.kind = 'bpe' does not go with objective.kind = 'next-byte'"),
        (("objective={kind = 'block-diffusion'}",), "model.kind = 'bpe' does not go with"),
        (("adapt.lora={}", "trainer.init=x"), "a model of kind 'bpe' has no global transformer to adapt"),
        (("optim.tables_lr=1e-3",), "this model has no n-gram tables"),
    ],
)
def test_mistakes_are_one_line(
    overrides: tuple[str, ...],
    message: str,
    place: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place.path)
    Path("given.json").write_text(train_bpe(documents(), 280))
    Path("run.toml").write_text(dump_toml(place.fields("bpe", ONE)))
    assert cli.main(["train", "run.toml", *overrides, "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("run").exists()


def test_a_byte_model_is_not_trained_on_tokens(place: Workplace) -> None:
    with pytest.raises(ValueError, match=r"model.kind = 'entropy' does not go with objective.kind = 'next-token'"):
        place.config("entropy", "objective={kind = 'next-token'}")
