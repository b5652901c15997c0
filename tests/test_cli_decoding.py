"""`blt generate` in all its ways, and `blt bench`: what they print, and one line for an option in the wrong place."""

import json
import os
from pathlib import Path

import pytest

import bltkit
from tests.test_bench import needs_transformers
from tests.test_cli import Blt_, blt, models

__all__ = ["blt", "models"]

QUICK = ("--repeats", "1", "--seconds", "0", "--threads", "1")
TEXT = b"Some text to go on with, in lines of their own.\n" * 8


def test_drafting_gives_the_same_bytes(blt: Blt_, models: Path) -> None:
    line = ("generate", "The ", "--model", models / "blt", "--max-bytes", "24", "--seed", "3")
    plain, drafted = blt(*line), blt(*line, "--strategy", "speculative", "--draft", "3")
    assert drafted.out == plain.out and drafted.status == 0
    assert "drafted" not in plain.err
    stats = blt(*line, "--strategy", "speculative", "--draft", "3", "--json").json()["stats"]
    assert stats["drafted"] > 0
    kept, all_drafted = stats["accepted"], stats["drafted"]
    assert drafted.err.endswith(f"{kept} of {all_drafted} drafted bytes accepted ({kept / all_drafted:.0%})\n")
    assert drafted.err.count("\n") == 1


def test_blocks(blt: Blt_, models: Path, tmp_path: Path) -> None:
    """`verified` gives the same bytes, `diffusion` what its options say; a plain model says what to do instead."""
    trained = tmp_path / "blocks"
    lm = bltkit.load(models / "blt")
    assert lm.model is not None
    lm.model.config = lm.model.config.replace(diffusion_block=8)
    lm.save(trained)
    line = ("generate", "The ", "--model", trained, "--max-bytes", "24", "--seed", "3")
    assert blt(*line, "--strategy", "verified", "--draft", "4").out == blt(*line).out
    for options, fields in (
        (("--alpha", "0.02", "--draft", "6"), {"alpha": 0.02, "draft": 6}),
        (("--gamma", "9", "--steps", "2", "--align-border"), {"gamma": 9.0, "steps": 2, "align_border": True}),
    ):
        found = blt(*line, "--strategy", "diffusion", *options, "--json").json()
        wanted = lm.generate("The ", max_bytes=24, seed=3, strategy="diffusion", **fields)
        assert found["bytes_hex"] == wanted.data.hex()
        assert found["stats"]["decoder_passes"] == wanted.stats.decoder_passes
        assert found["stats"]["accepted"] == found["stats"]["drafted"] > 0
    plain = ("generate", "The ", "--model", models / "blt", "--strategy", "diffusion")
    assert "'speculative', which works on every model" in blt(*plain).mistake()
    assert "at most 8 bytes" in blt(*line, "--strategy", "verified", "--draft", "9").mistake()
    assert "gamma = 0" in blt(*line, "--strategy", "diffusion", "--gamma", "0").mistake()
    assert "alpha" in blt(*line, "--alpha", "0.5").mistake()


def test_samples_come_one_after_another(blt: Blt_, models: Path) -> None:
    line = ("generate", "a", "--model", models / "blt", "--max-bytes", "6", "--seed", "7")
    lm = bltkit.load(models / "blt")
    each = [lm.generate("a", max_bytes=6, seed=seed) for seed in (7, 8, 9)]
    plain = blt(*line, "--num", "3")
    assert plain.out == b"".join(one.data + b"\n" for one in each)
    *headers, account = plain.err.splitlines()
    assert headers == ["sample 1 of 3, seed 7:", "sample 2 of 3, seed 8:", "sample 3 of 3, seed 9:"]
    assert account.startswith(f"{sum(len(one.data) for one in each)} bytes, ")
    found = blt(*line, "--num", "3", "--json").json()
    assert found["bytes_hex"] == each[0].data.hex() and found.keys() >= {"text", "stats", "finish"}
    for sample, one, seed in zip(found["samples"], each, (7, 8, 9), strict=True):
        assert sample.keys() == {"text", "bytes_hex", "finish", "seed", "stats"}
        assert (sample["bytes_hex"], sample["finish"], sample["seed"]) == (one.data.hex(), one.finish, seed)
        assert sample["stats"]["bytes"] == len(one.data)
    assert "samples" not in blt(*line, "--json").json()
    assert "num = 0" in blt(*line, "--num", "0").mistake()


def test_constraints_penalties_and_probabilities(blt: Blt_, models: Path) -> None:
    line = ("generate", os.fsdecode(b"caf\xc3"), "--model", models / "blt", "--max-bytes", "30", "--temperature", "2")
    made = bytes.fromhex(blt(*line, "--valid-utf8", "--json").json()["bytes_hex"])
    assert (b"caf\xc3" + made).decode() and 0x80 <= made[0] <= 0xBF
    found = blt(*line, "--logprobs", "--json").json()
    assert len(found["logprobs"]) == found["stats"]["bytes"] and max(found["logprobs"]) <= 0
    assert "logprobs" not in blt(*line, "--json").json()
    greedy = ("generate", "a", "--model", models / "blt", "--max-bytes", "30", "--temperature", "0")
    dull, varied = blt(*greedy).out, blt(*greedy, "--repetition-penalty", "100").out
    assert len(set(varied)) > len(set(dull))


