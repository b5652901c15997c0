"""The command line: the keys it promises, bytes as they are on stdout, and one line for a mistake."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bltkit
from bltkit import cli
from bltkit.checkpoint import Bundle, load_bundle, save_bundle
from bltkit.config import dump_toml
from bltkit.model import Blt, BoundaryConfig, BoundaryModel, CnnConfig, CnnEntropy, EntropyConfig, EntropyModel
from bltkit.patching import parse_rule
from tests import tiny
from tests.tiny_training import MODELS, STACK, Workplace

TEXT = "The naïve café"
THRESHOLD = 2.5
VERBS = ("patch", "generate", "score", "train", "annotate", "calibrate", "check", "convert", "study", "flops")


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    out: bytes
    err: str

    def json(self) -> dict[str, Any]:
        """The one JSON object that stdout must be."""
        assert self.status == 0, self.err
        assert self.out.count(b"\n") == 1 and self.out.endswith(b"\n")
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    def mistake(self) -> str:
        """The one line on stderr that a user's mistake is answered with."""
        assert (self.status, self.out) == (2, b""), self
        assert self.err.startswith("blt: ") and self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("blt: ").rstrip()


Blt_ = Callable[..., Ran]


@pytest.fixture
def blt(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Blt_:
    """Runs `blt` in this process, `stdin` on its standard input."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsysbinary.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        captured = capsysbinary.readouterr()
        return Ran(status, captured.out, captured.err.decode())

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints: `blt`, `entropy` (no rule), `boundary`, `cnn`, and `space`, which has no scorer."""
    folder = tmp_path_factory.mktemp("models")
    model = tiny.fill(Blt(Workplace(folder).config("blt").model), 0)
    scorer = tiny.fill(EntropyModel(EntropyConfig(**STACK, window=16)), 1, head=3.0)
    boundary = tiny.fill(BoundaryModel(BoundaryConfig(**STACK, window=16)), 2)
    threshold = parse_rule(f"threshold:threshold={THRESHOLD}")
    record = {"row_bytes": 64, "mean_patch_bytes": 3.5}
    save_bundle(folder / "blt", Bundle(model, scorer, threshold, record))
    save_bundle(folder / "entropy", Bundle(None, scorer, None, record))
    save_bundle(folder / "boundary", Bundle(None, boundary, parse_rule("bpe"), record))
    save_bundle(folder / "cnn", Bundle(None, tiny.fill(CnnEntropy(CnnConfig(width=8)), 3), threshold, record))
    save_bundle(folder / "space", Bundle(model, None, parse_rule("space"), record))
    return folder


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys\n"
        "from bltkit.cli import main\n"
        "status = main(['--help'])\n"
        "slow = {'torch', 'numpy', 'pydantic', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported: {slow}' if slow or status else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, blt: Blt_) -> None:
    ran = blt(verb, "--help")
    assert ran.status == 0 and b"--json" in ran.out and not ran.err


def test_patch(blt: Blt_, models: Path) -> None:
    found = blt("patch", TEXT, "--model", models / "blt", "--json").json()
    data = TEXT.encode()
    assert found["num_bytes"] == len(data) == len(found["entropies"])
    assert found["starts"] == [i for i, nats in enumerate(found["entropies"]) if i == 0 or nats > THRESHOLD]
    assert 1 < len(found["starts"]) < len(data)
    assert found["next"]["opens"] == (found["next"]["entropy"] > THRESHOLD)
    assert found["threshold"] == THRESHOLD and found["rule"] == f"threshold:threshold={THRESHOLD}"
    assert b"".join(bytes.fromhex(patch["hex"]) for patch in found["patches"]) == data
    assert [patch["start"] for patch in found["patches"]] == found["starts"]
    assert [patch["length"] for patch in found["patches"]] == [len(p["hex"]) // 2 for p in found["patches"]]
    assert found["patches"][0].keys() == {"start", "length", "hex", "text"}
    assert found["mean_patch_bytes"] == pytest.approx(len(data) / len(found["starts"]))
    shown = blt("patch", TEXT, "--model", models / "blt")
    assert shown.status == 0 and "naïve"[:2] in shown.out.decode() and not shown.err


@pytest.mark.parametrize("source", ["argument", "stdin", "file"])
def test_a_text_is_the_same_from_everywhere(source: str, blt: Blt_, models: Path, tmp_path: Path) -> None:
    data = b"\xff\xfe caf\xc3\xa9 \r\n\xc3 \x01\n"
    (tmp_path / "text").write_bytes(data)
    given_as = {"argument": [os.fsdecode(data)], "stdin": ["-"], "file": ["--file", tmp_path / "text"]}[source]
    found = blt("patch", *given_as, "--model", models / "blt", "--json", stdin=data).json()
    assert b"".join(bytes.fromhex(patch["hex"]) for patch in found["patches"]) == data
    score = blt("score", *given_as, "--model", models / "blt", "--json", stdin=data).json()
    assert score["num_bytes"] == len(data)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=60))
