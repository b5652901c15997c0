"""Benchmarks measure right answers, both sides in turn, and say what they measured."""

import importlib.util
import json
import math
import re
import time
from dataclasses import fields, replace
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bltkit import bench
from bltkit.bench.bench_subject import PATCH_BYTES, clear_threshold, row
from bltkit.bench.peer import BYTES_PER_TOKEN, LlamaPeer, blt_peer_of, compared, peer_of
from bltkit.bench.record import commit, machine, row_of
from bltkit.bench.timing import Side, in_turn, threads_of
from bltkit.checkpoint import Bundle
from bltkit.cli import main
from bltkit.generate.ledger import Stats
from bltkit.model import Blt, BltConfig, EntropyConfig, EntropyModel, NgramConfig, StackConfig
from bltkit.model.quantize import available_forms
from bltkit.patching import SpaceRule, ThresholdRule
from bltkit.vocab import BOS, decode
from tests.test_cli import Blt_, blt

rates = importlib.import_module("bltkit.bench.machine_rates")  # the package has a function of this name

__all__ = ["blt"]  # a fixture

QUICK = bench.RepeatLimits(repeats=2, seconds=0.0)
needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the peer extra")


def small() -> bench.BenchSubject:
    stack = StackConfig(width=16, layers=1, heads=2, ffn_width=24, window=16)
    config = BltConfig(
        encoder=stack, latent=stack.replace(width=32, window=None), decoder=stack, ngrams=NgramConfig(buckets=53)
    )
    generator = torch.Generator().manual_seed(1)
    scorer = EntropyModel(EntropyConfig(width=16, layers=1, heads=2, ffn_width=24, window=16))
    model = Blt(config).reset_parameters(generator).eval()
    scores = scorer.reset_parameters(generator).eval().scores(row(256))[0, 1:]
    return bench.BenchSubject("small", model, scorer, ThresholdRule(threshold=clear_threshold(scores)))


def test_the_text_is_the_same_everywhere_in_a_row() -> None:
    ids = row(50, 2)
    assert ids[0, 0] == BOS
    assert decode(ids[0].tolist()) == bench.benchmark_text(49)
    assert decode(ids[1].tolist()) == bench.benchmark_text(99)[50:]
    with pytest.raises(ValueError, match="context = 0"):
        row(0)


def test_a_presets_patches_do_not_drift() -> None:
    """Behind the context the bytes that decoding reads have patches as long as in front."""
    ids = bench.decoding_rows(1024)
    starts = bench.preset_subject("tiny", ids).patches(ids).starts[0]
    assert 1024 / starts[:1024].sum() == pytest.approx(PATCH_BYTES, rel=0.15)
    assert bench.NUM_BYTES / starts[1025:-1].sum() == pytest.approx(PATCH_BYTES, rel=0.25)


def test_a_random_models_patches_have_the_length_asked_for() -> None:
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    threshold = clear_threshold(scores, 4.5)
    assert (scores > threshold).float().mean() == pytest.approx(1 / 4.5, abs=0.02)
    assert (scores - threshold).abs().min() > 1e-4
    assert clear_threshold(torch.ones(1)) == 1.0


@needs_transformers
def test_a_row_with_a_peer() -> None:
    subject = small()
    weights = {name: weight.clone() for name, weight in subject.model.state_dict().items()}
    found = bench.prefill(subject, 96, peer="transformers", limits=QUICK, threads=1, command="blt bench")
    assert found.max_difference is not None
    assert found.max_difference < 1e-4
    assert found.peer is not None
    assert len(found.ours.seconds) == len(found.peer.seconds) == 2
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["ratio"] == pytest.approx(data["ours"] / data["peer"])
    assert (data["what"], data["preset"], data["context"], data["threads"]) == ("prefill", "small", 96, 1)
    assert (data["dtype"], data["command"]) == ("float32", "blt bench")
    assert {"cpu", "cores", "torch"} <= data["machine"].keys()
    assert all(torch.equal(weights[name], weight) for name, weight in subject.model.state_dict().items())