def test_bench_decode(blt: Blt_, models: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    line = ("bench", "decode", "--model", models / "blt", "--max-bytes", "4", *QUICK, "--out", rows)
    found = blt(*line, "--context", "16", "--context", "32", "--batch", "1", "--batch", "2", "--json").json()
    assert [(row["context"], row["batch"]) for row in found["rows"]] == [(16, 1), (16, 2), (32, 1), (32, 2)]
    assert [json.loads(one) for one in rows.read_text().splitlines()] == found["rows"]
    assert {row["threads"] for row in found["rows"]} == {1}
    single = blt(*line, "--context", "16", "--json").json()
    assert single.keys() >= {"ours", "peer", "ratio", "command", "ledger"} and single["temperature"] == 0
    assert len(rows.read_text().splitlines()) == 5
    shown = blt(*line, "--context", "16", "--temperature", "0.5")
    assert shown.out.startswith(b"decode ")
    assert b"context of 16 bytes (ar, fp32 weights, temperature 0.5): " in shown.out
    assert not shown.err  # progress is for what takes longer than some seconds


def test_bench_decode_draws(blt: Blt_, models: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    line = ("bench", "decode", "--model", models / "blt", "--context", "16", "--max-bytes", "4", *QUICK)
    ran = blt(*line, "--plot", tmp_path / "f.png")
    assert ran.err.endswith(f"wrote {tmp_path / 'f.png'}\n")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


@needs_transformers
def test_bench_decode_continues_prompts(blt: Blt_, models: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(TEXT)
    (tmp_path / "b").write_bytes(TEXT[7:])
    texts = ("--file", tmp_path / "a", "--file", tmp_path / "b", "--prompts", "2", "--max-bytes", "6")
    drafting = ("--strategy", "speculative", "--draft", "2", "--draft", "auto")
    line = ("bench", "decode", "--model", models / "blt", "--context", "20", *texts, *drafting, "--peer", "llama")
    found = blt(*line, "--peer-dtype", "bf16", "--threads", "1", "--json").json()["rows"]
    ways = [(row["strategy"], row.get("draft")) for row in found]
    assert ways == [("ar", None), ("speculative", 2), ("speculative", None)]
    assert [row.get("identical") for row in found] == [None, 2, 2]
    assert {row["prompts"] for row in found} == {2} and {row["peer_dtype"] for row in found} == {"bfloat16"}
    shown = blt(*line, "--repeats", "2", "--threads", "1")
    assert shown.out.count(b"\n") == 3 and b"4 of 4 texts equal ar's" in shown.out


def test_bench_weights(blt: Blt_, models: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(TEXT)
    line = ("bench", "weights", "--model", models / "blt", "--file", tmp_path / "a", "--weights", "fp32")
    found = blt(*line, "--repeats", "1", "--threads", "1", "--json").json()
    assert (found["what"], found["form"], found["text_bytes"]) == ("weights", "fp32", len(TEXT))
    score = blt("score", "--model", models / "blt", "--file", tmp_path / "a", "--json").json()
    assert found["bits_per_byte"] == pytest.approx(score["bits_per_byte"])


BAD = [
    (("generate", "a", "--strategy", "speculative:draft=3", "--draft", "4"), "draft = 4 is given a second time"),
    (("generate", "a", "--strategy", "speculativ"), "no strategy 'speculativ'; did you mean 'speculative'?"),
    (("generate", "a", "--draft", "4"), "'draft'"),
    (("generate", "a", "--strategy", "speculative", "--draft", "0"), "draft = 0"),
    (("generate", "a", "--logprobs"), "--logprobs come as JSON; add --json"),
    (("generate", "a", "--repetition-penalty", "0"), "repetition_penalty = 0"),
    (("bench", "prefill", "--temperature", "0"), "--temperature"),
    (("bench", "train", "--prompts", "3"), "--prompts"),
    (("bench", "train", "--weights", "bf16"), "--weights"),
    (("bench", "patch", "--plot", "f.png"), "--plot"),
    (("bench", "prefill", "--batch", "2"), "--batch"),
    (("bench", "weights", "--peer", "transformers"), "--peer"),
    (("bench", "weights", "--context", "16"), "--context"),
    (("bench", "serve", "--file", "text"), "--file"),
    (("bench", "decode", "--strategy", "speculative"), "--strategy is for prompts of a text; add --file F"),
    (("bench", "decode", "--file", "text"), "--file needs a trained model"),
    (("bench", "decode", "--file", "text", "--preset", "tiny"), "--preset has random weights"),
    (("bench", "decode", "--file", "text", "--model", "m", "--seconds", "1"), "--seconds is for runs"),
    (("bench", "decode", "--model", "m", "--preset", "tiny"), "not both"),
    (("bench", "decode", "--plot", "f.pdf"), "must end in .png"),
    (("bench", "decode", "--file", "{folder}/none", "--model", "{models}/blt"), "none"),
    (("bench", "decode", "--file", "text", "--model", "m", "--draft", "x"), "--draft x: a number of bytes"),
    (("bench", "decode", "--model", "{models}/blt", "--weights", "bf61", "--context", "9"), "did you mean 'bf16'?"),
    (("bench", "decode", "--model", "{models}/blt", "--peer", "lama", "--context", "9"), "no peer 'lama'"),
    (("bench", "decode", "--model", "{models}/blt", "--context", "0"), "context = 0"),
    (("bench", "decode", "--model", "{models}/blt", "--context", "9", "--out", "{folder}/none/rows"), "No such file"),
    (("bench", "decode", "--peer-dtype", "int8"), "--peer-dtype"),
    (("bench", "decode", "--preset", "tiny", "--device", "cudo", "--context", "9"), "--device = 'cudo' is no device"),
    (("bench", "dekode"), "dekode"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, blt: Blt_, models: Path, tmp_path: Path
) -> None:
    line = [argument.format(folder=tmp_path, models=models) for argument in arguments]
    if arguments[0] == "generate":
        line += ["--model", str(models / "blt")]
    assert message in blt(*line).mistake()
    assert not list(tmp_path.iterdir())