def test_any_bytes_on_stdin(data: bytes, blt: Blt_, models: Path) -> None:
    for verb in ("patch", "score"):
        assert blt(verb, "-", "--model", models / "blt", "--json", stdin=data).json()["num_bytes"] == len(data)
        assert blt(verb, "-", "--model", models / "blt", stdin=data).status == 0
    found = blt("generate", "-", "--model", models / "blt", "--max-bytes", "3", "--json", stdin=data).json()
    assert len(found["bytes_hex"]) <= 6


def test_an_empty_text_has_no_patches(blt: Blt_, models: Path) -> None:
    found = blt("patch", "", "--model", models / "blt", "--json").json()
    assert (found["num_bytes"], found["entropies"], found["starts"], found["patches"]) == (0, [], [], [])
    assert found["next"]["opens"] is True and found["next"]["entropy"] > 0
    assert blt("patch", "", "--model", models / "blt").status == 0


def test_patch_with_another_rule(blt: Blt_, models: Path) -> None:
    """The entropies stay in sight also where the rule reads none."""
    found = blt("patch", "abcdefgh", "--model", models / "blt", "--rule", "stride:k=3", "--json").json()
    assert found["starts"] == [0, 3, 6] and found["threshold"] is None and len(found["entropies"]) == 8
    assert blt("patch", "abcdefgh", "--model", models / "space", "--json").json()["entropies"] is None
    logits = blt("patch", "abcdefgh", "--model", models / "boundary", "--json").json()
    assert logits["entropies"] is None and len(logits["boundary_logits"]) == 8
    assert blt("patch", "abcdefgh", "--model", models / "cnn", "--json").json()["threshold"] == THRESHOLD


def test_patch_compares_and_draws(blt: Blt_, models: Path, tmp_path: Path) -> None:
    found = blt("patch", TEXT, "--model", models / "blt", "--compare", "--json").json()
    assert found["num_bytes"] == len(TEXT.encode()) and len(found["schemes"]) >= 4
    for scheme in found["schemes"]:
        assert {"mean_patch_bytes", "largest_patch_bytes", "border_rate", "global_flops_per_byte"} <= scheme.keys()
    assert blt("patch", TEXT, "--model", models / "blt", "--compare").status == 0
    for compare in ((), ("--compare",)):
        picture = tmp_path / f"{len(compare)}.html"
        assert blt("patch", TEXT, "--model", models / "blt", *compare, "--plot", picture).status == 0
        assert "<" in picture.read_text()
    assert "txt" in blt("patch", TEXT, "--model", models / "blt", "--plot", tmp_path / "a.txt").mistake()


STATS = {
    "bytes",
    "seconds",
    "bytes_per_second",
    "decoder_passes",
    "encoder_passes",
    "global_passes",
    "entropy_passes",
    "drafted",
    "accepted",
    "weight_gb_read",
    "kv_gb_read",
    "paper_gb",
}


@pytest.mark.parametrize("prompt", [("The ",), ("",), ()])
def test_generate(prompt: tuple[str, ...], blt: Blt_, models: Path) -> None:
    options = ("--model", models / "blt", "--max-bytes", "12", "--seed", "5")
    found = blt("generate", *prompt, *options, "--json").json()
    assert found.keys() >= {"text", "bytes_hex", "stats"} and found["stats"].keys() >= STATS
    made = bytes.fromhex(found["bytes_hex"])
    assert 0 < len(made) <= 12 and found["stats"]["bytes"] == len(made)
    assert found["text"] == made.decode("utf-8", "replace")
    assert bltkit.load(models / "blt").generate("".join(prompt), max_bytes=12, seed=5).data == made
    plain = blt("generate", *prompt, *options)
    assert (plain.status, plain.out) == (0, made + b"\n")
    assert f"{len(made)} bytes, " in plain.err


