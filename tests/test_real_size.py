"""Checkpoints of the released sizes and what is measured on them: the scripts, on a toy of the same architecture."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bltkit.convert.source import Source
from safetensors.torch import load_file

import bltkit
from bltkit.bench import rates
from bltkit.model import BltConfig, EntropyConfig, NgramConfig, StackConfig
from scripts import real_size, released_size

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def toy() -> tuple[BltConfig, EntropyConfig]:
    local = StackConfig(width=32, layers=1, heads=2, window=64)
    model = BltConfig(
        encoder=local,
        latent=StackConfig(width=128, layers=2, heads=2),
        decoder=local.replace(layers=2),
        ngrams=NgramConfig(sizes=(3, 5), buckets=101),
        document_masks=False,
    )
    return model, EntropyConfig(width=32, layers=2, heads=2, window=64, document_masks=False)


def drawn() -> Source:
    return released_size.drawn_source(*toy(), threshold=5.0)


@pytest.fixture(scope="module", autouse=True)
def small_block() -> Iterator[None]:
    """A block of random numbers that takes no time, yet is larger than any matrix of the toy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released_size, "BLOCK", 2**17 - 1)
        forget_block()
        yield
    forget_block()


def forget_block() -> None:
    released_size._block.cache_clear()
    released_size._scaled.cache_clear()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real_size") / "toy"
    released_size.write(drawn(), path, "ours")
    return path


def test_the_shapes_have_the_released_numbers_of_parameters() -> None:
    """Published: 4.53 and 10.55 billion, 9.27 GB in bf16 with the entropy model."""
    sizes = {}
    for size, tables in (("1b", 3.07e9), ("7b", 3.84e9)):
        source = released_size.drawn_source(*released_size.released(size))
        numbers = {name: math.prod(released_size.shape_of(stack)) for name, stack in source.tensors.items()}
        assert numbers[released_size.TABLES] == pytest.approx(tables, rel=0.002)
        entropy = sum(number for name, number in numbers.items() if released_size.of_entropy_model(name))
        sizes[size] = (sum(numbers.values()) - entropy, 2 * sum(numbers.values()))
    assert sizes["1b"][0] == pytest.approx(4.53e9, rel=0.002)
    assert sizes["7b"][0] == pytest.approx(10.55e9, rel=0.002)
    assert sizes["1b"][1] == pytest.approx(9.27e9, rel=0.001)


def test_all_layouts_hold_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    for layout in ("hf", "hub"):
        released_size.write(drawn(), tmp_path / layout, layout)
        bltkit.convert(tmp_path / layout, tmp_path / f"{layout}-ours")
        back = load_file(tmp_path / f"{layout}-ours" / "model.safetensors")
        assert back.keys() == tensors.keys()
        same = [name for name in tensors if name != released_size.TABLES or layout == "hf"]
        assert all(torch.equal(back[name], tensors[name]) for name in same)
    lm = bltkit.load(checkpoint)
    assert len(lm.generate("def ", max_bytes=4, seed=0).data) == 4


def test_matrices_are_random_at_the_scale_of_initialisation(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    matrices = {name: tensor.float() for name, tensor in tensors.items() if tensor.dim() == 2}
    assert len({tensor.flatten()[:64].numpy().tobytes() for tensor in matrices.values()}) == len(matrices)
    for name, tensor in matrices.items():
        assert len(tensor.unique(dim=0)) == len(tensor), name
        sigma = released_size.sigma_of(name, tensor.shape[1])
        assert float(tensor.std()) == pytest.approx(sigma, rel=0.1), name
    assert all(bool((tensor == 1).all()) for tensor in tensors.values() if tensor.dim() == 1)


def test_a_matrix_larger_than_the_block_is_put_together_from_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released_size, "BLOCK", 4099)
    forget_block()
    stack = released_size.Drawn((1000, 16), 0.5, at=3)
    whole = torch.cat(list(stack))
    assert len(stack) == 8 and whole.shape == (1000, 16)
    assert torch.equal(torch.cat(list(stack[2:4])), whole[256:512])
    assert float(whole.float().std()) == pytest.approx(0.5, rel=0.05)
    with pytest.raises(IndexError):
        stack[8]
    forget_block()


