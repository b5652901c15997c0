"""A session equals the uncached model for every way of cutting a row into calls, and is a value."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bltkit import vocab
from bltkit.generate import Sampling, Session, generate
from bltkit.generate import session as session_module
from bltkit.model import EntropyModel
from bltkit.model.cache import MIN_CAPACITY
from bltkit.patching import BpeOracleRule, parse_rule
from tests import tiny
from tests.shared import SHARED
from tests.tiny import Case

TOLERANCE = 1e-10
TIE = 1e-4  # fp32 may decide otherwise only where float64 finds threshold margin or top-two gap below this
GREEDY = Sampling(temperature=0)


def start(case: Case) -> Session:
    return Session.start(case.model, case.scorer, case.rule)


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[slice]:
    """Consecutive stretches of a row of `length`."""
    steps: list[slice] = []
    at = 0
    largest = draw(st.sampled_from([1, 4, length]))
    while at < length:
        steps.append(slice(at, at + draw(st.integers(1, min(largest, length - at)))))
        at = steps[-1].stop
    return steps


def assert_equals(session: Session, expected: tuple[Tensor, Tensor]) -> None:
    """The logits of the uncached row at the session's position, the same answer for the byte behind it, and as
    many patches closed."""
    (logits, starts), at = expected, session.position
    assert session.opens == bool(starts[at])
    assert session.latent.position == int(starts[1 : at + 1].sum())
    torch.testing.assert_close(session.logits, logits[at - 1], atol=TOLERANCE, rtol=0)


@settings(max_examples=50)
@given(tiny.cases(), st.data())
def test_any_cut_equals_uncached(case: Case, data: st.DataObject) -> None:
    session = start(case)
    whole = case.run(case.ids)
    for piece in data.draw(cuts(len(case.ids))):
        session = session.extend(case.ids[piece])
        assert session.position == piece.stop
        if case.config.document_masks and case.ids[piece.stop : piece.stop + 1] == [vocab.BOS]:
            # The whole row knows here that the next byte opens a patch; the row so far does not.
            assert_equals(session, case.run(case.ids[: piece.stop]))
        else:
            assert_equals(session, whole)


@settings(max_examples=15)
@given(tiny.cases(), st.integers(0, 24), tiny.rows(12), tiny.rows(12))
def test_forks_are_independent(case: Case, at: int, left: list[int], right: list[int]) -> None:
    prompt, left, right = case.ids[: at + 1], left[1:], right[1:]
    base = start(case).extend(prompt)
    logits, opens = base.logits.clone(), base.opens
    one = other = base
    for step in range(max(len(left), len(right))):  # in turns: both write behind the same cached positions
        one = one.extend(left[step : step + 1])
        other = other.extend(right[step : step + 1])
    assert_equals(one, case.run(prompt + left))
    assert_equals(other, case.run(prompt + right))
    assert_equals(base.extend(left), case.run(prompt + left))
    assert torch.equal(base.logits, logits)
    assert (base.opens, base.position) == (opens, len(prompt))


@settings(max_examples=12)
@given(tiny.cases(), st.data())
def test_greedy_bytes_equal_uncached(case: Case, data: st.DataObject) -> None:
    session = start(case)
    for piece in data.draw(cuts(len(case.ids))):
        session = session.extend(case.ids[piece])
    ids = list(case.ids)
    for _ in range(8):
        ids.append(GREEDY.pick(case.run(ids)[0][-1], len(ids)))
        if ids[-1] == vocab.EOS:
            break
    found = b"".join(chunk.data for chunk in generate(session, GREEDY, 8))
    assert found == vocab.decode(ids[len(case.ids) :])


@settings(max_examples=12)
@given(tiny.cases())
def test_one_global_pass_for_every_patch_that_closes(case: Case) -> None:
    case = replace(case, ids=[value for at, value in enumerate(case.ids) if not at or value != vocab.BOS])
    session = start(case)
    for value in case.ids:
        session = session.extend([value])
    closed = int(case.run(case.ids)[1][1:].sum())
    size = len(case.ids)
    assert session.passes.latent == closed
    assert (session.passes.encoder, session.passes.decoder, session.passes.ids) == (size, size, size)
    assert session.passes.entropy == (size if case.scorer else 0)
    assert start(case).extend(case.ids).passes.latent == 1


@given(tiny.cases())
@settings(max_examples=12)
def test_long_prompts_are_read_in_chunks(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session_module, "CHUNK", 5)
        session = start(case).extend(torch.tensor(case.ids))
    assert session.passes.encoder >= -(-len(case.ids) // 5)
    assert_equals(session, case.run(case.ids))


def test_a_long_row_keeps_no_memory_of_its_prefill() -> None:
    case = example("stride:k=2.5")
    session = start(case).extend(vocab.encode(b"some text" * 500))
    assert session.patch_kv is not None
    kept = [session.logits, *(state for part in session.open_patch for state in part)]
    kept += [x for pair in session.patch_kv for x in pair]
    assert all(x.untyped_storage().nbytes() == x.numel() * x.element_size() for x in kept)
    # Windows of 8 keys: buffers of the least size, not of the prompt's.
    windowed = [kv for cache in (session.encoder, session.decoder) for kv in cache.layers]
    assert {kv.keys.untyped_storage().nbytes() for kv in windowed} == {MIN_CAPACITY * 16 * 8}


def test_no_ids_change_nothing() -> None:
    session = start(example("byte"))
    assert session.extend([]) is session


def test_the_scorer_is_not_run_for_a_rule_without_scores() -> None:
    class Refuses(EntropyModel):
        def extend_scores(self, *_: Any) -> Any:
            raise AssertionError("the scorer was run")

    case = example("space")
    scorer = Refuses(tiny.EntropyConfig(width=8, layers=1, heads=2, ffn_width=8))
    session = Session.start(case.model, scorer, case.rule).extend(vocab.encode(b"a b"))
    assert session.passes.entropy == 0
    assert_equals(session, case.run(vocab.encode(b"a b").tolist()))


def test_mistakes_are_named() -> None:
    case = example("byte")
    with pytest.raises(ValueError, match="cannot stream"):
        Session.start(case.model, None, BpeOracleRule(tokenizer="tokenizer.json"))
    with pytest.raises(ValueError, match="no scorer"):
        Session.start(case.model, None, parse_rule("threshold:threshold=1.0"))
    with pytest.raises(ValueError, match="begins with BOS"):
        start(case).extend(vocab.encode(b"text", bos=False))
    with pytest.raises(ValueError, match="empty session"):
        _ = start(case).logits


@settings(max_examples=10, derandomize=True)
@given(tiny.cases(dtype=torch.float32))
def test_fp32_differs_only_on_ties(case: Case) -> None:
    """Greedy bytes of the cached and the uncached model, up to the first that differs."""
    session, ids, ties = start(case).extend(case.ids), list(case.ids), 0
    for _ in range(12):
        cached = GREEDY.pick(session.logits, len(ids))
        if cached != GREEDY.pick(case.run(ids)[0][-1], len(ids)):
            assert nearest_tie(case, ids) < TIE
            ties += 1
            break
        ids.append(cached)
        session = session.extend([cached])
    print(f"{len(ids) - len(case.ids)} bytes, {ties} ties")


def nearest_tie(case: Case, ids: list[int]) -> float:
    """The smallest margin, in float64, by which a patch of the row or its next byte is decided."""
    exact = case.in_float64()
    best = Sampling(temperature=1).probabilities(exact.run(ids)[0][-1]).log().topk(2).values
    margins = [float(best[0] - best[1])]
    if exact.scorer is not None:
        scores = tiny.scores_of(exact.scorer, torch.tensor([ids]))[0].double()
        for name, values in (("threshold", scores), ("rise", scores.diff())):
            if hasattr(case.rule, name) and len(values):
                margins.append(float((values - getattr(case.rule, name)).abs().min()))
    return min(margins)


def example(rule: str) -> Case:
    """A small model with a rule that needs no scorer."""
    stack = tiny.StackConfig(width=16, layers=1, heads=2, ffn_width=16, window=8)
    config = tiny.BltConfig(
        encoder=stack,
        latent=stack.replace(width=32, window=None),
        decoder=stack,
        ngrams=tiny.NgramConfig(buckets=31),
    )
    return Case(config, None, parse_rule(rule).model_dump(), [vocab.BOS])


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