def test_patching_alone() -> None:
    found = bench.patch(small(), 64, limits=QUICK)
    assert found.ratio is None
    assert found.to_json()["peer"] is None
    assert 1 < found.mean_patch_bytes < 20


@needs_transformers
def test_patching_with_a_peer() -> None:
    subject = small()
    found = bench.patch(subject, 96, batch=2, peer="transformers", limits=QUICK, threads=1)
    assert found.max_difference is not None and found.max_difference < 1e-5
    assert found.peer is not None and (found.what, found.context, found.batch) == ("patch", 96, 2)
    assert found.ours.bytes_per_run == found.peer.bytes_per_run == 2 * 96
    patches = subject.patches(row(96, 2))
    assert found.mean_patch_bytes == 2 * 95 / (int(patches.num_patches.sum()) - 2)
    with pytest.raises(ValueError, match="batch = 0"):
        bench.patch(subject, 96, batch=0)


@needs_transformers
def test_a_patcher_with_other_entropies_is_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = small()
    wrong = subject.scorer.scores(row(96))
    wrong[0, 50] += 1e-3
    monkeypatch.setattr(type(subject.scorer), "scores", lambda self, ids: wrong)
    with pytest.raises(RuntimeError, match=r"entropies differ by up to 0\.001 nats"):
        bench.patch(subject, 96, peer="transformers", limits=QUICK)


def test_wrong_answers_are_no_benchmark() -> None:
    logits = torch.randn(1, 5, 7)
    assert compared(logits, logits + 1e-6) == pytest.approx(1e-6, rel=0.2)
    wrong = logits.clone()
    wrong[0, 3, 2] += 1
    with pytest.raises(RuntimeError, match="first in position 3"):
        compared(wrong, logits)
    with pytest.raises(RuntimeError):
        compared(torch.full_like(logits, torch.nan), logits)


@needs_transformers
def test_a_model_that_the_peer_cannot_be() -> None:
    subject = replace(small(), rule=SpaceRule())
    with pytest.raises(ValueError, match="cannot be said in transformers' format"), peer_of("transformers", subject):
        pass


def test_mistakes() -> None:
    subject = small()
    with pytest.raises(ValueError, match="no peer 'llama2'"):
        bench.prefill(subject, 64, peer="llama2")
    with pytest.raises(ValueError, match="did you mean '400m'"):
        bench.preset_subject("400mm", row(64))
    with pytest.raises(ValueError, match="holds no BLT"):
        bench.subject_of("m", Bundle(None, subject.scorer, None))
    with pytest.raises(ValueError, match="batch = 0"):
        bench.train(subject, 64, batch=0)
    with pytest.raises(ValueError, match="repeats = 0"):
        bench.RepeatLimits(repeats=0)
    with pytest.raises(ValueError, match="threads = 0"), threads_of(0):
        pass
    for temperature in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match=r"^sampling: temperature = "):
            next(bench.decode(subject, (64,), num_bytes=4, temperature=temperature, limits=QUICK))
        with pytest.raises(ValueError, match=r"^sampling: temperature = "):
            next(bench.generate(subject, [b"some text"], (4,), prompts=1, max_bytes=4, temperature=temperature))


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, 1e300, 86_400.5])
def test_times_that_never_end_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"^seconds = .* must be from 0 to 86,400"):
        bench.RepeatLimits(seconds=seconds)
    assert bench.RepeatLimits(seconds=0).seconds == 0


