"""`blt check`: each known failure is planted and found under its name, and a sane checkpoint raises none of them."""

import dataclasses
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bltkit.checkpoint import Bundle
from bltkit.diagnostics import health
from bltkit.diagnostics.alignment import probe_alignment
from bltkit.diagnostics.health import Health, check, default_documents
from bltkit.diagnostics.ngram import ngram_nats
from bltkit.model import (
    Blt,
    BltConfig,
    BoundaryConfig,
    BoundaryModel,
    CnnConfig,
    CnnEntropy,
    EntropyConfig,
    EntropyModel,
    NgramConfig,
    StackConfig,
)
from bltkit.patches import Patches
from bltkit.patching import ThresholdRule, parse_rule, patch
from bltkit.vocab import encode

_CONFIG = EntropyConfig(width=32, layers=1, heads=2, ffn_width=64, window=8)


def _words(seed: int, num_bytes: int) -> bytes:
    """Random words of four letters, each said three times: a copy over five bytes, which no order-2 model can see."""
    draw = random.Random(seed)
    words = ("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=4)) + " " for _ in range(num_bytes // 15 + 1))
    return "".join(3 * word for word in words).encode()[:num_bytes]


_DOCUMENTS = (_words(2, 6000), _words(3, 6000))


@cache
def _trained_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = EntropyModel(_CONFIG).reset_parameters(generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = torch.tensor(list(_words(1, 100_000))).unfold(0, 63, 63) + 4
    rows = F.pad(rows, (1, 0), value=1)
    for _ in range(100):
        ids = rows[torch.randint(len(rows), (16,), generator=generator)]
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def _scorer(config: EntropyConfig = _CONFIG, kind: type[EntropyModel] = EntropyModel) -> EntropyModel:
    scorer = kind(config)
    scorer.load_state_dict(_trained_weights())
    return scorer


def _blt_config(
    k: int = 2, layers: int = 1, *, all_layers: bool = False, masks: bool = True, window: int | None = 6
) -> BltConfig:
    local = StackConfig(width=16, layers=layers, heads=2, ffn_width=24, window=window)
    return BltConfig(
        encoder=local,
        latent=StackConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=24),
        decoder=local.replace(layers=2),
        cross_attn_k=k,
        ngrams=NgramConfig(sizes=(3, 4), buckets=61),
        encoder_cross_attn_all_layers=all_layers,
        document_masks=masks,
    )


def _blt(config: BltConfig | None = None) -> Blt:
    return Blt(config or _blt_config()).reset_parameters(torch.Generator().manual_seed(0))


def _sane(**changes: object) -> Bundle:
    bundle = Bundle(_blt(), _scorer(), ThresholdRule(threshold=1.70001), {"row_bytes": 512})
    return dataclasses.replace(bundle, **changes)


def _status(found: Health) -> dict[str, str]:
    return {finding.name: finding.status for finding in found.findings}


def _bad(bundle: Bundle, documents: Sequence[bytes] = _DOCUMENTS) -> dict[str, str]:
    """Findings that are not ok."""
    return {name: status for name, status in _status(check(bundle, documents)).items() if status != "ok"}


def test_a_sane_checkpoint_raises_nothing() -> None:
    bundle = _sane()
    before = {name: weight.clone() for name, weight in bundle.model.state_dict().items()}
    first = check(bundle, _DOCUMENTS)
    assert {finding.name for finding in first.findings} == {
        "weights",
        "future-leak",
        "byte-response",
        "encoder-pooling",
        "decoder-read",
        "scores",
        "scorer-leak",
        "patch-size",
        "borders-too-frequent",
        "borders-too-sparse",
        "threshold-grid",
        "lost-window",
        "entropy-drift",
        "window-effect",
        "entropy-model-vs-ngram",
    }
    assert {finding.name: finding for finding in first.findings if finding.status != "ok"} == {}
    assert first.healthy
    measured = next(finding.value for finding in first.findings if finding.name == "borders-too-sparse")
    assert _bad(_sane(record={"row_bytes": 512, "mean_patch_bytes": 1.1 * measured})) == {}
    assert check(bundle, _DOCUMENTS) == first, "the check changed the model"
    torch.testing.assert_close(bundle.model.state_dict(), before, rtol=0, atol=0)
    assert not bundle.model.latent._forward_hooks


def test_threshold_zero_is_too_frequent() -> None:
    bad = _bad(_sane(rule=ThresholdRule(threshold=0.00001)))
    assert bad == {"borders-too-frequent": "problem"}


@pytest.mark.parametrize("rule", ["threshold:threshold=50.1", "threshold:threshold=50.1,max_patch_bytes=4"])
def test_a_huge_threshold_is_too_sparse_even_under_a_maximum(rule: str) -> None:
    assert _bad(_sane(rule=parse_rule(rule))) == {"borders-too-sparse": "problem"}


@pytest.mark.parametrize("rule", ["byte", "stride:k=40.0", "space"])
def test_rules_that_read_no_scores_are_as_frequent_as_asked(rule: str) -> None:
    assert _bad(_sane(rule=parse_rule(rule))) == {}


def test_a_small_maximum_is_as_frequent_as_asked() -> None:
    assert _bad(_sane(rule=ThresholdRule(threshold=1.70001, max_patch_bytes=1))) == {}


def test_a_patch_size_unlike_the_record_is_a_warning() -> None:
    bundle = _sane(record={"row_bytes": 512, "mean_patch_bytes": 9.0})
    assert _bad(bundle) == {"recorded-patch-size": "warning"}
    assert check(bundle, _DOCUMENTS).healthy


def test_a_threshold_that_fp16_can_hold_is_a_warning() -> None:
    assert _bad(_sane(rule=ThresholdRule(threshold=1.75))) == {"threshold-grid": "warning"}


def test_a_decoder_that_reads_the_open_patch_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patches, "byte_latent", property(lambda patches: patches.byte_patch))
    found = check(_sane(), _DOCUMENTS)
    assert {name for name, status in _status(found).items() if status != "ok"} == {"future-leak", "decoder-read"}
    assert next(finding for finding in found.findings if finding.name == "decoder-read").value < 0
    assert not found.healthy


