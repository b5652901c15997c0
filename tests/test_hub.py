"""A hub that does not answer costs one line and no retries, wherever data sets and models come from."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from bltkit.checkpoint import resolve_model
from bltkit.data.sources.hub_datasets import HubSource
from bltkit.eval.dataset_source import HubSet, Place, hub_configs
from bltkit.files import hub
from bltkit.files.hub import hub_or_cache

constants = pytest.importorskip("huggingface_hub.constants")
pytest.importorskip("datasets")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a port that nobody listens at."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield from pointed(monkeypatch, closed.getsockname()[1])


def pointed(monkeypatch: pytest.MonkeyPatch, port: int) -> Iterator[str]:
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sys.modules["datasets.config"], "HF_HUB_OFFLINE", False)
    yield endpoint


ASKED = {
    "rows": lambda: next(Place().rows("piqa.jsonl", HubSet("bltkit-test/none", "test"))),
    "configurations": lambda: hub_configs("bltkit-test/none", Place()),
    "a source": lambda: next(HubSource(name="bltkit-test/none").documents()),
    "a streaming source": lambda: next(HubSource(name="bltkit-test/none", streaming=True).documents()),
    "a source's files": lambda: HubSource(name="bltkit-test/none").inputs(),
    "a model": lambda: resolve_model("hf:bltkit-test/none"),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_hub_out_of_reach_is_one_line_at_once(what: str, refused: str, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="bltkit-test/none") as error:
        ASKED[what]()
    assert f"{refused} does not answer" in str(error.value) and "\n" not in str(error.value)
    assert "check the" in str(error.value)
    assert time.monotonic() - began < 5 and "Retrying" not in capfd.readouterr().err
    assert not constants.HF_HUB_OFFLINE and not sys.modules["datasets.config"].HF_HUB_OFFLINE


def test_a_hub_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        for endpoint in pointed(monkeypatch, server.getsockname()[1]):
            with hub_or_cache() as reason:
                assert reason is not None and f"{endpoint} does not answer" in reason and constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(("status", "said"), [(200, None), (404, None), (502, "answers with status 502")])
def test_a_proxy_answers_in_place_of_the_hub(status: int, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        for endpoint in pointed(monkeypatch, server.server_port):
            with hub_or_cache() as reason:
                assert reason == (None if said is None else f"{endpoint} {said}")
                assert (said is not None) == constants.HF_HUB_OFFLINE


def test_folders_and_a_chosen_offline_mode_ask_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: str
) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(hub, "_out_of_reach", forbidden)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text('{"text": "a"}\n')
    assert list(Place.of([tmp_path]).rows("a.jsonl", HubSet("owner/name", "test"))) == [{"text": "a"}]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub_or_cache() as reason:
        assert reason == "HF_HUB_OFFLINE is set"


def test_a_cut_zstd_file_is_no_whole_data_set(tmp_path: Path) -> None:
    """`datasets` reads what is there of it and says nothing."""
    import zstandard

    rows = "".join(f'{{"text": "row {number} {hash(str(number))}"}}\n' for number in range(20_000))
    data = zstandard.ZstdCompressor().compress(rows.encode())
    (tmp_path / "train.jsonl.zst").write_bytes(data)
    assert len(list(HubSource(name=str(tmp_path)).documents())) == 20_000
    (tmp_path / "train.jsonl.zst").write_bytes(data[: len(data) // 2])
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"train\.jsonl\.zst: the zstd file was cut short"):
            list(HubSource(name=str(tmp_path), streaming=streaming).documents())
    place = Place((tmp_path.parent,))
    with pytest.raises(ValueError, match=r"data set .*train\.jsonl\.zst: the zstd file was cut short; fetch it again$"):
        list(place.rows("absent.jsonl", HubSet(tmp_path.name, "train")))


def test_the_library_logs_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It logged "Failed to load JSON" besides the one line of the error."""
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800"}\n')
    with pytest.raises(ValueError, match="surrogate"):
        list(HubSource(name=str(tmp_path)).documents())
    assert capfd.readouterr().err == ""
