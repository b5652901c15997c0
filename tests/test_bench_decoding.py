"""Benchmarks of decoding: the engine's loop on the right bytes, from the same state in every run, and fair turns."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from bltkit import bench
from bltkit.bench.machine_rates import MachineRates, RateSizes, machine_rates
from bltkit.bench.peer import BYTES_PER_TOKEN
from bltkit.generate import Autoregressive, Request, Sampling, SequenceBatch, Session, Speculative
from bltkit.model.quantize import available_forms, reform
from bltkit.vocab import BOS, decode, encode
from tests import tiny
from tests.test_bench import QUICK, needs_transformers, small

TEXTS = [bytes(range(32, 122)) * 3, b"def f(x):\n    return x + 1\n\n" * 12]
LOSSY = [form for form in available_forms() if form in ("bf16", "int8")]


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The machine's rates on sets that fit in the caches; how often they were asked for."""
    calls: list[int] = []

    def quick(device: torch.device, forms: Any) -> MachineRates:
        calls.append(1)
        return machine_rates(device, forms, RateSizes(num_bytes=2**12, width=32, matmul_width=16))

    for module in ("decode", "generate"):
        monkeypatch.setattr(sys.modules[f"bltkit.bench.{module}"], "machine_rates", quick)
    yield calls


def trained() -> bench.BenchSubject:
    """A model that says this and that: with random weights of a healthy scale."""
    subject = small()
    return replace(subject, model=tiny.fill(subject.model, 3, head=3.0))


def test_the_bytes_fed_are_the_same_behind_every_context() -> None:
    short, long = bench.decoding_rows(20, 8, 3), bench.decoding_rows(300, 8, 3)
    assert short.shape == (3, 29) and long.shape == (3, 309)
    assert torch.equal(short[:, 1:], long[:, -28:]) and (short[:, 0] == BOS).all()
    text = bench.benchmark_text(400_000)
    for own in long.tolist():
        assert decode(own) in text
    assert len({tuple(own[-9:]) for own in long.tolist()}) == 3
    assert torch.equal(bench.decoding_rows(20, 8), short[:1])
    with pytest.raises(ValueError, match="batch = 0"):
        bench.decoding_rows(8, 8, 0)
    for numbers in ((0, 8, 1), (8, 0, 1), (390_000, 8, 1), (8, 8, 80)):
        with pytest.raises(ValueError, match=f"context = {numbers[0]}"):
            bench.decoding_rows(*numbers)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_run_is_the_engines_loop_on_the_texts_bytes(
    batch: int, monkeypatch: pytest.MonkeyPatch, quick_rates: list[int]
) -> None:
    """Every step of every timed run reads what the text says, from the same place on, with nothing to copy before."""
    subject, read, own = small(), [], Session.read

    def recorded(self: Session, rows: Any) -> Any:
        read.append((self.positions, [list(ids) for ids in rows]))
        return own(self, rows)

    monkeypatch.setattr(Session, "read", recorded)
    (found,) = bench.decode(subject, [40], batches=[batch], num_bytes=6, limits=QUICK)
    ids = bench.decoding_rows(40, 6, batch)
    steps = [(at, rows) for at, rows in read if at[0] >= 40]
    assert len(steps) == 6 * 4  # to warm up, two runs, the parts
    for index, (positions, rows) in enumerate(steps):
        at = 40 + index % 6
        assert positions == (at,) * batch
        assert rows == ids[:, at : at + 1].tolist()
    assert found.decoding is not None and found.decoding.ledger is not None
    ledger = found.decoding.ledger
    assert (ledger.bytes, ledger.decoder_passes, ledger.entropy_passes) == (6 * 2 * batch, 12, 12)
    assert ledger.seconds == pytest.approx(sum(found.ours.seconds))
    assert found.ours.bytes_per_run == 6 * batch and len(found.ours.seconds) == 2
    starts = subject.patches(ids).starts[:, 41:47]
    assert found.mean_patch_bytes == pytest.approx(6 * batch / max(1, int(starts.sum())))
    assert len(quick_rates) == 1


def test_points_and_forms(quick_rates: list[int]) -> None:
    rows = list(bench.decode(small(), [16, 32], batches=[1, 2], forms=["fp32", *LOSSY], num_bytes=4, limits=QUICK))
    points = [(row.context, row.batch, row.decoding.form.weights) for row in rows if row.decoding]
    assert points == [(c, b, form) for c in (16, 32) for b in (1, 2) for form in ("fp32", *LOSSY)]
    assert len(quick_rates) == 1
    for found in rows:
        data = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert data["machine_rates"]["product_gb_per_second"].keys() == {"fp32", *LOSSY}
        assert ("agreement" in data) == (data["form"]["weights"] != "fp32")
        assert data["peer"] is None and data["strategy"] == "ar"


