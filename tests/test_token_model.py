"""Token models under evaluation: every answer equals one computed alone, in full, without padding or cache."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bltkit.eval.requests import (
    Answer,
    Coded,
    Compression,
    Continuation,
    Request,
    Scored,
    Written,
    generation,
    likelihood,
)
from bltkit.eval.subjects.token_model import TokenModel
from bltkit.eval.subjects.token_text import Tokens, spans
from tests.token_models import TEXTS, tiny_llama, tiny_tokenizer

pytest.importorskip("transformers")

ASKED: tuple[Request, ...] = (
    likelihood("Question: What is the colour of the sky? Answer:", " blue"),
    likelihood("Question: What is the colour of the sky? Answer:", " green as the grass in the fields"),
    likelihood("", "The river"),
    likelihood("Das ist eine schö", "ne Straße"),
    likelihood(
        "Das ist eine Stra\N{LATIN SMALL LETTER SHARP S}".encode()[:-1], "\N{LATIN SMALL LETTER SHARP S}e".encode()[1:]
    ),
    likelihood("a question", "able answer"),
    likelihood(b"\xff\xfe\x00 raw", b" bytes \xe2\x82 cut"),
    Compression(b"She wrote a letter."),
    Compression(b""),
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> TokenModel:
    return TokenModel.load(f"token:{tiny_llama(tmp_path_factory.mktemp('model') / 'llama')}")


def answers(subject: TokenModel, requests: Sequence[Request]) -> list[Any]:
    found: dict[int, Answer] = {}
    for at, answer in subject.answers(requests):
        assert at not in found
        found[at] = answer
    return [found[at] for at in range(len(requests))]


def logprobs(subject: TokenModel, ids: Sequence[int]) -> torch.Tensor:
    """Of each token behind BOS, given all before it: [len(ids), V]; one row, no padding, no cache."""
    with torch.no_grad():
        row = torch.tensor([[subject.start_token, *ids]])
        return subject.model(input_ids=row, use_cache=False).logits[0].double().log_softmax(-1)


def alone(subject: TokenModel, context: bytes, continuation: bytes) -> tuple[float, bool]:
    """The definition: tokenised together, split at the first token that holds a byte of the continuation."""
    text = (context + continuation).decode("utf-8", "replace")
    backend = subject.tokenizer._backend
    encoding = backend.encode(text, add_special_tokens=False)
    # How many characters decode from the context alone; one that the border cuts belongs to the continuation.
    whole = [end for end in range(len(text) + 1) if context.startswith(text[:end].encode())]
    border = max(whole)
    split = next(at for at, (_, end) in enumerate(encoding.offsets) if end > border)
    each = logprobs(subject, encoding.ids)
    total, greedy = 0.0, True
    for at in range(split, len(encoding.ids)):
        total += float(each[at, encoding.ids[at]])
        greedy &= int(each[at].argmax()) == encoding.ids[at]
    return total, greedy


def test_likelihoods_equal_those_computed_alone(subject: TokenModel) -> None:
    asked = list(ASKED[:6])
    for request, answer in zip(asked, answers(subject, asked), strict=True):
        logprob, greedy = alone(subject, request.context, request.continuation)  # type: ignore[union-attr]
        assert isinstance(answer, Scored)
        assert answer.logprob == pytest.approx(logprob, abs=1e-4)
        assert (answer.greedy, answer.cut) == (greedy, 0)


def test_the_greedy_continuation_is_greedy(subject: TokenModel) -> None:
    ids = list(subject.tokenizer.encode([b"The sky"])[0].ids)
    best = int(logprobs(subject, ids)[-1].argmax())
    written = subject.tokenizer.spell(best)
    again = subject.tokenizer.encode([b"The sky" + written])[0].ids
    assert again == (*ids, best), "the case needs a token that the tokenizer gives back"
    found = answers(subject, [likelihood(b"The sky", written), likelihood(b"The sky", b"~")])
    assert found[0].greedy and not found[1].greedy


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_answers_depend_neither_on_the_batch_nor_on_the_order(subject: TokenModel, batch_tokens: int) -> None:
    order = [5, 2, 8, 0, 7, 6, 1, 4, 3]
    one_by_one = [answers(subject, [request])[0] for request in ASKED]
    other = TokenModel(**{**vars(subject), "batch_tokens": batch_tokens})
    together = answers(other, [ASKED[at] for at in order])
    for at, answer in zip(order, together, strict=True):
        expected = one_by_one[at]
        if isinstance(expected, Coded):
            assert answer.nats == pytest.approx(expected.nats, abs=1e-4)
            assert answer.num_bytes == expected.num_bytes
        else:
            assert answer.logprob == pytest.approx(expected.logprob, abs=1e-4)
            assert answer.greedy == expected.greedy


def test_a_chain_of_continuations_is_the_text(subject: TokenModel) -> None:
    """Split at token borders, log-probabilities add up to the text's, and BOS is not counted."""
    text = TEXTS[0].encode()
    tokens = subject.tokenizer.encode([text])[0]
    border = tokens.ends[len(tokens.ids) // 2]
    first, second, whole, coded = answers(
        subject,
        [
            likelihood(b"", text[:border]),
            likelihood(text[:border], text[border:]),
            likelihood(b"", text),
            Compression(text),
        ],
    )
    assert first.logprob + second.logprob == pytest.approx(whole.logprob, abs=1e-4)
    assert coded.nats == pytest.approx(-whole.logprob, abs=1e-4)
    assert coded.num_bytes == len(text)


def test_long_contexts_are_cut_on_their_left(tmp_path: Path) -> None:
    subject = TokenModel.load(f"token:{tiny_llama(tmp_path / 'llama', positions=16)}")
    context, continuation = TEXTS[0].encode(), b" The end."
    tokens = subject.tokenizer.encode([context + continuation])[0]
    count = len(subject.tokenizer.encode([continuation])[0].ids)
    (answer,) = answers(subject, [likelihood(context, continuation)])
    kept = tokens.ids[-16:]
    each = logprobs(subject, kept)
    assert answer.logprob == pytest.approx(sum(float(each[at, kept[at]]) for at in range(16 - count, 16)), abs=1e-4)
    assert answer.cut == tokens.begins[-16] > 0
    # What does not fit even alone is scored in pieces.
    (answer,) = answers(subject, [likelihood(b"x", context)])
    assert math.isfinite(answer.logprob) and answer.logprob < -16


def test_windows_of_a_long_text(tmp_path: Path) -> None:
    """Each token of the text is scored once, in the window that the protocol asks for."""
    subject = TokenModel.load(f"token:{tiny_llama(tmp_path / 'llama')}", context=40)
    text = " ".join(TEXTS).encode() + b" \xff\xfe\x80 \xe2\x82"
    (answer,) = answers(subject, [Compression(text)])
    tokens = subject.tokenizer.encode([text])[0]
    nats, counted = 0.0, 0
    for one in spans(tokens, 0, subject.positions, 40):
        each = logprobs(subject, tokens.ids[one.begin : one.stop])
        nats -= sum(float(each[at - one.begin, tokens.ids[at]]) for at in range(one.first, one.stop))
        counted += one.stop - one.first
    assert counted == len(tokens.ids)
    assert answer.nats == pytest.approx(nats, abs=1e-3)
    assert answer.num_bytes == len(text)


@given(
    sizes=st.lists(st.integers(0, 5), max_size=60),
    positions=st.one_of(st.none(), st.integers(1, 40)),
    window=st.one_of(st.none(), st.integers(2, 30)),
    share=st.floats(0, 1),
)
@example(sizes=[2, 5, 0, 5, 5, 5], positions=None, window=21, share=0.0)
@example(sizes=[2, 5, 0, 5, 5, 5], positions=6, window=21, share=0.0)
def test_spans(sizes: list[int], positions: int | None, window: int | None, share: float) -> None:
    ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
    tokens = Tokens(
        tuple(range(len(sizes))), tuple(end - size for end, size in zip(ends, sizes, strict=True)), tuple(ends)
    )
    first = round(share * len(sizes)) if window is None else 0
    found = list(spans(tokens, first, positions, window))
    assert [at for one in found for at in range(one.first, one.stop)] == list(range(first, len(sizes)))
    for number, one in enumerate(found):
        assert 0 <= one.begin <= one.first < one.stop <= len(sizes)
        assert positions is None or one.stop - one.begin <= positions
        room = positions is None or positions >= len(sizes)
        if window is None and room:
            assert (one.begin, one.stop) == (0, len(sizes))
        if window is not None and room and number:
            before = tokens.ends[one.first - 1] - tokens.begins[one.begin]
            assert one.begin == 0 or before >= window / 2
            # Snapped to the last border that leaves so much.
            assert tokens.ends[one.first - 1] - tokens.begins[one.begin] - window / 2 < 1 + max(sizes)
        if window is not None:
            assert tokens.ends[one.stop - 1] - tokens.begins[one.begin] <= window or one.stop == one.first + 1


GENERATIONS: tuple[Continuation, ...] = (
    generation("Question: What is", 40),
    generation("", 25),
    generation("The", 60, temperature=1.0, seed=5),
    generation("The", 60, temperature=1.0, seed=6),
    generation("In the year 1923 there were 4,567 people in the village", 33, temperature=0.7, seed=5),
    generation("The", 50, ("eep", "leep", "leeps")),
    generation("def add(", 50, ("e", "\n")),
    generation("She wrote a letter to", 0),
)


def written_alone(subject: TokenModel, request: Continuation, noise: Any) -> tuple[bytes, str]:
    """The definition: the whole row anew for every token, the answer cut once it is complete."""
    ids = list(subject.tokenizer.encode([request.context])[0].ids)
    data, made, ended = b"", 0, False
    while made < request.max_bytes and not ended:
        row = logprobs(subject, ids)[-1]
        if request.temperature > 0:
            row = row / request.temperature + noise(request.seed, made, len(row))
        token = int(row.argmax())
        ended = token in subject.ends
        ids, made = [*ids, token], made + 1
        data += b"" if ended else subject.tokenizer.spell(token)
    ends = sorted((data.find(stop) + len(stop), -len(stop)) for stop in request.stop if stop in data)
    if ends and ends[0][0] <= request.max_bytes:
        return data[: ends[0][0] + ends[0][1]], "stop"
    return data[: request.max_bytes], "eos" if ended and len(data) < request.max_bytes else "length"


@pytest.mark.parametrize("batch_tokens", [1, 60, 100_000])
def test_generations_equal_those_computed_alone(subject: TokenModel, batch_tokens: int) -> None:
    from bltkit.eval.subjects.token_writing import _gumbel

    other = TokenModel(**{**vars(subject), "batch_tokens": batch_tokens})
    found = answers(other, GENERATIONS)
    assert found == [Written(*written_alone(subject, request, _gumbel)) for request in GENERATIONS]  # type: ignore[arg-type]
    assert found[2] != found[3], "another seed, another sample"
    assert {one.finish for one in found} == {"eos", "stop", "length"}, "the case needs all three"


def test_learned_positions_are_those_of_the_row_alone(subject: TokenModel) -> None:
    """Where a model knows absolute positions, padding on the left must not move a row."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from bltkit.eval.subjects.token_writing import _gumbel

    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=256, n_embd=32, n_layer=2, n_head=4)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    other = TokenModel(**{**vars(subject), "model": model})
    assert answers(other, GENERATIONS) == [Written(*written_alone(other, one, _gumbel)) for one in GENERATIONS]  # type: ignore[arg-type]
    alone = [answers(other, [request])[0] for request in ASKED[:6]]
    assert [one.logprob for one in answers(other, ASKED[:6])] == pytest.approx([one.logprob for one in alone], abs=1e-4)


def test_samples_follow_the_models_distribution(subject: TokenModel) -> None:
    ids = subject.tokenizer.encode([b"The"])[0].ids
    expected = logprobs(subject, ids)[-1].exp()
    # One byte each: of a token's own bytes the first.
    found = answers(subject, [generation("The", 1, temperature=1.0, seed=seed) for seed in range(2000)])
    shares = torch.zeros(257)
    for token, mass in enumerate(expected):
        spelled = b"" if token in subject.ends else subject.tokenizer.spell(token)
        shares[spelled[0] if spelled else 256] += float(mass)
    counts = torch.zeros(257)
    for one in found:
        counts[one.data[0] if one.data else 256] += 1
    tolerance = 5 * (shares * (1 - shares) / 2000).sqrt() + 2e-3
    assert bool(((counts / 2000 - shares).abs() <= tolerance).all())


def test_a_row_ends_with_eos_and_where_positions_end(tmp_path: Path) -> None:
    subject = TokenModel.load(f"token:{tiny_llama(tmp_path / 'llama', positions=24)}")
    (full,) = answers(subject, [generation(TEXTS[1], 400)])
    assert full.finish == "length" and 0 < len(full.data) < 400
    assert full.cut > 0
    token = int(logprobs(subject, subject.tokenizer.encode([b"The"])[0].ids)[-1].argmax())
    ending = TokenModel(**{**vars(subject), "ends": frozenset({token})})
    assert answers(ending, [generation("The", 10)]) == [Written(b"", "eos")]


def test_other_tokenizers_write_through_their_decoder(subject: TokenModel) -> None:
    """What is decoded piece by piece is what is decoded at once, behind the prompt's last tokens."""
    from bltkit.eval.subjects.token_text import _Decoder

    prompt, text = "Über die Brücke führt", " eine schmale Straße. ".encode() + b"\xe2\x82"
    tokenizer = subject.tokenizer
    writer = _Decoder(tokenizer, tokenizer.encode([prompt.encode()])[0].ids)
    ids = tokenizer.encode([" eine schmale Straße. €".encode()])[0].ids
    assert tokenizer.spell(ids[-1]) == "€".encode()[-1:], "the case needs a character of several tokens"
    pieces = [writer.feed(token) for token in ids[:-1]]
    assert b"".join(pieces) == text[:-2]
    assert writer.end() == "\ufffd".encode()


def test_sentencepiece_like_tokenizers(tmp_path: Path) -> None:
    """A prefix space, and a decoder that drops it: the continuation keeps its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from bltkit.eval.subjects.token_text import TextTokenizer

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, min_frequency=1, special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    text = b"the sky is blue"
    tokens = tokenizer.encode([text])[0]
    assert tokens.ends[-1] == len(text) and tokens.begins[0] == 0
    split = next(at for at, end in enumerate(tokens.ends) if end > len(b"the sky"))
    writer = tokenizer.writer(tokens.ids[:split])
    assert b"".join(map(writer.feed, tokens.ids[split:])) + writer.end() == b" is blue"


def test_tokens_tile_the_text_whatever_a_tokenizer_trims() -> None:
    from tokenizers import processors

    from bltkit.eval.subjects.token_text import TextTokenizer

    theirs = tiny_tokenizer()
    theirs.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokens = TextTokenizer(theirs).encode([b"the sky is  blue "])[0]
    assert (0, *tokens.ends[:-1]) == tokens.begins


def test_the_fingerprint_names_what_decides_the_answers(tmp_path: Path) -> None:
    one = tiny_llama(tmp_path / "one")
    prints = [
        TokenModel.load(f"token:{path}", context=context).fingerprint
        for path, context in (
            (one, None),
            (tiny_llama(tmp_path / "same"), None),
            (tiny_llama(tmp_path / "weights", seed=1), None),
            (one, 64),
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    (one / "tokenizer.json").write_text((one / "tokenizer.json").read_text() + " ")
    assert TokenModel.load(f"token:{one}").fingerprint != prints[0]


def test_mistakes(tmp_path: Path, subject: TokenModel) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        TokenModel.load("token:nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a causal model of transformers with its tokenizer"):
        TokenModel.load(f"token:{tmp_path / 'empty'}")
    with pytest.raises(ValueError, match="context = 1"):
        TokenModel.load(f"token:{tmp_path / 'empty'}", context=1)
