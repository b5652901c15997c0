"""However much is generated, only the global cache grows."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from bltkit.generate import Session
from bltkit.vocab import encode
from tests.rows import example

STATUS = Path("/proc/self/status")
MIB = 2**20

GENERATE = """
import sys
from pathlib import Path
import torch
import bltkit
from bltkit.generate import Batch, Request, Sampling, strategy_of
from bltkit.vocab import EOS

class Endless:
    def __init__(self):
        self.mask = torch.ones(260, dtype=torch.bool)
        self.mask[EOS] = False
    def allowed(self, remaining):
        return self.mask
    def after(self, chosen):
        return self

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

torch.set_num_threads(1)
session = bltkit.load("bltkit:tiny").session("Once")
strategy = strategy_of("speculative", draft=16)
request = Request(Sampling(temperature=1.0, seed=3), int(sys.argv[1]), constraint=Endless(), strategy=strategy)
batch = Batch().admit(session, [request])
most, held = 0, 0
while batch.rows:
    held = batch.groups[0].session.latents[0].storage_bytes
    batch, _ = batch.step()
    most = max(most, anonymous())
print(most, held)
"""


def test_storage_goes_with_its_last_cache() -> None:
    """At once, not when Python next looks for cycles: a long generation outgrows its storage again and again."""
    case = example("stride:k=2.5")
    gc.disable()
    try:
        session = Session.start(case.model, case.scorer, case.rule).extend(encode(b"text"))
        old = [weakref.ref(cache._storage) for cache in (session.encoder, session.decoder, *session.latents)]
        for _ in range(200):
            session = session.read([[100, 101, 102]]).keep([2])
        assert all(storage() is None for storage in old)
    finally:
        gc.enable()


def generated(num_bytes: int) -> tuple[int, int]:
    """Peak of anonymous memory, and what the global cache's storage took in the end."""
    command = [sys.executable, "-c", GENERATE, str(num_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    most, held = done.stdout.split()
    return int(most), int(held)


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists() or "RssAnon" not in STATUS.read_text(), reason="needs /proc")
def test_a_long_generation_holds_nothing_but_its_global_cache() -> None:
    short, short_cache = generated(2_000)
    long, long_cache = generated(100_000)
    # While the storage grows, the old one and the new one are both there: 5/3 of the new one at most.
    accounted = (long_cache - short_cache) * 5 / 3
    print(f"peak {short / MIB:.0f} and {long / MIB:.0f} MiB, global cache {long_cache / MIB:.0f} MiB")
    assert long_cache > 20 * short_cache
    assert long - short < accounted + 16 * MIB
