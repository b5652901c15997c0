"""The decoding loop: stop strings, limits, how a generation ends, log-probabilities, and its ledger.

That bytes are the right ones, whatever the batch and the strategy, is in test_batch.py and test_strategies.py.
"""

import math
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import vocab
from bltkit.api import ByteLM
from bltkit.checkpoint import Bundle
from bltkit.generate import Chunk, Request, Sampling, Session, Speculative, StopStrings, generate, generate_rows
from bltkit.model import EntropyConfig, EntropyModel
from bltkit.patching import parse_rule, patch
from tests import tiny
from tests.rows import GREEDY, Decoded, Uncached, by, counted, cut_at_stop, example, start, stats_of

texts = st.lists(st.sampled_from(b"ab"), max_size=20).map(bytes)
stops = st.lists(st.lists(st.sampled_from(b"ab"), min_size=1, max_size=4).map(bytes), max_size=3).map(tuple)


@given(texts, stops, st.lists(st.integers(1, 5), min_size=20, max_size=20))
def test_streamed_output_is_the_cut_output(text: bytes, stop: tuple[bytes, ...], sizes: list[int]) -> None:
    state, streamed, at = StopStrings(stop), b"", 0
    for size in sizes:
        before = state
        data, state = state.feed(text[at : at + size])
        assert before.feed(text[at : at + size]) == (data, state)
        streamed, at = streamed + data, at + size
        # No more is held back than what may still become a stop string.
        assert not state.held or any(s.startswith(state.held) and s != state.held for s in stop)
    assert streamed + state.held == cut_at_stop(text, stop)
    assert state.found == any(s in text for s in stop)


def run(session: Session, request: Request) -> tuple[bytes, Chunk]:
    chunks = list(generate(session, request))
    return Decoded.of(chunks).data, chunks[-1]


@settings(max_examples=12)
@given(st.integers(0, 999), st.integers(0, 11), st.integers(1, 2))
def test_stop_strings_cut_what_would_have_come(seed: int, at: int, length: int) -> None:
    sampling = Sampling(temperature=1, seed=seed)
    session = start(example("stride:k=3")).extend([vocab.BOS])
    full, _ = run(session, Request(sampling, 12))
    stop = full[at : at + length]
    if stop:  # EOS may have come before
        found, last = run(session, Request(sampling, 12, (stop,)))
        assert found == cut_at_stop(full, (stop,))
        assert last.finish == "stop"


def test_held_back_bytes_come_out_at_the_end() -> None:
    session, sampling = start(example("byte")), Sampling(seed=1)
    full, _ = run(session, Request(sampling, 6))
    found, last = run(session, Request(sampling, 6, (full[-3:] + b"never",)))
    assert found == full and last.data == full[-3:] and last.finish == "length"


@pytest.mark.parametrize("draft", [None, 3])
def test_logprobs_come_with_their_bytes(draft: int | None) -> None:
    """Also of bytes that were held back, and in every chunk as many as bytes; what is cut has none."""
    case, sampling = example("stride:k=3"), Sampling(temperature=1, seed=3)
    session, uncached = start(case).extend([vocab.BOS]), Uncached(case)
    wanted = uncached.decode([vocab.BOS], Request(sampling, 12))
    strategy = None if draft is None else Speculative(draft=draft)
    for stop in ((), (wanted.data[2:5] + b"never",), (wanted.data[6:8],), (wanted.data[-3:] + b"never",)):
        request = Request(sampling, 12, stop, logprobs=True)
        chunks = list(generate(session, by(strategy, request)))
        assert all(len(chunk.logprobs) == len(chunk.data) for chunk in chunks)
        Decoded.of(chunks).assert_equals(uncached.decode([vocab.BOS], request), request)
        assert all(value < 0 for chunk in chunks for value in chunk.logprobs)


def test_logprobs_are_of_the_model_itself() -> None:
    """At temperature 1 and before any filter, over what can be emitted, whatever the sampling."""
    case = example("byte")
    request = Request(Sampling(temperature=0.3, top_k=3, repetition_penalty=2.0), 5, logprobs=True)
    (chunk, *_), ids = list(generate(start(case), request)), [vocab.BOS]
    logits = case.run(ids)[0][-1].index_fill(0, torch.tensor(vocab.NEVER_EMITTED), -torch.inf)
    expected = float(logits.log_softmax(-1)[chunk.data[0] + vocab.OFFSET])
    assert chunk.logprobs[0] == pytest.approx(expected, abs=1e-10)