def test_a_decoder_that_lags_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Patches.byte_latent.func
    monkeypatch.setattr(Patches, "byte_latent", property(lambda patches: (right(patches) - 1).clamp_min(0)))
    assert _bad(_sane()) == {"decoder-read": "problem"}


@pytest.mark.parametrize(("shift", "names"), [(1, {"encoder-pooling"}), (-1, {"encoder-pooling", "future-leak"})])
def test_an_encoder_that_pools_into_a_neighbour_is_found(
    shift: int, names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = _sane()
    pool = bundle.model.encoder.pool
    monkeypatch.setattr(bundle.model.encoder, "pool", lambda states, patches: pool(states, patches).roll(shift, 1))
    assert _bad(bundle) == dict.fromkeys(names, "problem")


def test_dead_cross_attention_and_a_dead_head_are_found() -> None:
    blt = _blt()
    for block in blt.decoder.cross:
        block.out.weight.data.zero_()
    assert _bad(_sane(model=blt)) == {"decoder-read": "problem"}
    blt.decoder.head.weight.data.zero_()
    assert _bad(_sane(model=blt)) == {"byte-response": "problem", "decoder-read": "problem"}


@pytest.mark.parametrize("part", ["model", "scorer"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_end_the_check(part: str, value: float) -> None:
    bundle = _sane()
    next(getattr(bundle, part).parameters()).data[0, 0] = value
    found = check(bundle, _DOCUMENTS)
    assert _status(found) == {"weights": "problem"}
    assert found.findings[0].value == 1.0


class _Clairvoyant(EntropyModel):
    def scores(self, ids: Tensor) -> Tensor:
        return super().scores(ids).roll(-1, 1)


def test_a_scorer_that_looks_ahead_is_found() -> None:
    assert "scorer-leak" in _bad(_sane(scorer=_scorer(kind=_Clairvoyant)))


def test_a_random_entropy_model_is_worse_than_order_2() -> None:
    scorer = EntropyModel(_CONFIG).reset_parameters(torch.Generator().manual_seed(0))
    bad = _bad(_sane(scorer=scorer, rule=ThresholdRule(threshold=1.70001)))
    assert bad["entropy-model-vs-ngram"] == "problem"
    assert bad["borders-too-frequent"] == "problem"


def test_a_removed_window_is_found() -> None:
    lost = _scorer(_CONFIG.replace(window=None))
    assert _status(check(_sane(scorer=lost), _DOCUMENTS))["lost-window"] in ("warning", "problem")
    record = {"row_bytes": 512, "config": {"model": {"kind": "entropy", "window": 8}}}
    assert _bad(Bundle(None, lost, None, record))["lost-window"] == "problem"
    assert _bad(Bundle(None, _scorer(), None, record)) == {}


class _Drifting(EntropyModel):
    """Less sure by half a milli-nat with every byte, as models become past a window that they were trained with."""

    rise = 5e-4

    def score(self, outputs: Tensor) -> Tensor:
        return super().score(outputs) + self.rise * torch.arange(outputs.shape[1])


class _Forgetting(EntropyModel):
    """Past byte 1,000 it is as sure as ever, of the wrong bytes."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        return torch.cat((logits[:, :1000], logits[:, 1000:].roll(1, -1)), 1)


class _Calming(_Drifting):
    rise = -5e-4


def test_entropies_that_explode_without_a_window_are_a_problem() -> None:
    bad = _bad(_sane(scorer=_scorer(_CONFIG.replace(window=None), _Drifting)))
    assert bad["lost-window"] == bad["entropy-drift"] == "problem"


def test_being_sure_of_the_wrong_bytes_without_a_window_is_a_problem() -> None:
    """Some models do not grow unsure past a lost window, only wrong: entropies alone would not show it."""
    found = check(_sane(scorer=_scorer(_CONFIG.replace(window=None), _Forgetting)), _DOCUMENTS)
    assert _status(found)["lost-window"] == "problem"


@pytest.mark.parametrize("kind", [_Drifting, _Calming])
def test_entropies_that_drift_are_found_in_either_direction(
    kind: type[_Drifting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "rise", 25 * kind.rise)  # three windows of 8 bytes lie between the two places
    assert _bad(_sane(scorer=_scorer(kind=kind)))["entropy-drift"] == "warning"
    monkeypatch.setattr(kind, "rise", 3 * kind.rise)
    assert _bad(_sane(scorer=_scorer(kind=kind)))["entropy-drift"] == "problem"


def test_a_missing_scorer_is_found() -> None:
    assert _bad(_sane(scorer=None)) == {"scorer-missing": "problem"}


def test_what_does_not_apply_is_not_reported() -> None:
    boundary = BoundaryModel(BoundaryConfig(width=8, layers=1, heads=2, ffn_width=12)).reset_parameters()
    assert set(_status(check(Bundle(None, boundary, None, {}), _DOCUMENTS))) == {"weights", "scores", "scorer-leak"}
    cnn = CnnEntropy(CnnConfig(width=8)).reset_parameters()
    names = set(_status(check(Bundle(None, cnn, None, {}), _DOCUMENTS)))
    assert names == {"weights", "scores", "scorer-leak", "entropy-model-vs-ngram"}


def test_too_little_text_is_said_and_not_judged() -> None:
    found = {finding.name: finding for finding in check(_sane(), [b"ab"]).findings}
    for name in ("entropy-drift", "entropy-model-vs-ngram"):
        assert (found[name].status, found[name].value) == ("warning", None)
        assert "not measured" in found[name].remedy


def test_mistakes_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no model; there is nothing to check"):
        check(Bundle(None, None, None, {}), _DOCUMENTS)
    for documents in ((), (b"", b"")):
        with pytest.raises(ValueError, match=r"hold no text; name files"):
            check(_sane(), documents)


def test_json_is_plain() -> None:
    found = check(_sane(), _DOCUMENTS)
    broken = Health((dataclasses.replace(found.findings[0], status="problem", value=math.inf),))
    assert not broken.healthy
    for one in (found, broken):
        data = json.loads(json.dumps(one.to_json(), allow_nan=False))
        assert data["healthy"] == one.healthy
        fields = {"name", "status", "value", "expected", "cause", "remedy", "detail", "numbers"}
        assert data["findings"][0].keys() == fields


def test_the_summary_tells_cause_and_remedy_of_what_is_wrong() -> None:
    found = check(_sane(rule=ThresholdRule(threshold=50.1)), _DOCUMENTS)
    text = found.summary()
    assert all(finding.name in text for finding in found.findings)
    for finding in found.findings:
        assert (finding.cause in text) == (finding.remedy in text) == (finding.status != "ok")


def test_default_text_is_small_and_the_same_every_time() -> None:
    documents = default_documents()
    assert documents == default_documents()
    assert len(documents) >= 4
    assert 50_000 < sum(map(len, documents)) < 1_000_000


def test_held_out_text_is_disjoint_and_bounded() -> None:
    documents = [bytes([number]) * size for number, size in enumerate([1, 7, 100_000, *[5000] * 30], 1)]
    sample = health._sample(documents)
    assert sample.num_held_out <= health.SAMPLE_BYTES
    for document, rest in zip(documents, sample.rest, strict=True):
        held = [piece for piece in sample.held_out if piece[:1] == document[:1]]
        assert len(rest) + sum(map(len, held)) <= len(document)


@settings(max_examples=15)
@given(
    k=st.integers(1, 3),
    layers=st.integers(1, 2),
    all_layers=st.booleans(),
    masks=st.booleans(),
    window=st.sampled_from((None, 1, 4)),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
)
def test_sane_models_of_any_shape_are_aligned(
    k: int, layers: int, all_layers: bool, masks: bool, window: int | None, dtype: torch.dtype
) -> None:
    config = _blt_config(k, layers, all_layers=all_layers, masks=masks, window=window)
    found = probe_alignment(_blt(config).to(dtype))
    assert found.leak <= found.tolerance < found.response
    assert set(found.pooled) == set(found.read) == {0}
    assert len(found.read) > 3


def _obvious_ngram(train: Sequence[bytes], test: Sequence[bytes], order: int) -> list[float]:
    counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(order + 1)]
    for document in train:
        padded = [256] * order + list(document)
        for i in range(order, len(padded)):
            for length in range(order + 1):
                counts[length][tuple(padded[i - length : i])][padded[i]] += 1
    nats = []
    for document in test:
        padded = [256] * order + list(document)
        for i in range(order, len(padded)):
            p = 1 / 256
            for length in range(order + 1):
                seen = counts[length].get(tuple(padded[i - length : i]))
                if seen:
                    p = (seen[padded[i]] + len(seen) * p) / (seen.total() + len(seen))
            nats.append(-math.log(p))
    return nats


_documents = st.lists(st.binary(max_size=12).map(lambda data: bytes(byte % 3 for byte in data)), max_size=4)


@given(train=_documents, test=_documents, order=st.integers(0, 9))
def test_ngram_equals_the_obvious_loop(train: list[bytes], test: list[bytes], order: int) -> None:
    assert ngram_nats(train, test, order).tolist() == pytest.approx(_obvious_ngram(train, test, order))


@pytest.mark.parametrize("order", range(13))
@pytest.mark.parametrize("alphabet", [b"\0\xff", b"\xfe\xff", bytes(range(256)), b"\xff"])
def test_ngram_is_exact_at_every_order(order: int, alphabet: bytes) -> None:
    """From order 7 on a context as a number of base 257 outgrows 64 bits; bytes 0 and 255 are its extreme digits."""
    draw = random.Random(order)
    train = [bytes(draw.choices(alphabet, k=120)), b"", bytes(draw.choices(alphabet, k=3))]
    test = [train[0][:60], bytes(draw.choices(alphabet, k=40))]
    assert ngram_nats(train, test, order).tolist() == pytest.approx(_obvious_ngram(train, test, order), rel=1e-12)


def test_ngram_of_a_longer_text() -> None:
    """A copy from far away is foreseen from a long context; a wrapped context would collide or miss."""
    draw = random.Random(0)
    train = bytes(draw.choices(range(256), k=20_000))
    assert ngram_nats([train], [train[5000:5200]], 12)[12:].max() < 0.1
    assert ngram_nats([train], [bytes(draw.choices(range(256), k=200))], 12).min() > 1


def test_ngram_refuses_a_negative_order() -> None:
    with pytest.raises(ValueError, match="order = -1"):
        ngram_nats([b"a"], [b"a"], -1)


@given(train=_documents, context=st.binary(max_size=3))
def test_ngram_probabilities_sum_to_one(train: list[bytes], context: bytes) -> None:
    every = [context + bytes([byte]) for byte in range(256)]
    last = ngram_nats(train, every).reshape(256, -1)[:, -1]
    assert sum(math.exp(-nats) for nats in last) == pytest.approx(1)


def test_patch_sizes_are_those_of_training_pieces() -> None:
    """The natural mean equals the count over pieces of row_bytes - 1 bytes, BOS in front of each."""
    bundle = _sane(record={"row_bytes": 101})
    held_out = health._sample(_DOCUMENTS).held_out
    pieces = [text[i : i + 100] for text in held_out for i in range(0, len(text), 100)]
    starts = 0
    for piece in pieces:
        ids = encode(piece)[None]
        starts += int(patch(bundle.rule, ids, bundle.scorer.scores(ids)).num_patches) - 1
    found = next(finding for finding in check(bundle, _DOCUMENTS).findings if finding.name == "borders-too-sparse")
    assert found.value == pytest.approx(sum(map(len, pieces)) / starts)