def test_generate_without_randomness_and_with_filters(blt: Blt_, models: Path) -> None:
    model = ("--model", models / "blt", "--max-bytes", "8")
    greedy = blt("generate", "a", *model, "--temperature", "0").out
    for more in (("--top-k", "1"), ("--top-p", "0.000001"), ("--min-p", "1.0")):
        assert blt("generate", "a", *model, *more).out == greedy
    sampled = {blt("generate", "a", *model, "--temperature", "2", "--seed", str(seed)).out for seed in range(4)}
    assert len(sampled) == 4


def test_generate_stops_at_a_string(blt: Blt_, models: Path) -> None:
    model = ("--model", models / "blt", "--max-bytes", "40", "--seed", "1")
    made = bytes.fromhex(blt("generate", "a", *model, "--json").json()["bytes_hex"])
    stop = made[5:7]
    expected = made[: made.index(stop)]
    found = blt("generate", "a", *model, "--stop", "never there", "--stop", os.fsdecode(stop), "--json").json()
    assert bytes.fromhex(found["bytes_hex"]) == expected and found["stats"]["bytes"] == len(expected)
    assert blt("generate", "a", *model, "--stop", os.fsdecode(stop)).out == expected + b"\n"


def test_generate_nothing(blt: Blt_, models: Path) -> None:
    assert blt("generate", "a", "--model", models / "blt", "--max-bytes", "0").out == b"\n"


def test_a_reader_that_leaves_is_no_noise(models: Path) -> None:
    program = "import torch; torch.set_num_threads(1); from bltkit.cli import run; run()"
    command = [sys.executable, "-c", program, "generate", "a", "--model", str(models / "blt"), "--max-bytes", "2000"]
    reading, writing = os.pipe()
    os.close(reading)
    # Only a buffered stdout still has something to write at exit.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_score(blt: Blt_, models: Path) -> None:
    found = blt("score", TEXT, "--model", models / "blt", "--json").json()
    assert found.keys() >= {"bits_per_byte", "nll_nats", "num_bytes", "mean_patch_bytes"}
    assert found["bits_per_byte"] == pytest.approx(found["nll_nats"] / found["num_bytes"] * 1.4426950408889634)
    assert found["context"] == 63  # the training row behind BOS
    shown = blt("score", TEXT, "--model", models / "blt")
    assert f"{found['bits_per_byte']:.4f} bits per byte over {found['num_bytes']} bytes" in shown.out.decode()
    narrow = blt("score", TEXT, "--model", models / "blt", "--context", "4", "--stride", "1", "--json").json()
    assert (narrow["context"], narrow["stride"]) == (4, 1)
    assert blt("score", TEXT, "--model", models / "entropy", "--json").json()["mean_patch_bytes"] is None


def test_train(blt: Blt_, tmp_path: Path) -> None:
    place = Workplace.at(tmp_path)
    config, out = tmp_path / "tiny.toml", tmp_path / "out"
    config.write_text(dump_toml(place.fields("blt")))
    found = blt("train", config, "trainer.max_steps=2", "optim.lr=1e-3", "--out", out, "--json").json()
    assert found.keys() >= {"bits_per_byte", "out", "bytes_seen", "train_flops"}
    assert (found["out"], found["steps"]) == (str(out), 2)
    assert load_bundle(out).record["config"]["optim"]["lr"] == 1e-3
    assert "add --resume" in blt("train", config, "--out", out).mistake()
    more = blt("train", config, "trainer.max_steps=3", "--out", out, "--resume")
    assert more.status == 0 and f"{out}: step 3, " in more.out.decode()
    past = blt("train", config, "trainer.max_steps=3", "--out", out, "--resume")
    assert past.status == 0 and past.out == more.out and "already" in past.err
    over = blt("train", config, "trainer.max_steps=1", "--out", tmp_path / "new", "--resume")
    assert over.status == 0 and "starting over" in over.err


