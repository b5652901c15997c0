"""A BLT under evaluation: its answers against full recomputation, one text at a time."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bltkit
from bltkit.checkpoint import Bundle
from bltkit.eval.requests import Coded, Compression, Continuation, Likelihood, Request, Scored, Written, likelihood
from bltkit.eval.subjects import ByteModel, open_subject
from bltkit.vocab import BOS, NEVER_EMITTED, OFFSET
from tests.shared import SHARED
from tests.tiny import Case, cases

letters = st.text("ab \n", max_size=8).map(str.encode)
likelihoods = st.builds(Likelihood, letters, letters.filter(len))


def subject_of(case: Case, context: int = 100, **options: int) -> ByteModel:
    scorer = case.scorer
    return ByteModel(Bundle(case.model, scorer, case.rule, {}), "tiny", "0" * 64, context, **options)


def alone(case: Case, context: bytes, continuation: bytes) -> tuple[float, bool]:
    """By one uncached pass over the whole text."""
    ids = [BOS, *(byte + OFFSET for byte in context + continuation)]
    logits = case.run(ids[:-1])[0][len(context) :]
    targets = torch.tensor(ids[len(context) + 1 :])
    found = logits.log_softmax(-1).gather(-1, targets[:, None]).sum()
    logits[:, list(NEVER_EMITTED)] = -math.inf
    return float(found), bool((logits.argmax(-1) == targets).all())


@settings(max_examples=50)
@given(cases(), st.lists(likelihoods, max_size=6), st.integers(1, 60))
def test_likelihoods_are_those_of_a_full_recomputation(case: Case, asked: list[Likelihood], batch: int) -> None:
    answers = dict(subject_of(case, batch_bytes=batch).answers(asked))
    assert sorted(answers) == list(range(len(asked)))
    for at, request in enumerate(asked):
        answer = answers[at]
        assert isinstance(answer, Scored)
        logprob, greedy = alone(case, request.context, request.continuation)
        assert answer.logprob == pytest.approx(logprob, abs=1e-8)
        assert (answer.greedy, answer.cut) == (greedy, 0)


@settings(max_examples=50)
@given(cases(), likelihoods, st.integers(1, 14))
def test_a_context_too_long_is_cut_on_its_left(case: Case, request: Likelihood, room: int) -> None:
    ((_, answer),) = subject_of(case, room).answers([request])
    assert isinstance(answer, Scored)
    size = len(request.context) + len(request.continuation)
    assert answer.cut == min(len(request.context), max(0, size - room))
    logprob, _ = alone(case, request.context[answer.cut :], request.continuation)
    assert answer.logprob == pytest.approx(logprob, abs=1e-8)


@settings(max_examples=30)
@given(cases(), st.lists(st.tuples(letters, st.integers(0, 6), st.sampled_from([0.0, 1.0])), max_size=5), st.data())
def test_what_is_written_does_not_depend_on_what_else_is(
    case: Case, asked: list[tuple[bytes, int, float]], data: st.DataObject
) -> None:
    requests = [Continuation(text, size, (b"a",), heat, seed) for seed, (text, size, heat) in enumerate(asked)]
    rows, batch = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 50))
    together = dict(subject_of(case, rows=rows, batch_bytes=batch).answers(requests))
    for at, request in enumerate(requests):
        ((_, single),) = subject_of(case).answers([request])
        assert together[at] == single
        assert isinstance(single, Written) and b"a" not in single.data and len(single.data) <= request.max_bytes


def tiny_requests() -> list[Request]:
    """Of all kinds, contexts shared and not."""
    text = "The old man went down to the sea and saw that the boats were gone. "
    found: list[Request] = [likelihood(text * 2, f" {word}") for word in ("He", "He wept.", "Zq", "The boats came")]
    found += [likelihood(text[:cut], " the sea") for cut in (0, 5, 30, 60)]
    found += [
        Compression(text.encode() * 3),
        Continuation(text.encode(), 20),
        Continuation(text.encode() * 2, 12, (b".",)),
    ]
    return found


def close(one: object, other: object) -> bool:
    """Equal but for rounding."""
    if isinstance(one, Scored) and isinstance(other, Scored):
        return abs(one.logprob - other.logprob) < 1e-4 and replace(one, logprob=0) == replace(other, logprob=0)
    if isinstance(one, Coded) and isinstance(other, Coded):
        return abs(one.nats - other.nats) < 1e-4 and one.num_bytes == other.num_bytes
    return one == other


@pytest.mark.parametrize("options", [{"batch_bytes": 64, "rows": 1}, {"batch_bytes": 100_000, "rows": 50}])
def test_the_embedded_model_says_the_same_in_any_batch_and_order(options: dict[str, int]) -> None:
    requests = tiny_requests()
    subject = open_subject("bltkit:tiny")
    assert isinstance(subject, ByteModel)
    expected = dict(subject.answers(requests))
    other = replace(subject, **options)
    backwards = dict(other.answers(requests[::-1]))
    for at, answer in expected.items():
        assert close(answer, backwards[len(requests) - 1 - at])


def test_the_embedded_models_likelihoods_are_those_of_its_logits() -> None:
    lm = bltkit.load("bltkit:tiny")
    requests = [one for one in tiny_requests() if isinstance(one, Likelihood)]
    assert _furthest(lm, requests) < 1e-4


@pytest.mark.skipif(SHARED is None, reason="needs the evaluation sets beside the repository")
@pytest.mark.parametrize("kind", ["hellaswag", "mmlu", "blimp", "winogrande"])
def test_likelihoods_of_published_items_are_those_of_the_logits(kind: str) -> None:
    from bltkit.eval.dataset_source import Place
    from bltkit.eval.tasks import TASKS
    from tests.eval_fakes import items_of

    assert SHARED is not None
    task = TASKS[kind]()
    items = items_of(task, Place.of([SHARED / "data/eval"]), 3)
    requests = [one for item in items for one in task.requests(item) if isinstance(one, Likelihood)]
    assert _furthest(bltkit.load("bltkit:tiny"), requests) < 1e-4


def _furthest(lm: bltkit.ByteLM, requests: Sequence[Likelihood]) -> float:
    subject = open_subject("bltkit:tiny")
    answers = dict(subject.answers(requests))
    found = []
    for at, request in enumerate(requests):
        answer = answers[at]
        assert isinstance(answer, Scored)
        context = request.context[answer.cut :]
        ids = [BOS, *(byte + OFFSET for byte in context + request.continuation)]
        logprobs = lm.logits(ids[:-1])[len(context) :].log_softmax(-1)
        expected = logprobs.gather(-1, torch.tensor(ids[len(context) + 1 :])[:, None]).double().sum()
        found.append(abs(answer.logprob - float(expected)))
    return max(found)


def test_whole_texts_are_scored_as_by_score() -> None:
    text = "Call me Ishmael. Some years ago, never mind how long precisely. " * 3
    ((_, answer),) = open_subject("bltkit:tiny", context=64).answers([Compression(text.encode())])
    assert isinstance(answer, Coded)
    expected = bltkit.load("bltkit:tiny").score(text, context=64)
    assert (answer.nats, answer.num_bytes) == (pytest.approx(expected.nll_nats), len(text))


def test_fingerprints_tell_settings_apart() -> None:
    found = [open_subject("bltkit:tiny", context=context).fingerprint for context in (None, 64, 64)]
    assert found[0] != found[1] == found[2]


def test_an_entropy_model_is_refused(tmp_path: pytest.TempPathFactory) -> None:
    lm = bltkit.load("bltkit:tiny")
    with pytest.raises(ValueError, match="holds no BLT"):
        ByteModel(Bundle(None, lm.scorer, lm.rule, {}), "entropy", "", 64).start()


def test_a_strategy_is_for_byte_models() -> None:
    from bltkit.generate import parse_strategy

    with pytest.raises(ValueError, match="leave it out"):
        open_subject("token:anything", strategy=parse_strategy("speculative"))
    with pytest.raises(ValueError, match="diffusion"):
        open_subject("bltkit:tiny", strategy=parse_strategy("diffusion"))
