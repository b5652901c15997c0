"""A checkpoint's tables stay in its file: loading and generating take memory for what is used of them only."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bltkit.checkpoint import Bundle, save_bundle
from bltkit.model import Blt, BltConfig, NgramConfig, StackConfig
from bltkit.patching import parse_rule
from tests import tiny
from tests.tiny_training import Workplace

BUCKETS, WIDTH = 250_007, 64
TABLE_BYTES = 6 * BUCKETS * WIDTH * 2

PROGRAM = """
import sys
import bltkit

def private():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

bltkit.load("bltkit:tiny").generate("warm", max_bytes=4)  # what the first generation allocates is not the model's
before = private()
lm = bltkit.load(sys.argv[1])
loaded = private()
data = lm.generate("a few bytes of text", max_bytes=16, temperature=0).data
print(lm.model.embed.ngrams.dtype, loaded - before, private() - before, len(data))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="private memory is read from /proc")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_tables_are_not_read_into_memory(dtype: torch.dtype, tmp_path: Path) -> None:
    stack = StackConfig(width=WIDTH, layers=1, heads=2, ffn_width=96, window=32)
    config = BltConfig(
        encoder=stack, latent=stack.replace(window=None), decoder=stack, ngrams=NgramConfig(buckets=BUCKETS)
    )
    with torch.device("meta"):
        model = Blt(config)
    table = nn.Parameter(torch.zeros(6 * BUCKETS, WIDTH, dtype=dtype))
    model.embed.ngrams = nn.Parameter(torch.empty(0))
    model = model.to_empty(device="cpu")
    tiny.fill(model, 0)
    model.embed.ngrams = table
    save_bundle(tmp_path / "c", Bundle(model, None, parse_rule("stride:k=4")))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "c")], capture_output=True, text=True, check=True
    )
    kind, loaded, generated, num_bytes = done.stdout.split()
    assert kind == str(dtype)
    assert int(num_bytes) == 16
    assert int(loaded) < TABLE_BYTES / 10
    assert int(generated) < TABLE_BYTES / 10


def test_training_begins_with_tables_in_fp32(tmp_path: Path) -> None:
    """Whatever the dtype of the file that it starts from."""
    place = Workplace.at(tmp_path)
    place.train("first", "blt", "checkpoint.dtype=bf16", "trainer.max_steps=1")
    assert place.weights("first")["embed.ngrams"].dtype == torch.bfloat16
    place.train("second", "blt", f"trainer.init={tmp_path / 'first'}", "trainer.max_steps=1")
    assert {tensor.dtype for tensor in place.tensors("second").values()} == {torch.float32}