@pytest.mark.parametrize("batch", [0, 65_537, 10**400])
@pytest.mark.parametrize("what", ["decode", "train", "patch", "weights"])
def test_batches_that_no_memory_holds_are_refused_at_once(
    what: str, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", what, "--model", "bltkit:tiny", f"--batch={batch}"]) == 2
    assert re.fullmatch(r"blt: batch = \d+ must be from 1 to 65,536 rows", capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("repeats", [0, -1, 1_000_001, 10**400])
def test_repeats_that_never_end_are_refused(repeats: int) -> None:
    with pytest.raises(ValueError, match=r"^repeats = .* must be from 1 to 1,000,000"):
        bench.RepeatLimits(repeats=repeats)


@pytest.mark.parametrize("files", [["empty.txt"], ["some.txt", "empty.txt"]])
@pytest.mark.parametrize("what", ["weights", "decode"])
def test_an_empty_file_is_not_replaced_by_another_text(what: str, files: list[str], tmp_path: Path, blt: Blt_) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "some.txt").write_text("Some text of some length.\n")
    options = [word for file in files for word in ("--file", tmp_path / file)]
    ran = blt("bench", what, "--model", "bltkit:tiny", "--json", *options)
    assert ran.status == 2 and not ran.out
    assert ran.err.splitlines()[-1].startswith(f"blt: --file {tmp_path / 'empty.txt'} is empty")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "prefill", "--preset", "", "--context", "64"], "no BLT preset ''"),
        (["study", "scaling", "--dry-run", "--plan", ""], "--plan ''"),
        (["study", "scaling", "--dry-run", "--rate", "0"], "rate = 0 GFLOP/s: must be above 0"),
        (["study", "scaling", "--dry-run", "--rate", "nan"], "rate = nan"),
        (["study", "scaling", "--out", "{out}", "--minutes", "nan"], "minutes = nan"),
        (["study", "scaling", "--out", "{out}", "--minutes", "-1"], "minutes = -1"),
        (["study", "scaling", "--out", "{out}", "--minutes", "inf"], "minutes = inf"),
        (["study", "entropy", "--out", "{out}", "--model", ""], "no checkpoint"),
        (["study", "efficiency", "--out", "{out}", "--device", ""], "--device"),
    ],
)
def test_nothing_and_0_are_not_taken_for_left_out(arguments: list[str], said: str, tmp_path: Path, blt: Blt_) -> None:
    out = tmp_path / "out"
    ran = blt(*(word.format(out=out) for word in arguments))
    assert ran.status == 2 and said in ran.err and not ran.out and not out.exists()


def test_sides_take_turns() -> None:
    calls: list[str] = []
    fast, slow = in_turn(
        [
            Side("fast", 10, lambda: calls.append("f")),
            Side(
                "slow", 1, lambda: (calls.append("s"), time.sleep(0.02)), lambda: (calls.append("p"), time.sleep(0.05))
            ),
        ],
        bench.RepeatLimits(repeats=3, seconds=0.03),
        torch.device("cpu"),
    )
    assert [name for name, _ in groupby(calls)] == ["f", "p", "s"] * 3
    assert sum(fast.seconds) >= 0.03
    assert len(slow.seconds) == 3
    assert slow.bytes_per_second == pytest.approx(1 / sorted(slow.seconds)[1])
    assert min(slow.seconds) < 0.05  # preparing is not in it


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads_of(2) as count:
        assert count == torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_the_commit_is_the_checkouts_own() -> None:
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40


@needs_transformers
def test_the_llama_has_the_global_transformers_layers() -> None:
    subject = small()
    latent = StackConfig(width=32, layers=3, heads=4, kv_heads=2, ffn_width=56)
    model = Blt(subject.model.config.replace(latent=latent)).reset_parameters(torch.Generator())
    before = torch.get_rng_state()
    with peer_of("llama", replace(subject, model=model)) as llama:
        assert isinstance(llama, LlamaPeer)
        theirs = sum(weight.numel() for weight in llama.model.model.layers.parameters())
        assert theirs == sum(weight.numel() for weight in model.latent.stack.layers.parameters())
        assert tuple(llama.model.lm_head.weight.shape) == (32_000, 32)
        assert llama.dtype == torch.float32
        assert llama.prompt(1000, 3).shape == (3, round(1000 / BYTES_PER_TOKEN))
        assert "llama" in llama.name
    assert torch.equal(before, torch.get_rng_state())
    with peer_of("llama", subject, torch.bfloat16) as llama:
        assert isinstance(llama, LlamaPeer)
        assert llama.dtype == torch.bfloat16
        assert llama.step(llama.start(20)).position == 6