def test_a_penalty_counts_the_prompt() -> None:
    """Exactly its last ids, for the first byte, too: of prompts whose last id but one would come again."""
    case = example("byte")
    prompts = torch.tensor([[vocab.BOS, first, last] for first in range(4, 260) for last in range(4, 12)])
    with torch.no_grad():
        logits = case.model(prompts, patch(case.rule, prompts, documents=False))[:, -1]
    again = prompts[logits.argmax(-1) == prompts[:, 1]].tolist()
    assert again
    for prompt in again[:3]:
        for window in (1, 2):
            request = Request(GREEDY.replace(repetition_penalty=1e6, repetition_window=window), 4)
            found, _ = run(start(case).extend(prompt), request)
            assert found == Uncached(case).decode(prompt, request).data
            assert (found[0] + vocab.OFFSET == prompt[1]) == (window == 1)


def test_the_empty_prompt_is_bos_alone() -> None:
    session, request = start(example("stride:k=2")), Request(Sampling(seed=4), 10)
    found, last = run(session, request)
    assert (found, last.finish) == (run(session.extend([vocab.BOS]), request)[0], "length")
    assert len(found) == 10


def test_the_session_stays_as_it_was() -> None:
    case = example("stride:k=2")
    session = start(case).extend(vocab.encode(b"abc"))
    assert run(session, Request(GREEDY, 9))[0] == run(session, Request(GREEDY, 9))[0]
    Uncached(case).assert_row(session, vocab.encode(b"abc").tolist())


def test_bytes_come_as_they_are_made() -> None:
    """A chunk a round, and none that is empty but perhaps the last."""
    chunks = generate(start(example("byte")), Request(Sampling(seed=1), 6))
    assert isinstance(chunks, Iterator)
    assert [len(chunk.data) for chunk in chunks] == [1] * 6


def test_eos_ends_and_is_no_byte() -> None:
    case = example("byte")
    with torch.no_grad():
        case.model.decoder.head.weight.zero_()  # all ids alike, and EOS is the lowest that may be picked
    found, last = run(start(case), Request(GREEDY, 10))
    assert found == b"" and last.finish == "eos"
    assert last.eos_logprob is None
    _, last = run(start(case), Request(GREEDY, 10, logprobs=True, top_logprobs=1))
    assert (last.logprobs, last.eos_logprob) == ((), pytest.approx(-math.log(257)))
    assert last.eos_top_logprobs == ((vocab.EOS, last.eos_logprob),)


def test_mistakes_are_named_before_the_first_byte() -> None:
    with pytest.raises(ValueError, match="max_bytes = -1"):
        Request(max_bytes=-1)
    with pytest.raises(ValueError, match="stop"):
        Request(stop=(b"x", b""))
    assert run(start(example("byte")), Request(max_bytes=0))[0] == b""
    lm = language_model()
    for options, named in (
        ({"max_bytes": -1}, "max_bytes"),
        ({"temperatur": 1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"strategy": "speculate"}, "speculative"),
        ({"draft": 4}, "draft"),
        ({"strategy": "speculative", "draft": 0}, "draft"),
    ):
        with pytest.raises(ValueError, match=named):
            lm.generate(b"a", **options)
    with pytest.raises(ValueError, match="num = 0"):
        lm.samples(b"a", 0)


def language_model() -> ByteLM:
    case = example("stride:k=3")
    return ByteLM(Bundle(case.model, None, case.rule))


@pytest.mark.parametrize("strategy", ["ar", "speculative"])
def test_samples_share_their_prompt(strategy: str) -> None:
    """Sample i is what `seed` + i gives alone; the prompt is read once for all."""
    lm, prompt = language_model(), b"a prompt of some length" * 3
    options = {"max_bytes": 7, "temperature": 1.0, "strategy": strategy, "logprobs": True}
    session = lm.session(b"")
    with counted(session) as calls:
        found = lm.samples(prompt, 4, seed=10, **options)
    # One pass for the prompt, one for each byte but the last: the first comes from the prompt's.
    assert calls["decoder"] == 1 + found[0].stats.decoder_passes
    if strategy == "ar":
        assert calls["decoder"] == 7
    assert len({one.data for one in found}) == 4
    for i, one in enumerate(found):
        alone = lm.generate(prompt, seed=10 + i, **options)
        assert (one.data, one.finish) == (alone.data, alone.finish)
        assert one.logprobs == pytest.approx(alone.logprobs, abs=1e-10)
        chunks = list(lm.stream(prompt, seed=10 + i, **options))
        assert b"".join(chunk.data for chunk in chunks) == one.data


