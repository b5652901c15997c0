"""Likelihoods of given ids: read in any pieces, they are those of `blt eval`; and cache sizes by shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import vocab
from bltkit.checkpoint import Bundle
from bltkit.eval.requests import Likelihood
from bltkit.eval.subjects.byte_model import ByteModel
from bltkit.generate import SequenceMemory, Session, read_scored
from tests import tiny
from tests.rows import TOLERANCE, Uncached, cuts, example, start
from tests.tiny import Case


@settings(max_examples=8)
@given(tiny.cases(), st.data())
def test_ids_are_scored_in_any_pieces(case: Case, data: st.DataObject) -> None:
    """Against one forward pass over the whole row."""
    logits, _ = Uncached(case).run(tuple(case.ids))
    wanted = logits.double().log_softmax(-1)
    session, logprobs, tops = start(case), list[float](), list[tuple[tuple[int, float], ...]]()
    for piece in data.draw(cuts(len(case.ids))):
        session, found = read_scored(session, case.ids[piece], 4)
        logprobs += found.logprobs
        tops += found.top_logprobs
    Uncached(case).assert_row(session, case.ids)
    values = torch.tensor(logprobs, dtype=torch.float64)
    torch.testing.assert_close(values, wanted[range(len(case.ids) - 1), case.ids[1:]], atol=TOLERANCE, rtol=0)
    for at, named in enumerate(tops):
        emitted = wanted[at].index_fill(0, torch.tensor(vocab.NEVER_EMITTED), float("-inf"))
        best = emitted.topk(4).values
        torch.testing.assert_close(torch.tensor([v for _, v in named]).double(), best, atol=1e-6, rtol=0)


def test_they_are_those_of_the_evaluation() -> None:
    case = example("stride:k=3")
    case.model.float()
    context, text = b"a context, and ", b"what follows it"
    model = ByteModel(Bundle(case.model, None, case.rule, {}), "case", "0", context=100)
    ((_, scored),) = model.answers([Likelihood(context, text)])
    session = Session.start(case.model, None, case.rule).extend(vocab.encode(context))
    _, found = read_scored(session, vocab.encode(text, bos=False).tolist(), 1)
    assert scored.logprob == pytest.approx(sum(found.logprobs), abs=1e-6)
    greedy = all(own == tops[0][1] for own, tops in zip(found.logprobs, found.top_logprobs, strict=True))
    assert greedy == scored.greedy


def test_nothing_is_scored_in_front_of_bos() -> None:
    session = start(example("byte"))
    same, found = read_scored(session, [])
    assert same is session and found.logprobs == ()
    session, found = read_scored(session, [vocab.BOS], 3)
    assert session.positions == (1,) and found.logprobs == found.top_logprobs == ()
    _, found = read_scored(session, [100], 3)
    assert len(found.logprobs) == len(found.top_logprobs) == 1 and len(found.top_logprobs[0]) == 3
    with pytest.raises(ValueError, match="session of 2 rows"):
        read_scored(session.select([0, 0]), [100])
    with torch.no_grad():
        session.model.decoder.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits are not finite"):
        read_scored(session, [100, 101])


@settings(max_examples=15)
@given(tiny.cases())
def test_cache_bytes_follow_from_the_shape(case: Case) -> None:
    """Of documents that nothing makes the model or the scorer forget."""
    ids = [vocab.BOS, *(value for value in case.ids if value not in (vocab.BOS, vocab.OFFSET + 10))]
    session = start(case).extend(ids)
    held = SequenceMemory.of(case.model, case.scorer if session.scorer_state is not None else None)
    patches = session.latents[0].positions[0]
    assert held.held(len(ids), patches) == sum(cache.num_bytes for cache in session.caches)
    assert held.held(len(ids), patches) <= session.cache_bytes
    assert session.select([0, 0]).cache_bytes >= 2 * held.held(len(ids), patches)
    lanes = start(case).extend(ids).entered(session)
    assert lanes.encoder._storage is not None
    assert lanes.cache_bytes <= lanes.encoder._storage.lanes * held.reserved(len(ids), patches)
    assert 2 * held.held(len(ids), patches) <= 2 * held.reserved(len(ids), patches)