@needs_transformers
def test_the_llamas_steps_are_greedy_decoding_and_its_states_are_values() -> None:
    with peer_of("llama", small()) as llama:
        assert isinstance(llama, LlamaPeer)
        ids = llama.prompt(40, 2)
        first = state = llama.start(40, 2)
        for _ in range(5):
            with torch.inference_mode():
                expected = llama.model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            assert torch.equal(state.token, expected)
            assert state.position == ids.shape[1]
            ids = torch.cat((ids, expected), 1)
            state = llama.step(state)
        assert first.cache.get_seq_length() == first.position == 9
        again = llama.step(first)
        assert torch.equal(again.token[:, 0], ids[:, 10]) and again.position == 10


@needs_transformers
def test_peers_for_what_they_cannot_do() -> None:
    subject = small()
    with pytest.raises(ValueError, match="only decodes"):
        bench.prefill(subject, 64, peer="llama")
    with pytest.raises(ValueError, match="bfloat16: peer 'transformers' runs in float32 only"):
        peer_of("transformers", subject, torch.bfloat16).__enter__()
    with blt_peer_of(None, subject) as nobody:
        assert nobody is None


def test_rates_are_bytes_and_operations_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []

    def half_a_second(run: object, device: torch.device) -> float:
        runs.append(run)
        return 0.5

    monkeypatch.setattr(rates, "timed", half_a_second)
    size = rates.RateSizes(num_bytes=2**16, width=64, matmul_width=32)
    forms = available_forms()
    found = bench.machine_rates(torch.device("cpu"), forms, size)
    assert len(runs) == (2 + len(forms)) * rates.RUNS
    assert found.copy_gb_per_second == pytest.approx(2 * 2**16 / 0.5e9)
    # int8 has scales as well, so that not as many matrices fill the room.
    assert found.product_gb_per_second == pytest.approx(dict.fromkeys(forms, 2**16 / 0.5e9), rel=0.05)
    assert found.matmul_gflops == pytest.approx(2 * 32**3 / 0.5e9)


def test_rates_are_measured() -> None:
    size = rates.RateSizes(num_bytes=2**12, width=32, matmul_width=16)
    found = bench.machine_rates(torch.device("cpu"), available_forms(), size)
    assert min(found.copy_gb_per_second, found.matmul_gflops, *found.product_gb_per_second.values()) > 0


def decoding_row(**changes: object) -> bench.BenchRow:
    whole: dict[str, Any] = {field.name: 0 for field in fields(Stats)} | {"backend": "eager"}
    ledger = Stats(
        **whole | {"bytes": 64, "seconds": 2.0, "drafted": 8, "accepted": 6, "weight_gb_read": 5, "kv_gb_read": 1}
    )
    decoding = bench.DecodingFigures(
        strategy="speculative",
        draft=8,
        form=bench.Form("bf16"),
        prompts=4,
        identical=3,
        identical_to_fp32=2,
        against_ar=1.5,
        peer_dtype="bfloat16",
        ledger=ledger,
        machine_rates=bench.MachineRates(30.0, {"fp32": 13.0}, 100.0),
    )
    timings = [bench.Timing(32, (1.0, 2.0, 1.0)), bench.Timing(10 * BYTES_PER_TOKEN, (1.0,))]
    found = row_of(
        small(), "decode", timings, context=64, threads=1, mean_patch_bytes=4.5, command="c",
        batch=2, peer_name="llama", decoding=decoding,
    )  # fmt: skip
    return replace(found, **changes)