def test_what_cannot_be_written_is_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        released_size.main(["1b", str(checkpoint)])
    assert stop.value.code == 2 and "exists" in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(SystemExit) as stop:
        released_size.main(["7b", str(tmp_path / "large")])
    needed = re.search(r"needs ([\d,]+) bytes", capsys.readouterr().err)
    assert stop.value.code == 2 and needed is not None
    assert int(needed[1].replace(",", "")) == pytest.approx(2 * (10.55e9 + 0.1e9), rel=0.001)
    assert not list(tmp_path.iterdir())


def rows_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    real_size.main(arguments)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_decoding_at_a_calibrated_patch_size(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rates, "CPU", rates.Size(num_bytes=2**16, width=64, matmul_width=32))
    arguments = [
        "decode", str(checkpoint), "fp32", "--prompts", "2", "--max-bytes", "48", "--context", "32",
        "--strategies", "speculative:draft=4", "--cross-scale", "1", "0.001",
    ]  # fmt: skip
    rows = rows_of(arguments, capsys)
    assert [(row["strategy"], row["cross_scale"]) for row in rows] == [
        ("ar", 1.0), ("speculative", 1.0), ("ar", 0.001), ("speculative", 0.001)
    ]  # fmt: skip
    for row in rows:
        assert row["form"] == {"weights": "fp32"} and row["threads"] == 1 and row["commit"]
        assert row["ledger"]["bytes"] == 2 * 48  # no EOS
        assert row["ledger"]["weight_gb_read"] > 0 and row["rule"].startswith("threshold:")
    ar, speculative = rows[2:]
    # A decoder that hardly reads patches writes the bytes that the threshold was calibrated on, and drafts them right.
    assert 4 < ar["mean_patch_bytes"] < 5.2
    assert speculative["identical"] == speculative["prompts"] == 2
    assert speculative["ledger"]["acceptance"] > 0.95
    assert speculative["ledger"]["global_passes"] < ar["ledger"]["global_passes"]


def test_reading_a_prompt(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows_of(["prefill", str(checkpoint), "bf16", "--rounds", "2"], capsys)
    assert (row["what"], row["form"], row["context"]) == ("prefill", "bf16", 2000)
    assert 4 < row["mean_patch_bytes"] < 5 and row["ours"] > 0


@linux
def test_memory_of_a_process_and_of_a_conversion(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = rows_of(["resident", str(checkpoint), "fp32", "--rounds", "1"], capsys)
    assert row["written_bytes"] == real_size.WRITTEN
    assert row["rss_gb"] <= row["vm_hwm_gb"] and row["rss_anon_gb"] < row["vm_hwm_gb"]
    assert 0 < row["load_seconds"] < row["seconds"] and len(row["all_load_seconds"]) == 1
    (row,) = rows_of(["convert", str(checkpoint), str(tmp_path / "copy")], capsys)
    assert row["peak_rss_anon_gb"] > 0 and row["num_bytes"] > 0 and (tmp_path / "copy" / "config.json").exists()
    with pytest.raises(RuntimeError, match="exit status 2"):
        real_size.main(["convert", str(checkpoint), str(tmp_path / "copy")])


def test_rates_by_width_beside_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(Path(bltkit.__file__).parents[1])
    arguments = ["rates", "bf16", "--widths", "64", "--num-bytes", "65536", "--rounds", "1", "--baseline", source]
    (row,) = rows_of([*arguments, "--out", str(tmp_path / "rows.jsonl")], capsys)
    assert row["here"]["gb_per_second"].keys() == row["baseline"]["gb_per_second"].keys() == {"copy", "bf16"}
    ours, theirs = (row[side]["gb_per_second"]["bf16"] for side in ("here", "baseline"))
    assert row["against_baseline"]["bf16"] == pytest.approx(ours / theirs)
    assert json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8")) == row
