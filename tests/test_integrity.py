"""A flipped bit is refused or without effect, in every file that is written: checkpoints, shards, mapped corpora."""

import json
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import cli
from bltkit.checkpoint import load_bundle, save_bundle
from bltkit.checkpoint.token_checkpoint import TokenBundle, load_token_model, write_token_model
from bltkit.cli import main
from bltkit.data import Corpus, Loader
from bltkit.data.sources import Document, read
from bltkit.data.sources.annotated import AnnotatedSource
from bltkit.data.sources.plain_text import TextSource
from bltkit.data.sources.shards import (
    AnnotatedDocument,
    ShardEntry,
    ShardFile,
    ShardManifest,
    write_manifest,
    write_shard,
)
from bltkit.diagnostics.health import check_directory
from bltkit.eval.runner import evaluate
from bltkit.eval.tasks import TASKS, parse_tasks
from bltkit.files import needs_space, require_regular, sealed, writer_lock
from bltkit.files.lock import LOCK_FILES
from bltkit.model import TokenConfig
from tests.eval_fakes import Known
from tests.eval_rows import place_of
from tests.test_annotate import Place
from tests.test_checkpoint import bundle, same
from tests.test_token_llama import VOCABULARY
from tests.test_token_llama import model as token_llama

few = settings(max_examples=60, deadline=None)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in shards, so that every kind of file is there."""
    return save_bundle(tmp_path_factory.mktemp("sound") / "c", bundle(), max_shard_bytes=20_000)


@pytest.fixture
def directory(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "c"))


class TestCheckpoint:
    @few
    @given(st.integers(0, 2**24), st.integers(0, 9))
    def test_a_flipped_bit_is_refused_or_changes_nothing(
        self, sound: Path, tmp_path_factory: pytest.TempPathFactory, bit: int, number: int
    ) -> None:
        directory = Path(shutil.copytree(sound, tmp_path_factory.mktemp("flip") / "c"))
        files = sorted(directory.iterdir())
        file = files[number % len(files)]
        flip(file, bit)
        try:
            loaded = load_bundle(directory, verify=True)
        except ValueError as error:
            assert file.name in str(error) and "\n" not in str(error)
            report = check_directory(directory)
            assert not report.healthy and file.name in report.summary()
        else:
            same(loaded, load_bundle(sound))

    def test_every_other_file_is_listed(self, directory: Path) -> None:
        listed = json.loads((directory / "bltkit.json").read_text())["files"]
        unlisted = {"bltkit.json", "README.md"}  # people edit the card
        assert set(listed) | unlisted == {path.name for path in directory.iterdir()}

    def test_check_names_the_damaged_file(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shard = sorted(directory.glob("model-*"))[1]
        flip(shard, 8 * (shard.stat().st_size - 40))
        load_bundle(directory)  # sizes alone are compared
        assert main(["check", str(directory)]) == 1
        printed = capsys.readouterr().out
        assert printed.startswith("problem  files: 1") and str(shard) in printed and "weights" not in printed

    def test_another_size_is_refused_by_default(self, directory: Path) -> None:
        shard = sorted(directory.glob("model-*"))[1]
        shard.write_bytes(shard.read_bytes() + b"\0")
        with pytest.raises(ValueError, match=rf"{shard.name} is damaged or changed: it has \d+ bytes"):
            load_bundle(directory)

    def test_weights_that_nobody_listed_do_not_take_the_place_of_those_listed(self, directory: Path) -> None:
        save_bundle(directory.parent / "other", bundle(seed=9))
        shutil.copy(directory.parent / "other" / "model.safetensors", directory)
        with pytest.raises(ValueError, match=r"model\.safetensors is not listed in bltkit\.json"):
            load_bundle(directory)

    def test_what_version_1_wrote_is_read(self, directory: Path) -> None:
        path = directory / "bltkit.json"
        data = json.loads(path.read_text())
        weights = {name: entry for name, entry in data["files"].items() if name.startswith("model-")}
        del data["digest"]
        path.write_text(json.dumps(data | {"format": 1, "files": weights}))
        same(load_bundle(directory, verify=True), bundle())

    @pytest.mark.parametrize(
        ("name", "words"),
        [("../c/config.json", "names of files in the same"), ("/etc/hostname", "names of files in the same")],
    )
    def test_listed_names_stay_in_the_directory(self, directory: Path, name: str, words: str) -> None:
        path = directory / "bltkit.json"
        data = json.loads(path.read_text())
        data["files"][name] = {"sha256": "0", "bytes": 1}
        path.write_text(json.dumps(sealed(data)))
        with pytest.raises(ValueError, match=words):
            load_bundle(directory)

    def test_a_token_model(self, tmp_path: Path) -> None:
        config = TokenConfig(width=8, layers=1, heads=2, vocab_size=300)
        write_token_model(tmp_path, TokenBundle(token_llama(config), VOCABULARY))
        assert check_directory(tmp_path).healthy
        sizes = {path: path.read_bytes() for path in tmp_path.iterdir()}
        for path, content in sizes.items():
            flip(path, 8 * (len(content) // 2))
            with pytest.raises(ValueError, match=path.name):
                load_token_model(tmp_path, verify=True)
            assert not check_directory(tmp_path).healthy
            path.write_bytes(content)


FOREIGN: list[Any] = ["gpt2", "mamba", "llama", "blt2", "BLT", "", None, 7, ["blt"], "bltkit-entropy", "\x1b[2J"]


@pytest.mark.parametrize("model_type", FOREIGN)
def test_a_foreign_model_type_is_refused(model_type: Any, directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type}))
    with pytest.raises(ValueError, match=r"config\.json: model_type is ") as error:
        load_bundle(directory)
    assert repr(model_type) in str(error.value)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architectures": ["GPT2LMHeadModel"]}, "architectures is"),
    "text for a number": ({"cross_attn_k": "2"}, "cross_attn_k is '2'"),
    "true for a number": ({"encoder_hash_byte_group_nb_functions": True}, "nb_functions is True"),
    "huge count": ({"encoder_hash_byte_group_nb_functions": 10**9}, "n-gram tables"),
    "huge size": ({"encoder_hash_byte_group_size": [3, 10**9]}, "n-gram tables"),
    "huge layers": ({"global_config": {"num_hidden_layers": 10**9}}, "layers, but the weights hold"),
    "overflow": ({"max_patch_length": 10**30}, "expected an integer below"),
    "not a number": ({"patching_threshold": float("nan")}, "config.json"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_other_values_are_refused(name: str, directory: Path) -> None:
    changes, words = CONFIGS[name]
    (directory / "bltkit.json").unlink()
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words) as error:
        load_bundle(directory)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def a_directory(path: Path) -> None:
    path.mkdir()


def a_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(f"/proc/self/fd/{folder}/{path.name}")  # a path of a socket may have 100 bytes at most
    finally:
        os.close(folder)
        server.close()


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "directory": (a_directory, "is a directory"),
    "pipe": (os.mkfifo, "is a named pipe"),
    "link": (lambda path: path.symlink_to("nowhere"), "is a link to nowhere"),
    "loop": (lambda path: path.symlink_to(path.name), "is a link to"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "socket": (a_socket, "is a socket"),
    "empty": (Path.touch, r"\S"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", "bltkit.json", "model.safetensors.index.json", "model-00001-"])
@pytest.mark.parametrize("listed", [True, False])
def test_what_is_no_file_is_named(name: str, kind: str, listed: bool, directory: Path) -> None:
    make, words = KINDS[kind]
    path = next(directory.glob(f"{name}*"))
    if not listed:
        (directory / "bltkit.json").unlink()
    path.unlink(missing_ok=True)
    make(path)
    with pytest.raises(ValueError, match=words) as error:
        load_bundle(directory)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    if listed:
        assert path.name in check_directory(directory).summary()


@pytest.mark.parametrize("verb", [["score", "ab", "--model"], ["patch", "ab", "--model"], ["check"]])
def test_weights_that_lead_nowhere_are_named_on_the_command_line(
    verb: list[str], directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Choosing a device by the size of the files said "No such file" of a link that is there."""
    for path in directory.glob("*.safetensors"):
        path.unlink()
        path.symlink_to("nowhere")
    assert cli.main([*verb, str(directory)]) == (1 if verb == ["check"] else 2)
    said = capsys.readouterr()
    assert "is a link to nowhere" in said.out + said.err


