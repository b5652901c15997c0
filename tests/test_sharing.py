"""`blt push` and `blt pull` against a stand-in for the hub: equal bytes, revisions, and one line for each failure."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bltkit
from bltkit import cli
from bltkit.checkpoint import listed_files, load_bundle
from bltkit.checkpoint.card_mark import is_generated
from tests.hub_stub import Hub, hub_stub

constants = pytest.importorskip("huggingface_hub.constants")

REPO = "ada/tiny"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "tiny"
    bltkit.load("bltkit:tiny").save(path)
    (path / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    return path


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of a saved checkpoint with its licence."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in that the hub's library talks to, as its owner `ada`, with a cache of the test's own."""
    with hub_stub() as stub:
        for name, value in {
            "ENDPOINT": stub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": stub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # the stand-in has LFS alone
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_ada")
        # The library waits between two tries of a request; nothing here is worth a second try.
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=no_retries, time=time.time))
        yield stub


def no_retries(seconds: float) -> None:
    raise AssertionError("the hub's library tries again")


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The JSON object of a command that succeeds and writes nothing but progress on stderr."""
    status = cli.main([str(argument) for argument in (*arguments, "--json")])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith(("push: ", "pull: "))]
    assert (status, lines) == (0, []), captured.err
    return json.loads(captured.out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that fails with status 2."""
    capsys.readouterr()
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (status, captured.out, captured.err.count("\n")) == (2, "", 1), captured.err
    return captured.err


