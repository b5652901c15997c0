"""A session equals the uncached model for every way of cutting a row into calls, keeping and taking back; and is a
value. Of several rows: test_batch.py."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import vocab
from bltkit.generate import Request, Sampling, Session, generate
from bltkit.generate import session as session_module
from bltkit.generate.sampling import _gumbel
from bltkit.model import EntropyModel
from bltkit.patching import BpeOracleRule, parse_rule
from tests import tiny
from tests.rows import GREEDY, NEWLINE, TOLERANCE, Uncached, cuts, example, one_pass, resets, start, storage_bytes
from tests.shared import SHARED
from tests.tiny import Case

TIE = 1e-4  # fp32 may decide otherwise only where float64 finds threshold margin or top-two gap below this


@settings(max_examples=10)
@given(tiny.cases(), st.data())
def test_any_cut_equals_uncached(case: Case, data: st.DataObject) -> None:
    session = start(case)
    whole, starts = case.run(case.ids)
    for piece in data.draw(cuts(len(case.ids))):
        session, at = session.extend(case.ids[piece]), piece.stop
        assert session.positions == (at,)
        if case.config.document_masks and case.ids[at : at + 1] == [vocab.BOS]:
            # The whole row knows here that the next byte opens a patch; the row so far does not.
            Uncached(case).assert_row(session, case.ids[:at])
        else:
            torch.testing.assert_close(session.logits[0], whole[at - 1], atol=TOLERANCE, rtol=0)
            assert session.opens == (bool(starts[at]),)
            assert session.latents[0].positions == (int(starts[1 : at + 1].sum()),)


@settings(max_examples=6)
@given(tiny.cases(), st.integers(0, 24), tiny.rows(12), tiny.rows(12))
def test_forks_are_independent(case: Case, at: int, left: list[int], right: list[int]) -> None:
    prompt, left, right, uncached = case.ids[: at + 1], left[1:], right[1:], Uncached(case)
    base = start(case).extend(prompt)
    logits, opens = base.logits.clone(), base.opens
    one = other = base
    third = base.fork()
    for step in range(max(len(left), len(right))):  # in turns: both write behind the same cached positions
        one = one.extend(left[step : step + 1])
        other = other.extend(right[step : step + 1])
    uncached.assert_row(one, prompt + left)
    uncached.assert_row(other, prompt + right)
    uncached.assert_row(third.extend(right), prompt + right)
    uncached.assert_row(base.extend(left), prompt + left)
    assert torch.equal(base.logits, logits)
    assert (base.opens, base.positions) == (opens, (len(prompt),))


@settings(max_examples=8)
@given(tiny.cases(), st.integers(0, 23), tiny.rows(6), st.data())
def test_any_part_of_a_pass_can_be_kept(case: Case, at: int, more: list[int], data: st.DataObject) -> None:
    """Several parts of one pass, too: they are sessions of their own, whatever becomes of the others."""
    before, uncached = case.ids[: at + 1], Uncached(case)
    piece = one_pass(case, case.ids[at + 1 :] or [vocab.EOS])
    session = start(case).extend(before)
    reading = session.read([piece])
    assert reading.logits.shape == (1, len(piece), vocab.VOCAB_SIZE)
    for n, (opens, logits) in enumerate(zip(reading.opens[0], reading.logits[0], strict=True), 1):
        expected, starts = uncached.run((*before, *piece[:n]))
        torch.testing.assert_close(logits, expected[-1], atol=TOLERANCE, rtol=0)
        assert opens == bool(starts[-1])
    kept = {n: reading.keep([n]) for n in range(len(piece) + 1)}
    order = data.draw(st.permutations(sorted(kept)))
    for n in order:
        further = kept[n].extend(more[1:])
        uncached.assert_row(further, [*before, *piece[:n], *more[1:]])
    for n in order:
        uncached.assert_row(kept[n], [*before, *piece[:n]])
    uncached.assert_row(session.extend(more[1:]), [*before, *more[1:]])


@settings(max_examples=8)
@given(tiny.cases(), st.data())
def test_what_is_taken_back_never_was(case: Case, data: st.DataObject) -> None:
    """Any number of ids, also of several passes, twice in a row, all of them; and then another way on."""
    uncached, ids, session = Uncached(case), list(case.ids), start(case)
    for piece in data.draw(cuts(len(ids))):
        session = session.extend(ids[piece])
    for _ in range(2):
        count = data.draw(st.one_of(st.integers(0, min(3, len(ids))), st.integers(0, len(ids))))
        before, now = session, session.rollback(count)
        ids = ids[: len(ids) - count]
        uncached.assert_row(now, ids)
        more = data.draw(tiny.rows(5))
        more = more if not ids else more[1:]
        session = now.extend(more)
        uncached.assert_row(now, ids)
        uncached.assert_row(before, before.texts[0].tail(before.positions[0]))
        ids += more
        uncached.assert_row(session, ids)


@pytest.mark.parametrize("value", [vocab.BOS, NEWLINE])
def test_a_beginning_can_be_taken_back(value: int) -> None:
    """What a document or a line makes forgotten is there again."""
    scorer = tiny.EntropyConfig(width=8, layers=1, heads=2, ffn_width=12, document_masks=True, reset_at_newline=True)
    ids = vocab.encode(b"abcdefghij").tolist()
    case = replace(example("byte"), scorer_config=scorer, rule_fields={"kind": "threshold", "threshold": 0.5}, ids=ids)
    uncached, session = Uncached(case), start(case).extend(ids)
    assert value in resets(case)
    for undone in (session.read([[value, 20]]).keep([0]), session.extend([value, 20]).rollback(2)):
        uncached.assert_row(undone, ids)
        uncached.assert_row(undone.extend([20, 21]), [*ids, 20, 21])


@settings(max_examples=5)
@given(tiny.cases(), st.data())
def test_greedy_bytes_equal_uncached(case: Case, data: st.DataObject) -> None:
    session = start(case)
    for piece in data.draw(cuts(len(case.ids))):
        session = session.extend(case.ids[piece])
    request = Request(GREEDY, 8)
    found = b"".join(chunk.data for chunk in generate(session, request))
    assert found == Uncached(case).decode(case.ids, request).data


@settings(max_examples=5)
@given(tiny.cases())
def test_one_global_pass_for_every_patch_that_closes(case: Case) -> None:
    forgetting = resets(case) | {vocab.BOS}
    case = replace(case, ids=[value for at, value in enumerate(case.ids) if not at or value not in forgetting])
    session = start(case)
    for value in case.ids:
        session = session.extend([value])
    closed = int(case.run(case.ids)[1][1:].sum())
    size = len(case.ids)
    assert session.passes.latent == closed
    assert (session.passes.encoder, session.passes.decoder, session.passes.ids) == (size, size, size)
    assert session.passes.entropy == (size if case.scorer else 0)
    assert start(case).extend(case.ids).passes.latent == 1


@settings(max_examples=5)
@given(tiny.cases())
def test_long_prompts_are_read_in_chunks(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session_module, "CHUNK", 5)
        session = start(case).extend(torch.tensor(case.ids))
    assert session.passes.encoder >= -(-len(case.ids) // 5)
    Uncached(case).assert_row(session, case.ids)


@pytest.mark.parametrize(("window", "drafts"), [(2, 5), (8, 0), (100, 5)])
def test_a_row_of_any_length_keeps_the_same_memory(window: int, drafts: int) -> None:
    """All tensors behind a session but the global cache, which alone grows; also where most of a pass is rejected."""
    case, peaks, latents = example("stride:k=4", window), [], []
    session = start(case).extend([vocab.BOS, *[50] * 400])
    with torch.inference_mode():
        for _ in range(2):
            sizes = []
            for at in range(105):
                session = session.read([[vocab.OFFSET + at] * (1 + drafts)]).keep([1])
                sizes.append(storage_bytes(session))
            peaks.append(max(sizes))
            latents.append(storage_bytes(session.latents, without=()))
    # The fullest storage may meet a patch that closes, or one that does not; keeping the keys and values of one byte
    # in four would make more.
    assert peaks[1] <= 1.05 * peaks[0]
    # 32 numbers of 8 bytes for key and for value of each patch; no more than twice what is needed is held.
    needed = [2 * 32 * 8 * patches for patches in (506 // 4, 611 // 4)]
    assert all(own <= held <= 2.2 * own for own, held in zip(needed, latents, strict=True))
    Uncached(case).assert_row(session, session.texts[0].tail(611))


def test_a_long_row_keeps_no_memory_of_its_prefill() -> None:
    case = example("stride:k=2.5")
    text = vocab.encode(b"some text " * 450)
    short, long = start(case).extend(text[:101]), start(case).extend(text)
    assert storage_bytes(long) <= storage_bytes(short)


def test_a_windowed_global_cache_does_not_grow_either() -> None:
    case = example("stride:k=2")
    case = replace(case, config=case.config.replace(latent=case.config.latent.replace(window=5)))
    session, sizes = start(case).extend([vocab.BOS]), []
    for at in range(260):
        session = session.extend([vocab.OFFSET + at % 256])
        sizes.append(storage_bytes(session.latents, without=()))
    assert max(sizes[200:]) <= max(sizes[:150])


def test_a_part_that_comes_too_late_is_refused() -> None:
    """What a pass wrote stays only until the next one behind the same place; never is something else handed out."""
    session = start(example("byte")).extend([vocab.BOS])
    reading = session.read([[10, 11, 12]])
    reading.keep([1]).extend([13])
    Uncached(example("byte")).assert_row(reading.keep([1]), [vocab.BOS, 10])
    other = session.read([[20, 21, 22]])
    with pytest.raises(AssertionError, match="another pass"):
        reading.keep([3])
    Uncached(example("byte")).assert_row(other.keep([2]), [vocab.BOS, 20, 21])


def test_no_ids_change_nothing() -> None:
    session = start(example("byte"))
    assert session.extend([]) is session
    session = session.extend([vocab.BOS])
    assert session.rollback(0) is session


def test_the_scorer_is_not_run_for_a_rule_without_scores() -> None:
    class Refuses(EntropyModel):
        def extend_scores(self, *_: Any) -> Any:
            raise AssertionError("the scorer was run")

    case = example("space")
    scorer = Refuses(tiny.EntropyConfig(width=8, layers=1, heads=2, ffn_width=8))
    session = Session.start(case.model, scorer, case.rule).extend(vocab.encode(b"a b"))
    assert session.passes.entropy == 0
    Uncached(case).assert_row(session, vocab.encode(b"a b").tolist())


def test_mistakes_are_named() -> None:
    case = example("byte")
    with pytest.raises(ValueError, match="cannot stream"):
        Session.start(case.model, None, BpeOracleRule(tokenizer="tokenizer.json"))
    with pytest.raises(ValueError, match="no scorer"):
        Session.start(case.model, None, parse_rule("threshold:threshold=1.0"))
    with pytest.raises(ValueError, match="begins with BOS"):
        start(case).extend(vocab.encode(b"text", bos=False))
    with pytest.raises(ValueError, match="empty row"):
        _ = start(case).logits
    session = start(case).extend(vocab.encode(b"text"))
    with pytest.raises(ValueError, match=r"rollback = \[6\]"):
        session.rollback(6)
    with pytest.raises(ValueError, match=r"rollback = \[-1\]"):
        session.rollback(-1)
    for counts in ([3], [-1], [1, 1]):
        with pytest.raises(ValueError, match="can be kept"):
            session.read([[10, 11]]).keep(counts)


@settings(max_examples=4, derandomize=True)
@given(tiny.cases(dtype=torch.float32))
def test_fp32_differs_only_on_ties(case: Case) -> None:
    """Greedy bytes of the cached and the uncached model, up to the first that differs."""
    session, ids, ties = start(case).extend(case.ids), list(case.ids), 0
    for _ in range(12):
        cached = GREEDY.pick(session.logits[0], len(ids))
        if cached != GREEDY.pick(case.run(ids)[0][-1], len(ids)):
            assert nearest_tie(case, ids) < TIE
            ties += 1
            break
        ids.append(cached)
        session = session.extend([cached])
    print(f"{len(ids) - len(case.ids)} bytes, {ties} ties")


def nearest_tie(case: Case, ids: list[int], sampling: Sampling = GREEDY) -> float:
    """The smallest margin, in float64, by which a patch of the row or its next byte is decided."""
    exact = case.in_float64()
    tempered = sampling.replace(temperature=sampling.temperature or 1.0)
    scores = tempered.probabilities(exact.run(ids)[0][-1]).log()
    if sampling.temperature:
        scores = scores + torch.from_numpy(_gumbel(sampling.seed, len(ids), 1, len(scores))[0])
    best = scores.topk(2).values
    margins = [float(best[0] - best[1])]
    if exact.scorer is not None:
        scores = tiny.scores_of(exact.scorer, torch.tensor([ids]))[0].double()
        for name, values in (("threshold", scores), ("rise", scores.diff())):
            if hasattr(case.rule, name) and len(values):
                margins.append(float((values - getattr(case.rule, name)).abs().min()))
    return min(margins)


@pytest.mark.skipif(SHARED is None, reason="needs the golden files beside the repository")
def test_golden_greedy_continuation(tmp_path: Any) -> None:
    """The published architecture's own greedy bytes, with EOS an id like others."""
    import numpy as np
    from safetensors.numpy import save_file

    from bltkit.checkpoint import load_bundle

    assert SHARED is not None
    golden = SHARED / "golden"
    (tmp_path / "config.json").write_text((golden / "config_k2.json").read_text())
    with np.load(golden / "weights_k2.npz") as weights:
        save_file(
            {name: weights[name].astype(np.float32) for name in weights},
            tmp_path / "model.safetensors",
            metadata={"format": "pt"},
        )
    bundle = load_bundle(tmp_path)
    expected = json.loads((golden / "golden.json").read_text())["greedy"]
    assert bundle.model is not None and bundle.rule is not None
    session = Session.start(bundle.model, bundle.scorer, bundle.rule).extend(expected["prompt_ids"])
    found: list[int] = []
    for _ in expected["new_ids"]:
        found.append(int(session.logits.argmax()))
        session = session.extend(found[-1:])
    assert found == expected["new_ids"]
