"""Devices and threads: names, bounds, defaults."""

import os
from pathlib import Path

import pytest
import torch

import bltkit
from bltkit import compute
from bltkit.compute import _left_of_group


def test_cores_are_those_of_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for quota, cores in ((float("inf"), 8), (2.5, 3), (0.1, 1), (64.0, 8)):
        monkeypatch.setattr(compute, "_quota", lambda quota=quota: quota)
        assert compute.available_cores() == cores


def test_default_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compute, "available_cores", lambda: 8)
    assert compute.default_threads(5_900_000, "sequence") == 1
    assert compute.default_threads(69_000_000, "sequence") == 4
    assert compute.default_threads(1_500_000_000, "sequence") == 8
    assert compute.default_threads(5_900_000, "rows") == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert compute.default_threads(5_900_000, "rows") == torch.get_num_threads()


def test_threads_have_a_bound() -> None:
    most = compute.most_threads()
    assert most >= 16 and compute.check_threads(most, "threads") == most
    for count in (0, -3, most + 1, 10**10):
        with pytest.raises(ValueError, match=rf"^trainer.threads = {count}: use 1 to {most} on this machine"):
            compute.check_threads(count, "trainer.threads")
    assert compute.check_threads(0, "data.workers", least=0) == 0


def test_the_users_word_about_waiting_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.setenv(name, value)
        compute.share_cores()
        assert os.environ.get("GOMP_SPINCOUNT") == (value if name == "GOMP_SPINCOUNT" else None)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    compute.share_cores()
    assert os.environ.pop("GOMP_SPINCOUNT") == compute.SPINS


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((False, False, "cpu"), (True, True, "cuda"), (False, True, "mps")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        seen = []

        def empty(size: int, device: torch.device, seen: list[str] = seen) -> torch.Tensor:
            seen.append(device.type)
            return torch.zeros(size)

        with monkeypatch.context() as there:
            there.setattr(torch, "empty", empty)
            compute.device_of("auto")
        assert seen == [expected]
        assert compute.device_of("auto", small=True) == torch.device("cpu")


@pytest.mark.parametrize(
    "name, message",
    [
        ("cuda", "^device = 'cuda', but .*; use cpu or auto$"),
        ("cuda:99", "^device = 'cuda:99', but .*; use cpu or auto$"),
        ("mps", "^device = 'mps', but this machine has no MPS; use cpu or auto$"),
        ("gpu", "^device = 'gpu' is no device; use auto, cpu, cuda, cuda:N or mps$"),
        ("", "^device = '' is no device"),
        ("meta", "nothing is computed there"),
    ],
)
def test_loading_on_a_device_that_is_not_there(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        bltkit.load("bltkit:tiny", device=name)


@pytest.mark.parametrize("name", ["auto", "cpu", torch.device("cpu")])
def test_loading_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    model = bltkit.load("bltkit:tiny", device=name).model
    assert model is not None and model.embed.bytes.weight.device.type == "cpu"


def test_cached_files_of_a_control_group_are_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    assert _left_of_group(tmp_path) == 100
    (tmp_path / "memory.stat").write_text("anon 400\nactive_file 200\ninactive_file 100\n")
    assert _left_of_group(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert _left_of_group(tmp_path) > 2**60