@pytest.mark.skipif(not LOSSY, reason="needs kernels for another form of the weights")
def test_agreement_is_a_share_of_the_texts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = small()

    def formed(self: bench.BenchSubject, form: str) -> bench.BenchSubject:
        """Other weights altogether."""
        return self if form == "fp32" else replace(self, model=tiny.fill(reform(self.model, "fp32"), 9))

    monkeypatch.setattr(bench.BenchSubject, "reformed", formed)
    other: Any = LOSSY[0]
    (found,) = bench.decode(subject, [16], forms=[other], num_bytes=8, limits=QUICK)
    assert found.decoding is not None and found.decoding.agreement == 1  # the same weights on both sides
    monkeypatch.setattr(
        bench.BenchSubject, "reformed", lambda self, form: replace(small(), model=tiny.fill(small().model, 9))
    )
    (found,) = bench.decode(small(), [16], forms=[other], num_bytes=8, limits=QUICK)
    assert found.decoding is not None and found.decoding.agreement is not None and found.decoding.agreement < 1


def test_the_parts_of_a_decoding_step() -> None:
    subject = small()
    (row_,) = bench.decode(subject, [64], batches=[2], num_bytes=8, limits=QUICK)
    found = row_.parts
    assert found is not None
    stacks = {"entropy", "encoder", "latent", "decoder"}
    assert found.keys() == stacks | {"encoder_cross", "decoder_cross", "head", "choice", "other"}
    assert sum(part["share"] for part in found.values()) == pytest.approx(1)
    assert all(part["ms_per_step"] > 0 for part in found.values())
    # Windows of 16: 15 positions are held in each of 2 rows, of keys and values of 16 numbers in one layer.
    assert found["entropy"]["kv_bytes"] == found["decoder"]["kv_bytes"] == 2 * 15 * 2 * 16 * 4
    assert found["decoder_cross"]["kv_bytes"] == 2 * 2 * 2 * 16 * 4
    assert found["latent"]["kv_bytes"] > 0
    hooks = [m for module in (subject.model, subject.scorer) for m in module.modules() if m._forward_hooks]
    assert not hooks


@needs_transformers
def test_a_row_with_a_peer_of_the_same_weights() -> None:
    (found,) = bench.decode(
        small(), [96], num_bytes=8, peer="transformers", limits=QUICK, threads=1, command="blt bench"
    )
    assert found.max_difference is not None and found.max_difference < 1e-4
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["ratio"] == pytest.approx(data["ours"] / data["peer"])
    assert (data["runs"]["ours"]["bytes_per_run"], data["runs"]["peer"]["bytes_per_run"]) == (8, 1)
    assert (data["what"], data["context"], data["threads"], data["peer_dtype"]) == ("decode", 96, 1, "float32")
    with pytest.raises(ValueError, match="batch = 2: peer 'transformers' decodes one row"):
        list(bench.decode(small(), [96], batches=[1, 2], peer="transformers"))


@needs_transformers
def test_a_row_with_a_llama() -> None:
    (found,) = bench.decode(
        small(), [96], batches=[2], num_bytes=9, peer="llama", peer_dtype=torch.bfloat16, limits=QUICK
    )
    assert found.peer is not None and found.peer.bytes_per_run == pytest.approx(2 * 2 * BYTES_PER_TOKEN)
    assert found.decoding is not None and found.decoding.peer_dtype == "bfloat16"
    assert found.max_difference is None


def continued(subject: bench.BenchSubject, prompt: bytes, sampling: Sampling, max_bytes: int) -> bytes:
    """One prompt alone, byte after byte."""
    session = Session.start(subject.model, subject.scorer, subject.rule).extend(encode(prompt))
    batch, data = SequenceBatch().admit(session, [Request(sampling, max_bytes)]), b""
    while batch.rows:
        batch, chunks = batch.step()
        data += b"".join(chunk.data for _, chunk in chunks)
    return data


@pytest.mark.parametrize(("batch", "temperature"), [(1, 0.8), (1, 0.0), (2, 0.8)])
def test_every_strategy_continues_every_prompt(batch: int, temperature: float) -> None:
    subject = trained()
    strategies = [Speculative(draft=3), Speculative()]
    rows = list(
        bench.generate(
            subject, TEXTS, [24], strategies=strategies, batches=[batch], prompts=4, max_bytes=12,
            temperature=temperature, seed=5, rounds=2,
        )
    )  # fmt: skip
    data = [json.loads(json.dumps(found.to_json(), allow_nan=False)) for found in rows]
    assert [(one["strategy"], one.get("draft")) for one in data] == [
        ("ar", None), ("speculative", 3), ("speculative", None)
    ]  # fmt: skip
    halves = [bench.prompts_of([text], 2, 24) for text in TEXTS]
    prompts = [halves[0][0], halves[1][0], halves[0][1], halves[1][1]] * 2
    outputs = [
        continued(subject, prompt, Sampling(temperature=temperature, seed=5 + i), 12)
        for i, prompt in enumerate(prompts)
    ]
    made = sum(map(len, outputs))
    for one in data:
        assert (one["context"], one["batch"], one["prompts"], one["temperature"]) == (24, batch, 8, temperature)
        assert one["ledger"]["bytes"] == one["runs"]["ours"]["bytes_per_run"] == made
        assert one["ours"] == pytest.approx(made / one["ledger"]["seconds"])
        assert one["mean_patch_bytes"] == data[0]["mean_patch_bytes"]
        repeated = sum(bench.repeated_share(output) * len(output) for output in outputs)
        assert one["repeated_share"] == pytest.approx(repeated / made)
    assert "identical" not in data[0] and "against_ar" not in data[0] and data[0]["ledger"]["drafted"] == 0
    for one in data[1:]:
        assert one["identical"] == 8
        assert one["against_ar"] == pytest.approx(one["ours"] / data[0]["ours"])
        assert 0 <= one["ledger"]["accepted"] <= one["ledger"]["drafted"] and one["ledger"]["drafted"] > 0
        assert one["ledger"]["entropy_passes"] <= data[0]["ledger"]["entropy_passes"]


