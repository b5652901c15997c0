"""Many clients for minutes: some leave in the middle, some read slowly, and every finished answer is compared.

The answers are known before: each request of a pool is generated alone in this process, in float64.
"""

import asyncio
import base64
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve_client import Library, Served, eventually, resident_bytes, saved_model, serve
from tests.test_serve_exactness import drawn

POOL = 48
"""Different requests."""
LONGEST = 120
"""Bytes of an answer at most."""
SLACK = 64 * 2**20
"""Bytes that the processes' memory may differ by: of an allocator, not of what each request would leave behind."""


@dataclass
class Counts:
    """What became of the requests."""

    finished: int = 0
    left: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Asked:
    """A request of the pool, and what it must be answered with."""

    body: dict[str, Any]
    data: bytes
    finish: str


class Soak:
    """`clients` clients at once: a third of them leaves at random, a tenth reads slowly."""

    def __init__(self, url: str, pool: list[Asked], clients: int) -> None:
        self.url, self.pool, self.clients, self.counts = url, pool, clients, Counts()

    def run(self, seconds: float) -> None:
        asyncio.run(self._run(seconds))

    async def _run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.clients)
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            for index in range(self.clients):
                group.create_task(self._client(client, index, until))

    async def _client(self, client: httpx.AsyncClient, index: int, until: float) -> None:
        choose = random.Random(index)
        await asyncio.sleep(choose.random())
        while time.monotonic() < until:
            asked = choose.choice(self.pool)
            leaves, slow = index % 3 == 0, index % 10 == 1
            kind = "leaves" if leaves else "slow" if slow else "stream" if choose.random() < 0.6 else "whole"
            self.counts.kinds[kind] += 1
            try:
                await self._ask(client, asked, kind, choose)
            except (httpx.HTTPError, ValueError, KeyError, AssertionError) as error:
                self.counts.lost.append(f"{kind}: {error!r} of {asked.body}"[:500])

    async def _ask(self, client: httpx.AsyncClient, asked: Asked, kind: str, choose: random.Random) -> None:
        if kind == "whole":
            response = await client.post("/v1/completions", json=asked.body)
            assert response.status_code == 200, response.text
            choice = response.json()["choices"][0]
            self._compare(asked, base64.b64decode(choice["bytes"]), choice["finish_reason"])
            return
        leaving = choose.randrange(20) if kind == "leaves" else None
        data, finish, done = b"", None, False
        async with client.stream("POST", "/v1/completions", json=asked.body | {"stream": True}) as response:
            if response.status_code != 200:
                await response.aread()
            assert response.status_code == 200, response.text
            number = 0
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    break
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                for choice in event["choices"]:
                    data += base64.b64decode(choice.get("bytes") or "")
                    finish = choice.get("finish_reason") or finish
                number += 1
                if number == leaving:
                    self.counts.left += 1
                    return
                if kind == "slow":
                    await asyncio.sleep(0.05)
        assert done, "the stream ended without [DONE]"
        self._compare(asked, data, finish)

    def _compare(self, asked: Asked, data: bytes, finish: str | None) -> None:
        self.counts.finished += 1
        if (data, finish) != (asked.data, asked.finish):
            self.counts.wrong.append(f"{asked.body}: {data!r} {finish}, not {asked.data!r} {asked.finish}")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "random")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Served]:
    with serve(directory, "--dtype", "float64", "--max-sequences", "64") as served:
        yield served


def pool_of(directory: Path, model: str, size: int, longest: int) -> list[Asked]:
    choose, pool = random.Random(11), []
    with Library(directory) as lm:
        for _ in range(size):
            prompt, fields, options = drawn(choose, longest)
            made = lm.generate(prompt, **options)
            body = {"model": model, "prompt": [byte + 4 for byte in prompt], "bytes": True, **fields}
            pool.append(Asked(body, made.data, "length" if made.finish == "length" else "stop"))
    return pool


def soak(server: Served, directory: Path, clients: int, seconds: float, size: int, longest: int) -> Counts:
    pool = pool_of(directory, server.model, size, longest)
    # The baseline is that of a server that has seen this load: allocators keep what a first peak needed.
    Soak(server.url, pool, clients).run(max(2.0, seconds / 5))
    assert eventually(server.idle)
    caches, memory = server.metric("kv_cache_usage_perc"), resident_bytes(server.server.pid)
    run = Soak(server.url, pool, clients)
    run.run(seconds)
    assert eventually(server.idle), "sequences were left behind"
    counts = run.counts
    grown = resident_bytes(server.server.pid) - memory
    after = server.metric("kv_cache_usage_perc")
    print(
        f"{counts.finished} finished, {counts.left} left, {len(counts.lost)} lost, {len(counts.wrong)} wrong; "
        f"{dict(counts.kinds)}; memory {grown / 2**20:+.1f} MiB; cache {caches} -> {after}"
    )
    assert not counts.lost, counts.lost[:3]
    assert not counts.wrong, counts.wrong[:3]
    assert counts.finished > clients and counts.left > 0
    assert after <= caches + 1e-9
    assert grown < SLACK, f"memory grew by {grown / 2**20:.1f} MiB"
    assert server.alive()
    return counts


def test_clients_come_and_go(server: Served, directory: Path) -> None:
    soak(server, directory, clients=12, seconds=5, size=12, longest=30)


@pytest.mark.slow
def test_five_minutes_of_64_clients(server: Served, directory: Path) -> None:
    soak(server, directory, clients=64, seconds=300, size=POOL, longest=LONGEST)
