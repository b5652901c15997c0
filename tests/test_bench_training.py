"""The training benchmark: equal gradients first, sides in processes of their own, and what the row says of them."""

import importlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bltkit import bench
from bltkit.bench.side_process import Remote
from bltkit.cost.formulas.operations import forward_flops
from tests.test_bench import QUICK, needs_transformers, small

train_module = importlib.import_module("bltkit.bench.train")


@needs_transformers
def test_a_row_of_training_with_a_peer() -> None:
    subject = small()
    weights = {name: weight.clone() for name, weight in subject.model.state_dict().items()}
    found = bench.train(subject, 96, peer="transformers", limits=QUICK, threads=1, command="blt bench")
    assert all(torch.equal(weights[name], weight) for name, weight in subject.model.state_dict().items())
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["ratio"] == pytest.approx(data["ours"] / data["peer"])
    assert data["loss_difference"] <= 1e-5 and data["gradient_difference"] <= 1e-4
    assert data["patches"] == "own" and data["optimizer"] == "dense_adamw"
    assert data["share_of_matmul"] == pytest.approx(data["gflops"] / data["matmul_gflops"])
    assert data["gflops"] == pytest.approx(data["flops_per_byte"] * data["ours"] / 1e9)
    assert data["global_attention_seconds"] > 0
    for memory in (data["memory"], data["peer_memory"]):
        assert memory["peak"] >= memory["before"] > 0
        assert memory["added"] == memory["peak"] - memory["before"]
    assert "GFLOP/s" in found.summary() and "gradients by" in found.summary()


def test_given_patches_and_no_peer() -> None:
    found = bench.train(small(), 64, patches="given", limits=QUICK, threads=1)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["peer_memory"] is None and data["loss_difference"] is None
    own = forward_flops(small().model.config, found.mean_patch_bytes, 64)
    assert data["flops_per_byte"] == pytest.approx(3 * own)


def test_other_gradients_are_no_benchmark(tmp_path: Path) -> None:
    def side(loss: float, **tensors: torch.Tensor) -> Any:
        def call(method: str, path: str) -> float:
            save_file(tensors, path)
            return loss

        return SimpleNamespace(call=call)

    def compare(other: Any) -> tuple[float, float]:
        pair: tuple[float, float] = train_module._compare([side(1.0, a=one), other], tmp_path, lambda line: None)
        return pair

    one = torch.ones(3)
    assert compare(side(1.0 + 5e-6, a=one + 1e-5)) == (pytest.approx(5e-6, rel=0.1), pytest.approx(1e-5, rel=0.1))
    for other, words in (
        (side(1.1, a=one), "a loss of"),
        (side(1.0, a=one + 2e-4), "the gradient of a"),
        (side(1.0, a=one * torch.nan), "the gradient of a"),
        (side(1.0, b=one), "of one side only"),
    ):
        with pytest.raises(RuntimeError, match=words):
            compare(other)


class Counter:
    """Something to call from afar."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise ValueError("start is negative")
        self.value = start

    def add(self, number: int) -> int:
        self.value += number
        return self.value

    def leave(self) -> None:
        os._exit(3)


def test_an_object_in_another_process() -> None:
    with Remote("counter", Counter, 5) as counter:
        assert (counter.call("add", 2), counter.call("add", 3)) == (7, 10)
        with pytest.raises(TypeError):
            counter.call("add", "x")
        assert counter.call("add", 0) == 10
        with pytest.raises(RuntimeError, match=r"process of counter ended .exit code 3"):
            counter.call("leave")
    with pytest.raises(ValueError, match="start is negative"):
        Remote("counter", Counter, -1)


@pytest.mark.slow
def test_memory_grows_with_the_row_and_no_faster() -> None:
    """Of a step of shape 69m: what a further byte adds to the process's peak, in long rows against short ones.

    Gradients and the optimizer's moments are there whatever the row, so differences are what counts.
    """
    added = {}
    for context in (2048, 8192, 16384, 32768):
        subject = bench.preset_subject("69m", bench.row(context))
        found = bench.train(subject, context, batch=1, patches="given", limits=bench.RepeatLimits(1, 0.0)).to_json()
        added[context] = found["memory"]["added"]
    short, long = (added[8192] - added[2048]) / 6144, (added[32768] - added[16384]) / 16384
    assert long <= 1.3 * short
    assert added[32768] / 32768 <= 1.3 * added[2048] / 2048
