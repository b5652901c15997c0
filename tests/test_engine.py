"""The decoding loop: stop strings, limits, how a generation ends, and its ledger."""

import time
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import vocab
from bltkit.generate import Chunk, Sampling, Session, Stats, StopStrings, generate
from bltkit.model import EntropyConfig, EntropyModel
from bltkit.patching import parse_rule
from tests import tiny
from tests.test_session import example, start

texts = st.lists(st.sampled_from(b"ab"), max_size=20).map(bytes)
stops = st.lists(st.lists(st.sampled_from(b"ab"), min_size=1, max_size=4).map(bytes), max_size=3).map(tuple)


def cut_at_stop(text: bytes, stop: Iterable[bytes]) -> bytes:
    """The text up to the stop string that is complete first, the longest if several are."""
    for end in range(len(text) + 1):
        complete = [len(s) for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(complete)]
    return text


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


def run(session: Session, sampling: Sampling, max_bytes: int, stop: tuple[bytes, ...] = ()) -> tuple[bytes, Chunk]:
    *chunks, last = generate(session, sampling, max_bytes, stop)
    assert all(chunk.data and chunk.finish is None and chunk.stats is None for chunk in chunks)
    assert last.stats is not None and last.finish is not None
    return b"".join(chunk.data for chunk in chunks) + last.data, last


def stats_of(chunk: Chunk) -> Stats:
    assert chunk.stats is not None
    return chunk.stats


@settings(max_examples=12)
@given(st.integers(0, 999), st.integers(0, 11), st.integers(1, 2))
def test_stop_strings_cut_what_would_have_come(seed: int, at: int, length: int) -> None:
    sampling = Sampling(temperature=1, seed=seed)
    session = start(example("stride:k=3")).extend([vocab.BOS])
    full, _ = run(session, sampling, 12)
    stop = full[at : at + length]
    if stop:  # EOS may have come before
        found, last = run(session, sampling, 12, (stop,))
        assert found == cut_at_stop(full, (stop,))
        assert last.finish == "stop"
        assert stats_of(last).bytes == len(found)


def test_held_back_bytes_come_out_at_the_end() -> None:
    session = start(example("byte"))
    full, _ = run(session, Sampling(seed=1), 6)
    never = full[-3:] + b"never"
    found, last = run(session, Sampling(seed=1), 6, (never,))
    assert found == full and last.data == full[-3:] and last.finish == "length"


def test_the_empty_prompt_is_bos_alone() -> None:
    session = start(example("stride:k=2"))
    found, last = run(session, Sampling(seed=4), 10)
    assert (found, last.finish) == (run(session.extend([vocab.BOS]), Sampling(seed=4), 10)[0], "length")
    assert len(found) == 10


def test_eos_ends_and_is_no_byte() -> None:
    case = example("byte")
    with torch.no_grad():
        case.model.decoder.head.weight.zero_()  # all ids alike, and EOS is the lowest that may be picked
    found, last = run(start(case), Sampling(temperature=0), 10)
    assert found == b"" and last.finish == "eos" and stats_of(last).bytes == 0


def test_mistakes_are_named_before_the_first_byte() -> None:
    session = start(example("byte"))
    with pytest.raises(ValueError, match="max_bytes = -1"):
        generate(session, Sampling(), -1)
    with pytest.raises(ValueError, match="stop"):
        generate(session, Sampling(), 5, (b"x", b""))
    assert run(session, Sampling(), 0)[0] == b""


def test_ledger() -> None:
    """Every number from the shapes, by hand."""
    case = example("stride:k=4")
    model = case.model.float()
    config = EntropyConfig(width=8, layers=1, heads=2, ffn_width=12)
    scorer = tiny.fill(EntropyModel(config), 0)
    # A threshold that nothing reaches, cut every 4 bytes.
    rule = parse_rule("threshold:threshold=100.0,max_patch_bytes=4")
    session = Session.start(model, scorer, rule).extend(vocab.encode(b"abcd"))
    _, last = run(session, Sampling(temperature=1), 9)
    stats = stats_of(last)
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
    entropy_kv = sum(2 * seen * 8 for seen in range(5, 13)) if hasattr(session.scorer_state, "num_bytes") else 0
    assert stats.kv_gb_read == pytest.approx(4 * (local + 2 * (2 + 3) * 32 + entropy_kv) / 1e9)


def test_the_clock_stands_still_while_the_consumer_works() -> None:
    chunks = []
    for chunk in generate(start(example("byte")), Sampling(seed=2), 3):
        chunks.append(chunk)
        time.sleep(0.2)
    assert len(chunks) == 4 and stats_of(chunks[-1]).seconds < 0.4