def test_there_and_back(hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushed = ran(capsys, "push", model, REPO, "--message", "first")
    names = {"LICENSE", "README.md", "bltkit.json", *listed_files(model)}
    assert set(pushed["files"]) == names and pushed["num_bytes"] == sum(map(len, files_of(model).values()))
    repo = hub.repos[REPO]
    assert {name: repo.files[name] for name in names} == files_of(model)
    assert repo.messages == ["initial commit", "first"] and pushed["commit"] == repo.branches["main"]
    pulled = ran(capsys, "pull", REPO, "--out", tmp_path / "out")
    assert pulled["verified"] and pulled["commit"] == pushed["commit"] and pulled["num_files"] == len(names)
    assert files_of(tmp_path / "out") == files_of(model)
    assert bltkit.load(f"hf:{REPO}").generate("a", max_bytes=4, seed=1) is not None
    again = ran(capsys, "push", model, REPO)
    assert again["commit"] == pushed["commit"] and len(repo.commits) == 2, "nothing changed, nothing is committed"


def test_python_doors_tell_progress(hub: Hub, model: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    pushed = bltkit.push(model, REPO, private=True, progress=lambda *counts: told.append(counts))
    assert told[-1] == (pushed.num_bytes, pushed.num_bytes) and told == sorted(told) and "private" in pushed.summary()
    told.clear()
    pulled = bltkit.pull(REPO, progress=lambda *counts: told.append(counts))
    assert told and told[-1][0] == told[-1][1] <= pulled.num_bytes and told == sorted(told)
    assert Path(pulled.directory).is_relative_to(tmp_path / "cache") and "verified against" in pulled.summary()


def test_revisions(hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ran(capsys, "push", model, REPO)
    coarse = tmp_path / "coarse"
    bltkit.load(model).with_patching("stride:k=6").save(coarse)
    second = ran(capsys, "push", coarse, REPO, "--revision", "coarse")
    assert set(hub.repos[REPO].branches) == {"main", "coarse"} and first["commit"] != second["commit"]
    for revision, rule in (("coarse", "stride"), (second["commit"], "stride"), (first["commit"], "threshold")):
        ran(capsys, "pull", REPO, "--revision", revision, "--out", tmp_path / "out" / revision)
        loaded = load_bundle(tmp_path / "out" / revision).rule
        assert loaded is not None and loaded.kind == rule
        again = bltkit.load(f"hf:{REPO}@{revision}").rule
        assert again is not None and again.kind == rule
    assert bltkit.load(f"hf:{REPO}").rule != bltkit.load(f"hf:{REPO}@coarse").rule
    says = refused(capsys, "pull", REPO, "--revision", "none")
    assert "hf:ada/tiny@none" in says and "there is no revision 'none'" in says
    assert "there is no revision 'none'" in refused(capsys, "score", "text", "--model", f"hf:{REPO}@none")
    assert "holds a revision" in refused(capsys, "push", model, f"{REPO}@main")


def test_private(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(capsys, "push", model, REPO, "--private")["private"] and hub.repos[REPO].private
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    assert "no such model, or it is private" in refused(capsys, "pull", REPO)
    assert "may not write" in refused(capsys, "push", model, REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    hub.new("ada/open")
    before = dict(hub.repos["ada/open"].branches)
    assert "exists and is public" in refused(capsys, "push", model, "ada/open", "--private")
    assert hub.repos["ada/open"].branches == before


def test_what_the_hub_refuses(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "out")
    assert "no such model" in refused(capsys, "pull", "ada/none", *out)
    ran(capsys, "push", model, REPO)
    hub.repos[REPO].gated = True
    for token, remedy in (("hf_bob", "your account has no access"), ("", "hf auth login")):
        monkeypatch.setenv("HF_TOKEN", token)
        says = refused(capsys, "pull", REPO, *out)
        assert "is gated: accept its terms on" in says and remedy in says
    assert "is gated" in refused(capsys, "score", "text", "--model", f"hf:{REPO}")
    assert "no token" in refused(capsys, "push", model, REPO)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "the token is not valid" in refused(capsys, "pull", REPO, *out)
    assert "the token is not valid" in refused(capsys, "push", model, REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    hub.refuses["commit"] = 403
    before = dict(hub.repos[REPO].branches)
    (model / "LICENSE").write_text("Other terms.\n")
    assert "may not write" in refused(capsys, "push", model, REPO)
    assert hub.repos[REPO].branches == before and not (tmp_path / "out").exists()
    assert "is not of the form" in refused(capsys, "pull", "../x")
    assert not list((tmp_path).glob(".out*"))


@pytest.mark.parametrize("command", ["push", "pull"])
def test_offline_is_one_line_and_no_request(
    command: str,
    hub: Hub,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("push", model, REPO) if command == "push" else ("pull", REPO, "--out", tmp_path / "out")
    hub.refuses["HEAD /"] = 503
    assert "answers with status 503" in refused(capsys, *arguments)
    requests = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, *arguments)
    assert len(hub.requests) == requests and not (tmp_path / "out").exists()


def test_offline_takes_what_is_cached(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(capsys, "push", model, REPO)
    ran(capsys, "pull", REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ran(capsys, "pull", REPO, "--out", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(model)


def test_an_interrupted_pull_resumes(hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(capsys, "push", model, REPO)
    (weights,) = (listed.sha256 for name, listed in listed_files(model).items() if name == "model.safetensors")
    hub.refuses[f"GET /lfs/{weights}"] = 403
    refused(capsys, "pull", REPO, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    hub.refuses.clear()
    hub.requests.clear()
    ran(capsys, "pull", REPO, "--out", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(model)
    assert len(hub.asked("GET /lfs/")) == 1, "files that had arrived are fetched again"


def test_a_damaged_file_is_fetched_again_and_a_wrong_one_refused(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(capsys, "push", model, REPO)
    cached = Path(ran(capsys, "pull", REPO)["directory"])
    for name in ("model.safetensors", "bltkit.json"):
        blob = (cached / name).resolve()
        data = bytearray(blob.read_bytes())
        data[-9] ^= 1
        blob.write_bytes(data)
    ran(capsys, "pull", REPO, "--out", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(model)
    repo = hub.repos[REPO]
    repo.commit("main", repo.files | {"tokenizer.json": b"{}"}, "spoilt")
    says = refused(capsys, "pull", REPO, "--out", tmp_path / "spoilt")
    assert "the repository's tokenizer.json does not match its bltkit.json" in says
    assert not (tmp_path / "spoilt").exists()


def test_push_refuses_a_broken_checkpoint(hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert "is not pushed" in refused(capsys, "push", model, REPO)
    (model / "bltkit.json").unlink()
    (model / "model.safetensors").write_bytes(weights[:-8])
    refused(capsys, "push", model, REPO)
    refused(capsys, "push", model.parent / "none", REPO)
    assert not hub.requests and not hub.repos


def test_nothing_of_a_run_is_uploaded(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.tiny_training import Workplace

    place = Workplace.at(tmp_path)
    place.train("run", "blt")
    out = tmp_path / "run"
    (out / ".env").write_text("SECRET=1")
    (out / "notes.pt").write_bytes(b"optimizer")
    capsys.readouterr()
    wanted = {"README.md", "bltkit.json", *listed_files(out)}
    assert wanted == {"README.md", "bltkit.json", "config.json", *_weights_and_tokenizer(out)}
    for directory in (out, out / "latest"):
        pushed = ran(capsys, "push", directory, REPO)
        assert set(pushed["files"]) == wanted
        assert set(hub.repos[REPO].files) == {".gitattributes", *wanted}


def _weights_and_tokenizer(out: Path) -> list[str]:
    return [path.name for form in ("model*.safetensors", "tokenizer*.json") for path in out.glob(form)]


def test_weights_of_another_form_are_removed(hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(capsys, "push", model, REPO)
    repo = hub.repos[REPO]
    extra = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "notes.md": b"kept"}
    repo.commit("main", repo.files | extra, "old")
    removed = ran(capsys, "push", model, REPO)["removed"]
    assert set(removed) == set(extra) - {"notes.md"} and "notes.md" in repo.files


def test_an_edited_card_on_the_hub_stays(hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_generated(model / "README.md")
    ran(capsys, "push", model, REPO)
    repo = hub.repos[REPO]
    repo.commit("main", repo.files | {"README.md": b"# Ours\n"}, "edited")
    assert "README.md" not in ran(capsys, "push", model, REPO)["files"] and repo.files["README.md"] == b"# Ours\n"
    (model / "README.md").write_text("---\nlicense: mit\n---\nTheirs\n")
    ran(capsys, "push", model, REPO)
    assert repo.files["README.md"].endswith(b"Theirs\n")


def test_other_programs_read_it_from_the_environment(hub: Hub, model: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME and HF_TOKEN alone; a private repository by name in transformers and here."""
    pytest.importorskip("transformers")
    bltkit.push(model, REPO, private=True)
    program = """
        import torch, transformers, bltkit
        tokenizer = transformers.AutoTokenizer.from_pretrained("ada/tiny")
        model = transformers.AutoModelForCausalLM.from_pretrained("ada/tiny", dtype=torch.float32).eval()
        ids = tokenizer("Some text.", return_tensors="pt")["input_ids"]
        ours = bltkit.load("hf:ada/tiny").logits(ids[0])
        theirs = model(ids).logits[0].detach()
        assert (ours - theirs).abs().max() < 1e-3, (ours - theirs).abs().max()
        print(tokenizer.decode(ids[0], skip_special_tokens=True))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_ada"}
        | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "Some text.\n" and (tmp_path / "home" / "hub" / "models--ada--tiny").is_dir()