def test_calibration_leaves_the_hubs_cache_alone(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaced a blob that other revisions and programs share."""
    from bltkit.views import calibration

    monkeypatch.setattr(calibration, "resolve_model", lambda name: directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    (tmp_path / "text.txt").write_text("What is measured, here and there. " * 20)
    result = calibration.calibrate_model(
        "hf:somebody/model", [str(tmp_path / "text.txt")], 2.0, "threshold:threshold=1"
    )
    assert not result.stored and "lies in the hub's cache" in result.summary()
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of one annotated shard."""
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        text = b"text %d " % number * (number + 1)
        document = Document(f"{number}.txt", text, {"number": number})
        rows.append(AnnotatedDocument(document, rng.random(len(text) + 1, np.float32), np.array([0], np.int32), False))
    path = folder / "shard-00000.parquet"
    write_shard(path, rows, "fp32")
    entry = ShardEntry(
        file=path.name, source=0, documents=20, bytes=1, patches=20, near_threshold=0, content="", sha256=hash_of(path)
    )
    manifest = {"scorer": {"name": "m", "sha256": "0"}, "rule": None, "threshold": None, "dtype": "fp32"}
    more = {"device": "cpu", "shard_bytes": 1, "sources": [{}], "shards": [entry]}
    write_manifest(folder, ShardManifest.model_validate(manifest | more))
    return folder


def hash_of(path: Path) -> str:
    from bltkit.checkpoint.intact import sha256

    return sha256(path)


class TestShards:
    @few
    @given(st.integers(0, 2**24), st.booleans())
    def test_a_flipped_bit_is_refused(
        self, shards: Path, tmp_path_factory: pytest.TempPathFactory, bit: int, in_manifest: bool
    ) -> None:
        folder = Path(shutil.copytree(shards, tmp_path_factory.mktemp("flip") / "s"))
        file = folder / ("manifest.json" if in_manifest else "shard-00000.parquet")
        flip(file, bit)
        with pytest.raises(ValueError, match=file.name):
            list(read(AnnotatedSource(path=str(folder))))

    def test_pages_have_checksums_of_their_own(self, shards: Path, tmp_path: Path) -> None:
        path = Path(shutil.copy(shards / "shard-00000.parquet", tmp_path))
        whole = list(ShardFile(path).documents())
        refused = 0
        for place in range(40, 400, 20):
            content = path.read_bytes()
            flip(path, 8 * place)
            try:
                rows = list(ShardFile(path).documents())
            except ValueError as error:
                assert path.name in str(error)
                refused += 1
            else:
                assert [row.document for row in rows] == [row.document for row in whole]
            path.write_bytes(content)
        assert refused > 12

    def test_check(self, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = Path(shutil.copytree(shards, tmp_path / "s"))
        assert main(["check", str(folder)]) == 0
        flip(folder / "shard-00000.parquet", 800)
        assert main(["check", str(folder)]) == 1
        assert "shard-00000.parquet is damaged" in capsys.readouterr().out


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mapped")
    rng = np.random.default_rng(0)
    (folder / "texts").mkdir()
    for number in range(30):
        (folder / f"texts/{number:02}.txt").write_bytes(rng.integers(97, 122, 9_000 + number, np.uint8).tobytes())
    corpus_of(folder)
    return folder


def corpus_of(folder: Path) -> Corpus:
    source = TextSource(paths=(f"{folder}/texts/*.txt",))
    return Corpus.from_sources([source], 0.1, directory=folder / "cache")


class TestMappedCorpus:
    @few
    @given(st.integers(0, 2**24), st.integers(0, 99))
    def test_a_flipped_bit_is_refused_when_it_is_read(
        self, cache: Path, tmp_path_factory: pytest.TempPathFactory, bit: int, number: int
    ) -> None:
        folder = Path(shutil.copytree(cache / "cache", tmp_path_factory.mktemp("flip") / "cache"))
        (lies,) = folder.glob("corpus-*")
        files = sorted(path for path in lies.iterdir() if "digests" not in path.name and path.stat().st_size)
        file = files[number % len(files)]
        flip(file, bit)
        from bltkit.data.corpus import _mapped

        with pytest.raises(ValueError, match="damaged") as error:
            corpus = _mapped(lies)
            for index in range(len(corpus)):
                corpus.document(index)
        assert str(lies) in str(error.value)
        report = check_directory(folder)
        assert not report.healthy

    @pytest.mark.parametrize("workers", [0, 1])
    def test_training_stops_with_one_line(self, cache: Path, tmp_path: Path, workers: int) -> None:
        folder = Path(shutil.copytree(cache, tmp_path / "copy"))
        corpus = corpus_of(folder)
        assert corpus.folder is not None
        flip(corpus.folder / "data.u1", 8 * 200_000)
        loader = Loader(corpus, row_bytes=512, workers=workers)
        with pytest.raises(ValueError, match=r"data.u1 is damaged: block 3 \(bytes 196608 to 262143\)") as error:
            for _ in range(200):
                next(loader)
        assert "\n" not in str(error.value)
        loader.close()

    def test_what_version_1_laid_down_is_read(
        self, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = Path(shutil.copytree(cache, tmp_path / "copy"))
        lies = corpus_of(folder).folder
        assert lies is not None
        for path in lies.glob("*.crc32"):
            path.unlink()
        manifest = json.loads((lies / "manifest.json").read_text())
        del manifest["checksums"], manifest["digest"]
        (lies / "manifest.json").write_text(json.dumps(manifest))
        before = (lies / "data.u1").stat().st_ino
        corpus = corpus_of(folder)
        assert corpus.blocks is None and (lies / "data.u1").stat().st_ino == before
        assert [record.getMessage() for record in caplog.records if "has no checksums" in record.getMessage()]
        assert check_directory(folder / "cache").healthy

    def test_a_full_disk_leaves_nothing(self, cache: Path, tmp_path: Path, small_files: None) -> None:
        folder = Path(shutil.copytree(cache / "texts", tmp_path / "copy/texts")).parent
        with pytest.raises(OSError, match=r"data.u1 needs [\d,]+ bytes") as error:
            corpus_of(folder)
        assert "\n" not in str(error.value)
        assert not [path for path in (folder / "cache").iterdir() if path.is_dir()]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 20 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestSpace:
    def test_saving_names_path_and_size(self, tmp_path: Path, small_files: None) -> None:
        with pytest.raises(OSError, match=r"needs [\d,]+ bytes, [\d,]+ are free"):
            save_bundle(tmp_path / "c", bundle())
        assert list(tmp_path.iterdir()) == []

    def test_what_does_not_fit_is_refused_before_it_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="needs 1,000,000,000,000,000,000 bytes"), needs_space(tmp_path, 10**18):
            raise AssertionError

    def test_shards(self, tmp_path: Path, small_files: None) -> None:
        pytest.importorskip("pyarrow")
        text = np.random.default_rng(0).bytes(60_000)
        row = AnnotatedDocument(Document("a", text), np.zeros(len(text) + 1, np.float32), None, None)
        with pytest.raises(OSError, match=r"shard.parquet needs [\d,]+ bytes"):
            write_shard(tmp_path / "shard.parquet", [row], "fp32")
        assert list(tmp_path.iterdir()) == []


class TestLocks:
    def test_one_process_annotates_into_a_directory(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        place = Place(tmp_path)
        with writer_lock(tmp_path / "out"), pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on "):
            place.run()
        assert not (tmp_path / "out").exists() or not place.files()
        place.run()
        before = place.files()
        with writer_lock(tmp_path / "out"), pytest.raises(ValueError, match="in use by process"):
            place.run()
        assert place.files() == before

    def test_a_killed_annotation_leaves_a_lock_that_is_taken_over(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        place = Place(tmp_path)
        (tmp_path / "out").mkdir()
        record = {"pid": 2**22 + 1, "host": socket.gethostname(), "since": "then"}
        (tmp_path / "out/.writer.json").write_text(json.dumps(record))
        said: list[str] = []
        place.run(say=said.append)
        assert "taking over the lock" in said[0] and place.documents()

    def test_a_refused_annotation_leaves_nothing(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        place = Place(tmp_path)
        with pytest.raises(ValueError):
            place.run(sources=[TextSource(paths=(str(tmp_path / "none*"),))])
        assert not (tmp_path / "out").exists()
        with pytest.raises(ValueError, match="holds no annotated shards"):
            place.run("texts")
        assert not LOCK_FILES & {path.name for path in (tmp_path / "texts").iterdir()}

    def test_one_process_evaluates_into_a_directory(self, tmp_path: Path) -> None:
        place, out = place_of(tmp_path / "data", *TASKS), tmp_path / "a/out"
        (task,) = parse_tasks(["piqa"])
        with writer_lock(out), pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on "):
            evaluate(Known(), [task], place, out=out)
        assert not out.exists() or {path.name for path in out.iterdir()} <= LOCK_FILES
        evaluate(Known(), [task], place, out=out)  # empty but for the lock's files
        with writer_lock(out), pytest.raises(ValueError, match="in use by process"):
            evaluate(Known(), [task], place, out=out, resume=True)
        with pytest.raises(ValueError, match="--resume"):
            evaluate(Known(), [task], place, out=out)

    def test_a_refused_evaluation_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        place = place_of(tmp_path / "data")
        with pytest.raises(ValueError):
            evaluate(Known(), parse_tasks(["piqa"]), place, out=tmp_path / "a/b/out")
        assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_directory_with_the_files_of_a_lock_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for name in LOCK_FILES:
        (tmp_path / "c" / name).touch()
    save_bundle(tmp_path / "c", bundle())
    same(load_bundle(tmp_path / "c"), bundle())


def test_sizes_of_files(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("f")
    assert require_regular(tmp_path / "f") == require_regular(tmp_path / "link") == 3
    with pytest.raises(FileNotFoundError):
        require_regular(tmp_path / "none")
