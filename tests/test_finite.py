"""Scores that are not finite never become patches, wherever scores are made or read."""

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bltkit import api, cli
from bltkit.annotate.batched_scoring import entropies_of
from bltkit.checkpoint import Bundle, load_bundle, save_bundle
from bltkit.checkpoint.locate import resolve_model
from bltkit.config import dump_toml
from bltkit.data import Document
from bltkit.data.sources.shards import AnnotatedDocument, ShardFile, write_shard
from bltkit.diagnostics.health import check
from bltkit.generate.session import Session
from bltkit.model import BoundaryConfig, BoundaryModel
from bltkit.patching import ask, extend, parse_rule, patch, start_stream
from bltkit.patching.calibrate import calibrate
from bltkit.patching.patched import patch_text
from bltkit.views.compare import compare_bundle
from bltkit.vocab import encode

TEXT = b"The quick brown fox jumps over the lazy dog."
RULES = ["threshold:threshold=1.0", "rise:rise=0.1", "both:threshold=1.0,rise=0.1", "bpe"]
BAD = [math.nan, math.inf, -math.inf]
REFUSED = "scores are not finite"


def damaged(name: str, change: Callable[[torch.Tensor], Any]) -> Bundle:
    """The embedded model; the one weight of its entropy model whose name ends in `name` is changed."""
    bundle = load_bundle(resolve_model("bltkit:tiny"))
    assert isinstance(bundle.scorer, torch.nn.Module)
    weight = next(value for key, value in bundle.scorer.named_parameters() if key.endswith(name))
    with torch.no_grad():
        change(weight)
    return bundle


@cache
def nan_head() -> Bundle:
    return damaged("head.weight", lambda weight: weight[104].fill_(math.nan))


@cache
def rare_byte() -> Bundle:
    """Sound for every text without the letter q."""
    return damaged("embed.weight", lambda weight: weight[ord("q") + 4].fill_(math.nan))


@cache
def too_large() -> Bundle:
    """Every weight is a finite number, no score is."""
    return damaged("head.weight", lambda weight: weight.fill_(3e38))


@cache
def infinite_head() -> Bundle:
    return damaged("head.weight", lambda weight: weight[104].fill_(math.inf))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("at", [0, 1, 17, 43])
def test_a_batch_is_refused(rule: str, bad: float, at: int) -> None:
    ids = encode(TEXT)[None].repeat(2, 1)
    scores = torch.rand(ids.shape)
    scores[1, at] = bad
    model = "boundary" if rule == "bpe" else "entropy"
    with pytest.raises(ValueError, match=rf"the {model} model's {REFUSED} \(.* after {at} bytes of row 1\)"):
        patch(parse_rule(rule), ids, scores)


