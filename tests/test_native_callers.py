"""The native backend in evaluation and benchmarks, and its greedy bytes of held-out prompts."""

from typing import Any, cast

import pytest
import torch

from bltkit.bench import RepeatLimits, bench_subject, decode
from bltkit.checkpoint import load_bundle, resolve_model
from bltkit.eval.requests import Continuation, Likelihood
from bltkit.eval.subjects import open_subject
from bltkit.generate import Sampling, Session
from bltkit.generate.sampling import choose
from bltkit.native import on_backend
from bltkit.vocab import BOS, encode
from tests.natively import needs_library

pytestmark = pytest.mark.usefixtures("_library")

PROMPTS, PROMPT_BYTES, NEW_BYTES = 64, 96, 24
TIE = 1e-3
"""Difference of logits, or of a score from its threshold, that fp32 may decide either way."""


@pytest.fixture(scope="module")
def _library() -> None:
    needs_library()


def test_an_evaluation_answers_as_an_eager_one() -> None:
    requests: list[Any] = [
        Likelihood(b"The cat sat on the", b" mat."),
        Likelihood(b"The cat sat on the", b" of and."),
        Continuation(b"Once upon a time", 12, ()),
    ]
    answers = [dict(open_subject("bltkit:tiny", backend=backend).answers(requests)) for backend in ("eager", "native")]
    eager, native = answers
    for at in (0, 1):
        assert native[at].logprob == pytest.approx(eager[at].logprob, abs=1e-3)
    assert native[2] == eager[2]


def test_a_token_model_has_no_backend() -> None:
    with pytest.raises(ValueError, match="backend = 'native' is for byte models"):
        open_subject("token:somewhere", backend="native")


def test_a_benchmark_names_its_backend() -> None:
    bundle = load_bundle(resolve_model("bltkit:tiny"), weights="fp32")
    subject = bench_subject.subject_of("bltkit:tiny", bundle)
    limits = RepeatLimits(repeats=1, seconds=0.0)
    (row,) = decode(subject, [64], num_bytes=8, backend="native", limits=limits)
    ledger: Any = row.to_json()["ledger"]
    assert ledger["backend"] == "native"
    assert all(row.to_json()["parts"][part]["ms_per_step"] > 0 for part in ("entropy", "encoder", "latent", "decoder"))


@pytest.mark.slow
def test_greedy_bytes_of_held_out_prompts() -> None:
    """64 stretches of Python's own documentation, which the model has not been trained on: native and eager choose the
    same bytes, but where fp32 alone decides."""
    bundle = load_bundle(resolve_model("bltkit:tiny"), weights="fp32")
    text = bench_subject.benchmark_text(PROMPTS * 4000)
    models = [(bundle.model, bundle.scorer), on_backend("native", bundle.model, bundle.scorer)]
    scorer, rule = cast(Any, bundle.scorer), cast(Any, bundle.rule)
    greedy, ties = [Sampling(temperature=0)], 0
    for at in range(PROMPTS):
        prompt = [BOS, *encode(text[4000 * at : 4000 * at + PROMPT_BYTES]).tolist()[1:]]
        eager, native = (Session.start(model, scorer, bundle.rule).extend(prompt) for model, scorer in models)
        for _ in range(NEW_BYTES):
            ours, theirs = (choose(greedy, each.logits[:, None], [0]).ids[0][0] for each in (native, eager))
            best = eager.logits[0].topk(2).values
            patches = [each.latents[0].positions for each in (native, eager)]
            if patches[0] != patches[1]:
                scores = scorer.scores(torch.tensor([prompt]))[0]
                assert float((scores - rule.threshold).abs().min()) < TIE, at
                ties += 1
                break
            if ours != theirs:
                assert float(best[0] - best[1]) < TIE, (at, ours, theirs)
                ties += 1
                break
            torch.testing.assert_close(native.logits, eager.logits, atol=5e-3, rtol=1e-3)
            eager, native = eager.extend([theirs]), native.extend([theirs])
            prompt.append(theirs)
    print(f"{ties} of {PROMPTS} prompts ended at a tie")
    assert ties <= 2