def test_only_valid_utf8() -> None:
    """The prompt may end within a character: its rest comes first."""
    lm, prompt = language_model(), "a€".encode()[:-1]
    for seed in range(5):
        found = lm.generate(prompt, max_bytes=12, temperature=2.0, seed=seed, valid_utf8=True)
        assert (prompt + found.data).decode() and len(found.data) <= 12
    with pytest.raises(UnicodeDecodeError):
        (prompt + lm.generate(prompt, max_bytes=12, temperature=2.0).data).decode()


def test_rows_of_one_call_have_ledgers_of_their_own() -> None:
    """Passes count as long as a row ran, whoever else they served."""
    session = start(example("byte"), 2).extend([[vocab.BOS], [vocab.BOS]])
    passes = {}
    for row, chunk in generate_rows(session, [Request(GREEDY, 3), Request(GREEDY, 8)]):
        if chunk.stats is not None:
            passes[row] = chunk.stats.decoder_passes
    assert passes == {0: 2, 1: 7}


def test_ledger() -> None:
    """Every number from the shapes, by hand."""
    case = example("stride:k=4")
    model = case.model.float()
    config = EntropyConfig(width=8, layers=1, heads=2, ffn_width=12)
    scorer = tiny.fill(EntropyModel(config), 0)
    # A threshold that nothing reaches, cut every 4 bytes.
    rule = parse_rule("threshold:threshold=100.0,max_patch_bytes=4")
    session = Session.start(model, scorer, rule).extend(vocab.encode(b"abcd"))
    _, last = run(session, Request(Sampling(temperature=1), 9))
    stats = stats_of([last])
    assert (stats.bytes, stats.decoder_passes, stats.encoder_passes, stats.entropy_passes) == (9, 8, 8, 8)
    assert stats.global_passes == 2  # after bytes 8 and 12
    assert (stats.drafted, stats.accepted) == (0, 0)
    assert stats.bytes_per_second == pytest.approx(9 / stats.seconds)

    def layer(width: int, ffn: int) -> int:
        return 4 * width**2 + 3 * width * ffn + 2 * width

    encoder_cross = decoder_cross = 4 * 16**2 + 2 * 16
    encoder = layer(16, 16) + 16 * 32 + encoder_cross
    latent = layer(32, 16)
    decoder = layer(16, 16) + decoder_cross + 32 * 32 + 16 + 16 * 260
    assert stats.paper_gb == pytest.approx(2 * (8 * decoder + 2 * (encoder + latent)) / 1e9)

    keys_values = 2 * 16**2 + 16 + 32 * 32  # of the decoder's, made with each latent
    each_byte = layer(16, 16) + decoder - keys_values + (1 + 6) * 16
    each_patch = encoder - layer(16, 16) + latent + keys_values
    entropy = layer(8, 12) + 8 + 8 * 260 + 8
    assert stats.weight_gb_read == pytest.approx(4 * (8 * (each_byte + entropy) + 2 * each_patch) / 1e9)

    # Encoder and decoder have windows of 8: 7 keys and values at most are kept; the latents' 2 and then 3.
    local = sum(2 * 2 * min(seen, 7) * 16 for seen in range(5, 13))
    entropy_kv = sum(2 * seen * 8 for seen in range(5, 13))
    assert stats.kv_gb_read == pytest.approx(4 * (local + 2 * (2 + 3) * 32 + entropy_kv) / 1e9)


def test_the_clock_stands_still_while_the_consumer_works() -> None:
    chunks = []
    for chunk in generate(start(example("byte")), Request(Sampling(seed=2), 3)):
        chunks.append(chunk)
        time.sleep(0.2)
    assert len(chunks) == 3 and stats_of(chunks).seconds < 0.4