def test_other_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy that broke the contract would show."""
    own = bench.generate.__globals__["SequenceBatch"].step

    def wrong(self: SequenceBatch) -> Any:
        batch, chunks = own(self)
        if isinstance(self.groups[0].strategy, Speculative):
            chunks = [(key, replace(chunk, data=chunk.data.replace(b"\x86", b"X"))) for key, chunk in chunks]
        return batch, chunks

    subject = trained()
    prompts = bench.prompts_of(TEXTS[:1], 4, 24)
    outputs = [continued(subject, prompt, Sampling(seed=i), 30) for i, prompt in enumerate(prompts)]
    right = sum(b"\x86" not in output for output in outputs)
    assert 0 < right < 4, "the example does not tell anything"
    monkeypatch.setattr(SequenceBatch, "step", wrong)
    _, found = bench.generate(subject, TEXTS[:1], [24], strategies=[Speculative(draft=2)], prompts=4, max_bytes=30)
    assert found.decoding is not None and found.decoding.identical == right


@needs_transformers
@pytest.mark.parametrize("peer", ["llama", "transformers"])
def test_a_peer_takes_its_turn_with_every_prompt(peer: str) -> None:
    rows = list(
        bench.generate(
            small(), TEXTS, [24], strategies=[Speculative()], prompts=2, max_bytes=9, temperature=0.0, peer=peer
        )
    )
    for found in rows:
        assert found.peer is not None
        each = 2 * BYTES_PER_TOKEN if peer == "llama" else 1
        assert found.peer.bytes_per_run == pytest.approx(2 * each)
        assert (found.max_difference is None) == (peer == "llama")
    assert rows[0].peer == rows[1].peer


@pytest.mark.skipif(not LOSSY, reason="needs kernels for another form of the weights")
def test_forms_of_generation() -> None:
    forms: Any = ["fp32", LOSSY[0]]
    rows = list(bench.generate(small(), TEXTS[:1], [24], forms=forms, prompts=1, max_bytes=4, temperature=0.0))
    found = [row.decoding for row in rows if row.decoding]
    assert [one.form.weights for one in found] == forms
    assert found[0].identical_to_fp32 is None and found[1].identical_to_fp32 == 1  # too small to be held otherwise


def test_strategies_by_name() -> None:
    assert bench.strategies_of(["ar"]) == (Autoregressive(),)
    both = (Autoregressive(), Speculative(draft=4), Speculative())
    assert bench.strategies_of(["ar", "speculative", "ar"], [4, None]) == both
    assert bench.strategies_of(["speculative"]) == (Speculative(),)
    assert bench.strategies_of(["speculative:draft=8", "ar"]) == (Speculative(draft=8), Autoregressive())
    with pytest.raises(ValueError, match="did you mean 'speculative'"):
        bench.strategies_of(["speculativ"], [4])
    for drafts in ([4], [None]):
        with pytest.raises(ValueError, match="none of the strategies ar drafts"):
            bench.strategies_of(["ar"], cast(Any, drafts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": 3}, "prompts = 3 must be a multiple of the number of texts, 2"),
        ({"prompts": 4, "batches": [3]}, "multiple of batch = 3"),
        ({"prompts": 0}, "prompts = 0"),
        ({"max_bytes": 0}, "max_bytes = 0"),
        ({"prompts": 400}, "have room for"),
        ({"peer": "lama", "prompts": 2}, "no peer 'lama'"),
        ({"forms": ["int3"], "prompts": 2}, "'int3'"),
        ({"prompts": 2, "batches": [2], "peer": "transformers"}, "decodes one row"),
        ({"temperature": -1.0, "prompts": 2}, "temperature"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(bench.generate(small(), TEXTS, [24], **options))


def test_a_model_that_says_nothing_cannot_be_measured() -> None:
    subject = small()
    with torch.no_grad():
        subject.model.decoder.norm.weight.zero_()  # all logits equal: greedy takes the lowest id, which is EOS
    with pytest.raises(ValueError, match="nothing to measure"):
        list(bench.generate(subject, TEXTS, [24], prompts=2, temperature=0.0))