def test_train_names_its_directory_after_the_config(blt: Blt_, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Workplace.at(tmp_path)
    (tmp_path / "mine.toml").write_text(dump_toml(place.fields("cnn", "trainer.max_steps=1")))
    monkeypatch.chdir(tmp_path)
    assert blt("train", "mine.toml", "--json").json()["out"] == "runs/out/mine"
    assert (tmp_path / "runs/out/mine/config.json").exists()


def test_train_stops_where_numbers_end(blt: Blt_, tmp_path: Path) -> None:
    place = Workplace.at(tmp_path)
    config = tmp_path / "tiny.toml"
    config.write_text(dump_toml(place.fields("entropy", "optim.lr=1e38", "optim.warmup_steps=0")))
    ran = blt("train", config, "--out", tmp_path / "out")
    assert (ran.status, ran.out) == (1, b"") and ran.err.count("\n") == 1
    assert "is not finite (nan); the weights were not touched" in ran.err


@pytest.mark.parametrize("model", ["blt", "entropy", "cnn", "boundary"])
def test_calibrate(model: str, blt: Blt_, models: Path, tmp_path: Path) -> None:
    bundle = load_bundle(models / model)
    save_bundle(tmp_path / "m", bundle)
    Workplace.at(tmp_path)
    files = sorted(tmp_path.glob("*.txt"))
    found = blt("calibrate", "--model", tmp_path / "m", "--files", *files, "--patch-bytes", "4", "--json").json()
    assert found["mean_patch_bytes"] == pytest.approx(4.0, rel=0.1)
    rule = load_bundle(tmp_path / "m").rule
    assert rule is not None and getattr(rule, "threshold", None) == found["threshold"]
    assert rule.kind == ("bpe" if model == "boundary" else "threshold")
    data = b"".join(path.read_bytes() for path in files)
    sizes = [blt("patch", "--file", path, "--model", tmp_path / "m", "--json").json() for path in files]
    patches = sum(len(one["patches"]) for one in sizes)
    # Alone, each text begins with a patch of its own; so it does in the calibration.
    assert len(data) / patches == pytest.approx(found["mean_patch_bytes"], rel=1e-6)
    again = blt("calibrate", "--model", tmp_path / "m", "--files", files[0], "--patch-bytes", "999")
    assert "can reach" in again.mistake()


def test_check(blt: Blt_, models: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"some text to look at. " * 200)
    ran = blt("check", models / "blt", "--files", tmp_path / "text.txt", "--json")
    found = json.loads(ran.out)
    assert found["findings"] and isinstance(found["healthy"], bool)
    assert ran.status == (0 if found["healthy"] else 1) and not ran.err
    shown = blt("check", models / "blt", "--files", tmp_path / "text.txt")
    assert shown.status == ran.status and shown.out.count(b"\n") >= len(found["findings"])


@pytest.mark.parametrize("target", ["config", "blt", "entropy"])
def test_flops(target: str, blt: Blt_, models: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(dump_toml(Workplace(tmp_path).fields("blt")))
    name = tmp_path / "c.toml" if target == "config" else models / target
    found = blt("flops", name, "--patch-bytes", "4", "--context", "1024", "--json").json()
    assert found.keys() >= {"modules", "total", "total_with_entropy", "params"}
    fields = {"params", "weight_bytes", "kv_bytes", "flops_exact", "flops_paper", "flops_train"}
    for row in found["modules"].values():
        assert row.keys() >= fields
    assert blt("flops", name).status == 0
    if target != "entropy":
        module = load_bundle(models / "blt").model
        assert module is not None and MODELS["blt"]["latent"]["width"] == module.config.latent.width
        counted = sum(weight.numel() for weight in module.parameters())
        assert sum(row["params"] for name, row in found["modules"].items() if name != "entropy") == counted


def test_flops_of_several(blt: Blt_, models: Path, tmp_path: Path) -> None:
    """Side by side with a token model, with a strategy, and as a picture."""
    llama = "llama:width=32,layers=2,heads=4,vocab_size=512"
    found = blt("flops", models / "blt", llama, "--bytes-per-token", "4", "--patch-bytes", "4", "--json").json()
    assert [one["target"] for one in found["models"]] == [str(models / "blt"), llama]
    assert found["models"][1]["ratios"]["flops_exact"] > 0 and found["models"][1]["bytes_per_token"] == 4
    shown = blt("flops", models / "blt", llama)
    assert shown.status == 0 and b"  x " in shown.out
    drafted = ("flops", models / "blt", "--strategy", "speculative:draft=8", "--accepted", "0.9")
    assert blt(*drafted, "--json").json()["passes"]["entropy"] == pytest.approx(1 / 8.2)
    ran = blt("flops", models / "blt", "--plot", tmp_path / "c.html")
    assert ran.status == 0 and (tmp_path / "c.html").stat().st_size > 1000


BAD = [
    (("patch",), "give a TEXT"),
    (("patch", "a", "--file", "{folder}/text"), "give a TEXT (`-` for stdin) or --file F, one of them"),
    (("score", "--file", "{folder}"), "is a directory; name a file"),
    (("score", "--file", "{folder}/none"), "No such file"),
    (("score", "--file", "{folder}/empty"), "empty, there is nothing to score"),
    (("score", "a", "--context", "0"), "context = 0"),
    (("score", "a", "--context", "4", "--stride", "5"), "stride = 5"),
    (("score", "a", "--context", "many"), "--context"),
    (("score", "a", "--model", "{models}/boundary"), "predicts no bytes"),
    (("patch", "a", "--modle", "x"), "--model"),
    (("patch", "a", "--model", "{folder}/none"), "no such directory"),
    (("patch", "a", "--model", "{folder}/text"), "is a file"),
    (("patch", "a", "--model", "{folder}"), "no checkpoint"),
    (("patch", "a", "--model", "bltkit:none"), "no embedded model bltkit:none"),
    (("patch", "a", "--model", "{models}/entropy"), "no patching rule; run `blt calibrate`"),
    (("patch", "a", "--rule", "strid"), "unknown rule 'strid'; did you mean 'stride'?"),
    (("patch", "a", "--rule", "stride:q=3"), "no field 'q'"),
    (("patch", "a", "--rule", "bpe"), "'bpe' reads boundary scores, but this model gives entropy scores"),
    (("patch", "a", "--model", "{models}/space", "--rule", "rise:rise=1.0"), "but this model gives none"),
    (("generate", "a", "--temperature", "-1"), "temperature = -1"),
    (("generate", "a", "--temperature", "nan"), "temperature = nan"),
    (("generate", "a", "--top-p", "2"), "top_p = 2"),
    (("generate", "a", "--top-k", "0"), "top_k = 0"),
    (("generate", "a", "--max-bytes", "-1"), "max_bytes = -1"),
    (("generate", "a", "--stop", ""), "at least one byte"),
    (("generate", "a", "--strategy", "psychic"), "psychic"),
    (("generate", "a", "--model", "{models}/entropy"), "no BLT"),
    (("generate", "a", "b"), "b"),
    (("train", "{folder}/none.toml"), "none.toml does not exist"),
    (("train", "{folder}"), "is a directory; name a TOML file"),
    (("train", "{folder}/text"), "is not valid TOML"),
    (("train", "{folder}/c.toml", "--device", "tpu"), "trainer.device = 'tpu' is no device"),
    (("train", "{folder}/c.toml", "--threads", "100000"), "--threads = 100000: use 1 to"),
    (("patch", "a", "--rule", ""), "unknown rule ''"),
    (("train", "{folder}/c.toml", "trainer.max_stps=3"), "unknown key 'trainer.max_stps'; did you mean 'max_steps'?"),
    (("train", "{folder}/c.toml", "max_steps"), "is not of the form section.key=value"),
    (("train", "{folder}/c.toml", "--out", "{folder}/text"), "is no directory; --out names the directory of a run"),
    (("calibrate", "--files", "{folder}/none.txt", "--patch-bytes", "4"), "none.txt does not exist"),
    (("calibrate", "--files", "{folder}/text", "--patch-bytes", "4", "--model", "{models}/space"), "reads no scores"),
    (("calibrate", "--files", "{folder}/text"), "--patch-bytes"),
    (("check", "{folder}/none"), "no such directory"),
    (("check", "{models}/blt", "--files", "{folder}/empty"), "no text"),
    (("flops", "{folder}/none"), "none"),
    (("flops", "{models}/blt", "--patch-bytes", "0"), "patch_bytes = 0"),
    (("flops", "llama:9b"), "no shape '9b'"),
    (("flops", "{models}/blt", "--accepted", "0.5"), "add --strategy"),
    (("flops", "{models}/blt", "--strategy", "speculative:draft=4"), "--accepted"),
    (("flops", "{models}/blt", "llama:3-8b", "data.row_bytes=4"), "is for one model"),
    (("ptch",), "Did you mean 'patch'?"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, as_json: bool, blt: Blt_, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_bytes(b"some text\n")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "c.toml").write_text(dump_toml(Workplace(tmp_path).fields("cnn")))
    line = [argument.format(folder=tmp_path, models=models) for argument in arguments]
    if arguments[0] in ("patch", "generate", "score", "calibrate") and "--model" not in line:
        line += ["--model", str(models / "blt")]
    if as_json and arguments[0] in VERBS:
        line += ["--json"]
    assert message in blt(*line).mistake()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.toml", "empty", "text"]


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "config", "manifest", "other"])
def test_a_corrupt_checkpoint_is_one_line(damage: str, blt: Blt_, models: Path, tmp_path: Path) -> None:
    save_bundle(tmp_path / "m", load_bundle(models / "blt"))
    weights, config, own = (tmp_path / "m" / name for name in ("model.safetensors", "config.json", "bltkit.json"))
    match damage:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "empty":
            weights.write_bytes(b"")
        case "missing":
            weights.unlink()
        case "config":
            config.write_text("{")
        case "manifest":
            own.write_text('{"format": 1}')
        case "other":
            config.write_text('{"model_type": "llama"}')
            own.unlink()
    for verb in (("patch", "a"), ("generate", "a"), ("score", "a")):
        message = blt(*verb, "--model", tmp_path / "m").mistake()
        assert str(tmp_path / "m") in message
    # 1: the report names a file that is not what the manifest says. 2: there is no manifest to go by.
    ran = blt("check", tmp_path / "m")
    assert ran.status == (2 if damage in ("manifest", "other") else 1)
    assert str(tmp_path / "m") in ran.out.decode() + ran.err


def test_a_dash_as_file_is_stdin(blt: Blt_, models: Path) -> None:
    line = ("score", "--model", models / "blt", "--json")
    assert blt(*line, "--file", "-", stdin=b"some text").json() == blt(*line, "some text").json()


def test_a_training_takes_the_usual_options(blt: Blt_, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr("bltkit.train.train", lambda *_, **named: options.update(named))
    with pytest.raises(AttributeError):  # there is no result to show
        blt(
            "train",
            Path(__file__).parents[1] / "configs" / "tiny.toml",
            "--out",
            tmp_path,
            "--device",
            "cpu",
            "--threads",
            "1",
        )
    assert (options["device"], options["threads"]) == ("cpu", 1)


def test_an_interrupted_command_is_quiet(blt: Blt_, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("bltkit.api.score", interrupted)
    ran = blt("score", "a", "--model", models / "blt")
    assert (ran.status, ran.out, ran.err) == (130, b"", "")


def test_without_a_verb_it_explains_itself(blt: Blt_) -> None:
    ran = blt()
    assert ran.status == 0 and b"Usage: blt" in ran.out and not ran.err


def in_a_process(*arguments: str | Path, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    """Runs `blt` as a shell does."""
    program = "from bltkit.cli import run; run()"
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("verb", [("patch", "--json"), ("score",), ("generate", "--max-bytes", "8")])
def test_a_reader_that_has_gone_ends_it_quietly(verb: tuple[str, ...], models: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = in_a_process(verb[0], "text", "--model", models / "blt", *verb[1:], stdout=writer)
    os.close(writer)
    assert done.returncode == 1 and b"rror" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_one_line(models: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = in_a_process("score", "text", "--model", models / "blt", stdout=full)
    assert done.returncode == 2 and done.stderr.startswith(b"blt: ") and done.stderr.count(b"\n") == 1


def test_json_is_json_in_any_encoding(models: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    line = ("patch", "é 中", "--rule", "space", "--json", "--model", models / "blt")
    done = in_a_process(*line, stdout=subprocess.PIPE, env=environment)
    assert done.stdout.isascii() and [patch["text"] for patch in json.loads(done.stdout)["patches"]] == ["é ", "中"]