def test_only_a_rows_own_scores_count() -> None:
    ids, scores = encode(TEXT)[None], torch.rand(1, len(TEXT) + 1)
    expected = patch(parse_rule(RULES[0]), ids, scores, torch.tensor([20])).starts
    scores[:, 20:] = math.nan
    assert torch.equal(patch(parse_rule(RULES[0]), ids, scores, torch.tensor([20])).starts, expected)
    with pytest.raises(ValueError, match=REFUSED):
        patch(parse_rule(RULES[0]), ids, scores, torch.tensor([21]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", BAD)
def test_a_stream_is_refused(rule: str, bad: float) -> None:
    parsed = parse_rule(rule)
    stream = extend(parsed, start_stream(parsed), encode(TEXT)[None, :5], torch.rand(1, 5))[1]
    scores = torch.rand(1, 4)
    scores[0, 2] = bad
    ids = encode(TEXT)[None, 5:9]
    with pytest.raises(ValueError, match=f"{REFUSED}.*after 7 bytes"):
        extend(parsed, stream, ids, scores)
    answers = ask(parsed, stream, ids, scores)
    with pytest.raises(ValueError, match=REFUSED):
        answers.read()
    assert answers.read([2]) == [answers.opens[0, :2].tolist()], "what lies behind the kept ids does not matter"
    extend(parsed, stream, ids, scores, torch.tensor([2]))


def test_a_session_is_refused_where_it_meets_one() -> None:
    bundle = rare_byte()
    assert bundle.model is not None and bundle.rule is not None
    session = Session.start(bundle.model, bundle.scorer, bundle.rule).extend(encode(b"The "))
    session.extend([int(value) for value in encode(b"lazy dog")[1:]])
    with pytest.raises(ValueError, match=rf"{REFUSED} \(nan after 5 bytes\)"):
        session.extend([int(value) for value in encode(b"quick")[1:]])


def calls(bundle: Bundle) -> dict[str, Callable[[], object]]:
    lm = api.ByteLM(bundle)
    assert bundle.scorer is not None and bundle.rule is not None
    ids = encode(TEXT)
    scorer, rule = bundle.scorer, bundle.rule
    return {
        "score": lambda: lm.score(TEXT),
        "score of the entropy model": lambda: api.ByteLM(dataclasses.replace(bundle, model=None)).score(TEXT),
        "generate": lambda: lm.generate(TEXT, max_bytes=2),
        "speculative": lambda: lm.generate(TEXT, max_bytes=2, strategy="speculative"),
        "samples": lambda: lm.samples(TEXT, 2, max_bytes=2),
        "logits": lambda: lm.logits(ids),
        "patches": lambda: lm.patches(TEXT),
        "patches by another rule": lambda: lm.with_patching("space").patches(TEXT),
        "compare": lambda: compare_bundle(TEXT, bundle),
        "calibrate": lambda: calibrate(rule, [scorer.scores(ids[None])[0]], [ids], 4.0),
        "annotate": lambda: entropies_of(scorer, [b"sound", TEXT]),
    }


@pytest.mark.parametrize("name", list(calls(load_bundle(resolve_model("bltkit:tiny")))))
@pytest.mark.parametrize("bundle", [nan_head, rare_byte, too_large, infinite_head])
def test_python_refuses(bundle: Callable[[], Bundle], name: str) -> None:
    words = "not finite" if name != "score of the entropy model" else "finite"
    with pytest.raises(ValueError, match=words):
        calls(bundle())[name]()


def test_a_rule_that_reads_no_scores_needs_no_sound_scorer() -> None:
    api.ByteLM(nan_head()).with_patching("space").generate(TEXT, max_bytes=2)


def test_fp16_overflow_is_refused() -> None:
    bundle = damaged("head.weight", lambda weight: weight.mul_(3e4))
    scorer = bundle.scorer
    assert scorer is not None
    scores = scorer.half().scores(encode(TEXT)[None])
    assert not bool(scores.isfinite().all())
    with pytest.raises(ValueError, match=REFUSED):
        patch(parse_rule(RULES[0]), encode(TEXT)[None], scores)


def test_a_boundary_model_is_named() -> None:
    scorer = BoundaryModel(BoundaryConfig(width=16, layers=1, heads=2)).reset_parameters()
    with torch.no_grad():
        scorer.head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="the boundary model's scores are not finite"):
        patch_text(TEXT, parse_rule("bpe"), scorer.scores)


@pytest.mark.parametrize("bad", BAD)
def test_stored_entropies_are_read_with_the_same_care(tmp_path: Path, bad: float) -> None:
    pytest.importorskip("pyarrow")
    entropies = np.ones(6, np.float32)
    entropies[3] = bad
    write_shard(tmp_path / "a", [AnnotatedDocument(Document("x", b"hello"), entropies, None, None)], "fp32")
    with pytest.raises(ValueError, match=r"stored in .*, document x, .*at position 3"):
        list(ShardFile(tmp_path / "a").documents())


@pytest.mark.parametrize(
    "text", ["threshold:threshold=nan", "threshold:threshold=inf", "rise:rise=-inf", "stride:k=nan"]
)
def test_stored_thresholds_are_finite(text: str) -> None:
    with pytest.raises(ValueError, match="finite number"):
        parse_rule(text)


def test_check_has_a_finding_of_its_own() -> None:
    def problems(bundle: Bundle) -> list[str]:
        found = check(bundle, [b"The quick brown fox. " * 400]).findings
        return [finding.name for finding in found if finding.status == "problem"]

    assert problems(nan_head()) == problems(infinite_head()) == ["weights"]
    assert problems(too_large()) == ["scores"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A damaged checkpoint, a text, and a training config that takes the checkpoint as its patcher."""
    place = tmp_path_factory.mktemp("damaged")
    save_bundle(place / "model", nan_head())
    (place / "text.txt").write_bytes(TEXT * 40)
    config: dict[str, Any] = {
        "model": {"kind": "blt", "preset": "tiny"},
        "patching": {"model": str(place / "model")},
        "data": {"sources": [str(place / "text.txt")], "row_bytes": 64, "batch_rows": 1},
        "trainer": {"max_steps": 1},
    }
    (place / "train.toml").write_text(dump_toml(config))
    return place


@pytest.mark.parametrize(
    "command",
    [
        "score --model {0}/model hello",
        "generate --model {0}/model hello",
        "generate --model {0}/model hello --strategy speculative",
        "patch --model {0}/model hello",
        "patch --model {0}/model hello --stats",
        "patch --model {0}/model hello --compare",
        "patch --model {0}/model hello --rule space --json",
        "calibrate --model {0}/model --files {0}/text.txt --patch-bytes 4",
        "annotate {0}/train.toml --entropy {0}/model --out {0}/annotated",
        "annotate {0}/train.toml --entropy {0}/model --rule space --out {0}/annotated-2",
        "train {0}/train.toml --out {0}/run",
        "train {0}/train.toml --out {0}/run-2 patching.where=workers data.workers=1",
        "eval --model {0}/model --tasks bpb:{0}/text.txt",
        "study entropy --model {0}/model --text a={0}/text.txt --bytes 512 --out {0}/study",
    ],
)
def test_every_verb_says_so_in_one_line(place: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    status = cli.main(command.format(place).split())
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("blt: ")]
    assert (status, captured.out) == (2, ""), captured
    assert len(lines) == 1 and f"the entropy model's {REFUSED}" in lines[0], captured.err