def test_a_row_of_decoding_says_how() -> None:
    found = decoding_row()
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (data["strategy"], data["draft"], data["peer_dtype"], data["batch"]) == ("speculative", 8, "bfloat16", 2)
    assert data["form"] == {"weights": "bf16"}
    assert data["temperature"] == 0
    assert (data["ledger"]["gb_per_second"], data["ledger"]["acceptance"]) == (3.0, 0.75)
    assert (data["prompts"], data["identical"], data["against_ar"]) == (4, 3, 1.5)
    assert data["machine_rates"]["product_gb_per_second"] == {"fp32": 13.0}
    assert (data["ours"], data["peer"]) == (32.0, pytest.approx(44.0))
    assert "repeated_share" not in data
    line = found.summary()
    for words in (
        "context of 64 bytes, 2 rows side by side (speculative drafting 8 bytes, bf16 weights, greedy): 32.0 bytes/s",
        "1.50 times the speed of ar, 3 of 4 texts equal ar's, 2 of 4 texts equal those of fp32 weights",
        "75.0% of drafted bytes accepted",
        "reads 3.0 of 30.0 GB/s (10% of what this machine copies)",
        "products alone: 13.0 GB/s with fp32 weights",
    ):
        assert words in line
    assert "\n" not in line
    plain = replace(found, decoding=bench.DecodingFigures())
    assert plain.to_json().keys().isdisjoint({"ledger", "machine_rates", "draft", "peer_dtype", "decoding"})
    assert plain.summary().endswith("ours is 0.73 times as fast")


def test_rows_of_other_kinds_stay_as_they_are() -> None:
    kept = Path(__file__).parents[1].joinpath("docs/measurements.jsonl").read_text(encoding="utf-8").splitlines()
    old = next(row for row in map(json.loads, kept) if row.get("what") == "prefill")
    found = bench.prefill(small(), 32, limits=QUICK).to_json()
    assert found.keys() == old.keys()
    assert found["runs"]["ours"].keys() == old["runs"]["ours"].keys()
    assert found["machine"] == machine(torch.device("cpu"))


def test_rows_are_added_to_a_file(tmp_path: Path) -> None:
    rows = [decoding_row(), decoding_row(context=128)]
    bench.append_rows(tmp_path / "rows.jsonl", rows[:1])
    bench.append_rows(tmp_path / "rows.jsonl", rows[1:])
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(json.dumps(row.to_json())) for row in rows]


@given(st.lists(st.integers(0, 2), max_size=40).map(bytes), st.integers(1, 5))
def test_the_share_of_repeated_bytes(data: bytes, ngram: int) -> None:
    places = range(len(data) - ngram + 1)
    twice = [a for a in places if any(a != b and data[a : a + ngram] == data[b : b + ngram] for b in places)]
    inside = {a + offset for a in twice for offset in range(ngram)}
    assert bench.repeated_share(data, ngram) == pytest.approx(len(inside) / len(data) if data else 0)


def test_text_that_repeats_itself() -> None:
    assert bench.repeated_share(b"") == bench.repeated_share(bytes(range(256))) == 0
    assert bench.repeated_share(b"a" * 17) == 1
    assert bench.repeated_share(b"0123456789abcdef--0123456789abcdef..") == 32 / 36


@given(st.lists(st.text("ab\n", max_size=60).map(str.encode), min_size=1, max_size=4), st.integers(1, 5))
def test_prompts_are_pieces_of_the_texts(texts: list[bytes], num_bytes: int) -> None:
    texts = [bytes([65 + at]) + text for at, text in enumerate(texts)]
    room = sum(len(text) // num_bytes for text in texts)
    with pytest.raises(ValueError, match=f"room for {room} prompts of {num_bytes} bytes"):
        bench.prompts_of(texts, room + 1, num_bytes)
    for count in range(1, room + 1):
        found = bench.prompts_of(texts, count, num_bytes)
        assert len(found) == count
        assert all(len(prompt) == num_bytes and any(prompt in text for text in texts) for prompt in found)


def test_prompts_begin_with_lines_and_are_spread() -> None:
    lines = [f"{number:03}...".encode() for number in range(100)]
    found = bench.prompts_of([b"\n".join(lines[:50]), b"\n".join(lines[50:])], 10, 7)
    assert found[0] == b"000...\n"
    assert all(prompt[:6] in lines for prompt in found)
    numbers = [int(prompt[:3]) for prompt in found]
    assert all(9 <= after - before <= 11 for before, after in pairwise(numbers))
    with pytest.raises(ValueError, match="num_bytes = 0"):
        bench.prompts_of([b"text"], 1, 0)
