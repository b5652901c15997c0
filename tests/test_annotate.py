"""Annotation: entropies that depend on nothing but the document, shards that are the same however they came about."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import annotate as package
from bltkit.annotate import ShardReader, annotate, entropies_of, plan_shards
from bltkit.annotate import shard_work as work
from bltkit.annotate.shard_work import near_threshold
from bltkit.checkpoint import Bundle, save_bundle, scorer_hash
from bltkit.cli.data import AnnotationEngine, EntropyDtype
from bltkit.cli.data import annotate as verb
from bltkit.data import Document, SourceConfig, parse_source
from bltkit.data.sources import AnnotatedSource, read
from bltkit.data.sources.shards import read_manifest
from bltkit.files import LOCK_FILES
from bltkit.model import BoundaryConfig, BoundaryModel, CnnConfig, CnnEntropy, EntropyConfig, EntropyModel, Scorer
from bltkit.patching import BothRule, PatchingRule, RiseRule, SpaceRule, ThresholdRule, parse_rule
from bltkit.patching.calibrate import calibrate, snapped
from bltkit.patching.patched import patch_text
from bltkit.views.calibration import calibrate_model
from bltkit.vocab import encode
from tests.shared import SHARED
from tests.tiny import fill

pytest.importorskip("pyarrow")

CONFIG = EntropyConfig(width=16, layers=2, heads=2, ffn_width=24, window=8)
SCORERS: dict[str, Callable[[], Any]] = {
    "windowed": lambda: EntropyModel(CONFIG),
    "everything seen": lambda: EntropyModel(CONFIG.replace(window=None, layers=1)),
    "no document masks": lambda: EntropyModel(CONFIG.replace(document_masks=False)),
    "lines": lambda: EntropyModel(CONFIG.replace(reset_at_newline=True)),
    "cnn": lambda: CnnEntropy(CnnConfig(width=8)),
    "table": lambda: fill(CnnEntropy(CnnConfig(width=8)), 3, head=4.0).table(),
}


def scorer_of(kind: str = "windowed") -> Any:
    model = SCORERS[kind]()
    return model if kind == "table" else fill(model, 1, head=4.0)


def text_of(size: int, seed: int = 0) -> bytes:
    random = np.random.RandomState(seed)
    return bytes(b"abc \n\xff"[i] for i in random.randint(6, size=size))


def texts_of(*sizes: int) -> list[bytes]:
    return [text_of(size, seed) for seed, size in enumerate(sizes)]


@pytest.mark.parametrize("kind", SCORERS)
def test_entropies_are_the_scorers(kind: str) -> None:
    scorer, texts = scorer_of(kind), texts_of(1, 63, 64, 200, 9000, 4095, 4096, 12)
    found = entropies_of(scorer, texts)
    for text, values in zip(texts, found, strict=True):
        wanted = scorer.scores(encode(text)[None])[0].numpy()
        assert values.dtype == np.float32 and values.shape == (len(text) + 1,)
        np.testing.assert_allclose(values, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["windowed", "lines"])
def test_a_documents_entropies_do_not_depend_on_its_neighbours(kind: str) -> None:
    scorer, texts = scorer_of(kind), texts_of(5, 70, 100, 80, 300, 5000, 90, 2100, 63)
    together, side_by_side = entropies_of(scorer, texts), entropies_of(scorer, texts, workers=2)
    backwards = entropies_of(scorer, texts[::-1])[::-1]
    for number, text in enumerate(texts):
        alone = entropies_of(scorer, [text])[0]
        for others in (together, side_by_side, backwards):
            assert alone.tobytes() == others[number].tobytes()


def test_threads_stay_as_they_were() -> None:
    told: list[int] = []
    before = torch.get_num_threads()
    entropies_of(scorer_of(), texts_of(10, 5000), workers=2, progress=told.append)
    assert torch.get_num_threads() == before
    assert sum(told) == 10 + 5000 + 2  # with the two BOS


@given(
    st.sampled_from(["threshold:threshold=1.2", "rise:rise=0.1", "both:threshold=1.2,rise=0.1", "space", "stride:k=2"]),
    st.lists(st.floats(0, 3, width=32), min_size=2, max_size=9),
)
def test_near_positions_are_those_that_a_nudge_turns(name: str, values: list[float]) -> None:
    rule = parse_rule(name)
    entropies = np.array([*values, 1.20005, 1.1, 1.20005], dtype=np.float32)
    near = 0
    for at in range(1, len(entropies)):
        now, before = float(entropies[at]), float(entropies[at - 1])
        by_level = "threshold" in name and abs(now - 1.2) < 1e-4
        by_rise = name.startswith(("rise", "both")) and abs(now - before - 0.1) < 1e-4
        near += by_level or by_rise
    assert near_threshold(rule, entropies) == near


class Place:
    """A folder with two sources and an entropy model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "texts").mkdir(parents=True)
        for number, size in enumerate((40, 3000, 700, 90)):
            (folder / f"texts/{number}.txt").write_bytes(text_of(size, number))
        lines = [{"text": "line " * (1 + i % 7), "lang": "en" if i % 2 else None} for i in range(40)]
        (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"text": ""}\n')
        self.scorer = scorer_of()
        ids = [encode(text_of(3000, 1))]
        scores = [self.scorer.scores(row[None])[0] for row in ids]
        self.rule = calibrate(ThresholdRule(threshold=1.0), scores, ids, 3.0)[0]
        self.save("model", self.rule)

    def save(self, name: str, rule: PatchingRule | None) -> str:
        save_bundle(self.folder / name, Bundle(None, self.scorer, rule), overwrite=True)
        return str(self.folder / name)

    @property
    def sources(self) -> list[SourceConfig]:
        return [
            parse_source({"kind": "text", "paths": [f"{self.folder}/texts/*.txt"], "weight": 2.0}),
            parse_source({"kind": "jsonl", "paths": [f"{self.folder}/lines.jsonl"]}),
        ]

    def run(self, out: str = "out", **options: Any) -> package.Annotation:
        options = {"model": str(self.folder / "model"), "shard_bytes": 700} | options
        return annotate(options.pop("sources", self.sources), options.pop("model"), self.folder / out, **options)

    def documents(self, out: str = "out", **fields: Any) -> list[Document]:
        return list(read(AnnotatedSource(path=str(self.folder / out), **fields)))

    def files(self, out: str = "out") -> dict[str, bytes]:
        paths = (self.folder / out).iterdir()
        return {path.name: path.read_bytes() for path in paths if path.name not in LOCK_FILES}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def slow_opens(scorer: Scorer, rule: PatchingRule, data: bytes) -> list[bool]:
    """`Document.opens` from the patches of the document alone."""
    patched = patch_text(data, rule, scorer.scores)
    assert patched.next_opens is not None
    return [*(at in patched.starts for at in range(1, len(data))), patched.next_opens]


def test_shards_give_back_the_documents_and_their_patches(place: Place) -> None:
    told = place.run()
    found = place.documents()
    wanted = [document for source in place.sources for document in read(source)]
    assert [(one.name, one.data) for one in found] == [(one.name, one.data) for one in wanted]
    patches = 0
    for document in found:
        assert document.opens is not None
        opens = slow_opens(place.scorer, place.rule, document.data)
        assert document.opens.tolist() == opens
        patches += 1 + sum(opens[:-1])
    assert (told.documents, told.patches) == (44, patches)
    assert told.bytes == sum(len(one.data) for one in wanted)
    assert told.mean_patch_bytes == told.bytes / patches
    assert told.shards == told.new_shards == len(list((place.folder / "out").glob("*.parquet"))) > 2
    assert ["not_utf8" in line for line in told.faults] == [True, False] and "1 empty" in told.faults[1]
    assert told.sources[0] == {"kind": "annotated", "path": str(place.folder / "out"), "source": 0, "weight": 2.0}
    lines = place.documents(source=1)
    assert [one.data for one in lines] == [one.data for one in wanted[4:]]


def test_neither_workers_nor_runs_change_a_byte(place: Place) -> None:
    place.run("one", workers=1)
    place.run("two", workers=2)
    assert place.files("one") == place.files("two")
    assert set(place.files("one")) == {"manifest.json"} | {
        entry.file for entry in read_manifest(place.folder / "one").shards
    }
    again = place.run("one")
    assert (again.new_shards, again.bytes_per_second) == (0, None) and again.patches == place.run("three").patches


@pytest.mark.parametrize("last", [0, 1, 3])
def test_a_broken_off_run_is_gone_on_with(place: Place, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    place.run("whole")
    write, written = work.write_shard, []

    def write_some(path: Path, *rest: Any) -> None:
        if len(written) == last:
            path.with_name(f".{path.name}.tmp-1").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *rest)

    monkeypatch.setattr(work, "write_shard", write_some)
    with pytest.raises(KeyboardInterrupt):
        place.run()
    with pytest.raises(ValueError, match="is not complete: `blt annotate` was broken off"):
        place.documents()
    monkeypatch.undo()
    if last == 3:
        (place.folder / "out" / written[0]).write_bytes(b"damaged")  # although it was noted as finished
        (place.folder / "out" / written[1]).unlink()
    said: list[str] = []
    told = place.run(say=said.append)
    assert told.new_shards == told.shards - (1 if last == 3 else last)
    assert place.files() == place.files("whole")
    assert bool(said) == (last > 0)


def test_a_complete_annotation_is_mended(place: Place) -> None:
    place.run()
    whole = place.files()
    (place.folder / "out/shard-00001.parquet").write_bytes(whole["shard-00001.parquet"][:-20])
    with pytest.raises(ValueError, match=r"shard-00001.parquet is damaged or changed.* run the same `blt annotate`"):
        place.documents()
    skipped = place.documents(broken="skip")
    (place.folder / "out/shard-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"shard-00001.parquet is missing"):
        place.documents()
    assert [one.name for one in skipped] == [one.name for one in place.documents(broken="skip")]
    assert 0 < len(skipped) < 44
    assert place.run().new_shards == 1
    assert place.files() == whole


def test_another_job_is_refused(place: Place) -> None:
    place.run()
    before = place.files()
    for options, name in (
        ({"rule": ThresholdRule(threshold=0.5)}, "rule"),
        ({"shard_bytes": 800}, "shard_bytes"),
        ({"dtype": "fp16"}, "dtype"),
        ({"sources": place.sources[:1]}, "sources"),
    ):
        with pytest.raises(ValueError, match=f"another job: {name} is .* choose another --out"):
            place.run(**options)
    place.scorer.head.weight.data.add_(0.01)
    with pytest.raises(ValueError, match="another job: scorer is"):
        place.run(model=place.save("other", place.rule))
    (place.folder / "texts/3.txt").write_bytes(b"something else")
    with pytest.raises(ValueError, match="the text of the sources has changed"):
        place.run()
    with pytest.raises(ValueError, match="holds no annotated shards"):
        place.run("texts")
    with pytest.raises(ValueError, match="is a file"):
        place.run("lines.jsonl")
    assert place.files() == before


def test_text_that_changed_before_the_end_is_annotated_as_it_is(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.run()
    manifest = place.folder / "out/manifest.json"
    (place.folder / "texts/3.txt").write_bytes(text_of(5000))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"shards": [], "digest": None}))
    (place.folder / "out/shard-00099.parquet").write_bytes(b"of longer text")
    place.run()
    assert place.documents()[3].data == text_of(5000)
    place.run("fresh")
    assert place.files() == place.files("fresh")


def test_a_model_that_has_moved_is_the_same_model(place: Place) -> None:
    place.run()
    assert place.run(model=place.save("moved", place.rule)).new_shards == 0
    assert AnnotatedSource(path=str(place.folder / "out")).scorer_sha256 == scorer_hash(place.scorer)
    assert scorer_hash(place.scorer.to(torch.float64)) != scorer_hash(scorer_of("cnn"))


def test_half_precision_moves_no_patch(place: Place) -> None:
    place.run("fp32")
    place.run("fp16", dtype="fp16")
    rule = str(place.rule)
    for one, two in zip(place.documents("fp32"), place.documents("fp16"), strict=True):
        assert one.opens is not None and two.opens is not None
        assert one.opens.tolist() == two.opens.tolist()
    # From the stored values, not the stored starts:
    stored = place.folder / "fp16/manifest.json"
    changed = json.loads(stored.read_text()) | {"rule": "threshold:threshold=0.0", "digest": None}
    stored.write_text(json.dumps(changed))
    for one, two in zip(place.documents("fp32"), place.documents("fp16", rule=rule), strict=True):
        assert one.opens is not None and two.opens is not None
        assert one.opens.tolist() == two.opens.tolist()
    size = {name: sum(map(len, place.files(name).values())) for name in ("fp32", "fp16")}
    assert size["fp16"] < 0.8 * size["fp32"]


def test_half_precision_refuses_what_it_could_turn(place: Place) -> None:
    with pytest.raises(ValueError, match=r"threshold = 1.2 is not midway .* `blt calibrate` finds one"):
        place.run(dtype="fp16", rule=ThresholdRule(threshold=1.2))
    assert not (place.folder / "out").exists()
    said: list[str] = []
    rise = RiseRule(rise=0.1)
    place.run(dtype="fp16", rule=rise, say=said.append)
    assert "its starts follow the fp32 entropies" in said[0]
    for document in place.documents(rule=str(rise)):
        assert document.opens is not None
        assert document.opens.tolist() == slow_opens(place.scorer, rise, document.data)
    with pytest.raises(ValueError, match="not exact in fp16; annotate with --dtype fp32"):
        place.documents(rule="both:threshold=1.0,rise=0.2")
    with pytest.raises(ValueError, match="is not midway"):
        place.documents(rule="threshold:threshold=1.2")
    assert len(place.documents(rule=str(place.rule))) == len(place.documents(rule="space")) == 44


@given(st.floats(-6, 6))
@settings(max_examples=200)
def test_snapped_thresholds_lie_between_two_numbers(value: float) -> None:
    low = np.float16(value)
    high = np.nextafter(low, np.float16("inf"))
    assert snapped((float(low) + float(high)) / 2)
    assert not snapped(float(low))
    assert not snapped(float(low) + 0.3 * (float(high) - float(low)))
    assert not snapped(float("nan")) and not snapped(float("inf"))


@pytest.mark.parametrize(
    "rule", [ThresholdRule(threshold=0.9), BothRule(threshold=0.5, rise=0.1, max_patch_bytes=3), SpaceRule()]
)
def test_another_rule_cuts_from_the_stored_entropies(place: Place, rule: PatchingRule) -> None:
    place.run()
    for document in place.documents(rule=str(rule)):
        assert document.opens is not None
        assert document.opens.tolist() == slow_opens(place.scorer, rule, document.data)


def test_a_model_without_a_rule_gives_entropies_only(place: Place) -> None:
    model = place.save("plain", None)
    told = place.run(model=model)
    assert (told.patches, told.mean_patch_bytes, told.rule) == (None, None, None)
    assert "--annotated" in told.summary()
    assert all(document.opens is None for document in place.documents())
    # Calibrated on what is stored, and then used: the way from a fresh entropy model to a BLT.
    calibrate_model(model, [], 3.0, annotated=place.folder / "out")
    source = AnnotatedSource(path=str(place.folder / "out"))
    rule = calibrate_model(model, [], 3.0, annotated=place.folder / "out").rule
    documents = list(read(source.for_model(scorer_hash(place.scorer), rule)))
    patches = sum(1 + int(one.opens[:-1].sum()) for one in documents if one.opens is not None)
    assert sum(len(one.data) for one in documents) / patches == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_stored_entropies_give_the_threshold_that_the_model_gives(place: Place, dtype: Any) -> None:
    (place.folder / "texts/4.txt").write_bytes(text_of(16_000))
    files = [f"{place.folder}/texts/*.txt", f"{place.folder}/lines.jsonl"]
    place.run(dtype=dtype)
    by_files = calibrate_model(place.save("a", place.rule), files, 2.5)
    model = place.save("b", place.rule)
    place.scorer.forward = None  # from here on nobody may run it
    by_shards = calibrate_model(model, [], 2.5, annotated=place.folder / "out")
    assert by_shards == replace(by_files, model=by_shards.model)
    assert by_shards.num_bytes > 19_000


def test_calibration_refuses_other_shards(place: Place) -> None:
    place.run(dtype="fp16")
    out = place.folder / "out"
    with pytest.raises(ValueError, match="give --files or --annotated"):
        calibrate_model(str(place.folder / "model"), [], 2.5)
    with pytest.raises(ValueError, match="differences of entropies"):
        calibrate_model(str(place.folder / "model"), [], 2.5, "rise:rise=0.1", annotated=out)
    place.scorer.head.weight.data.add_(0.01)
    with pytest.raises(ValueError, match=r"but patching\.model is another model"):
        calibrate_model(place.save("other", place.rule), [], 2.5, annotated=out)
    with pytest.raises(ValueError, match=r"texts holds no manifest.json"):
        calibrate_model(str(place.folder / "model"), [], 2.5, annotated=place.folder / "texts")


def test_a_run_checks_the_model_and_the_rule(place: Place) -> None:
    place.run()
    source = AnnotatedSource(path=str(place.folder / "out"))
    assert source.used_rule == place.rule
    assert source.for_model(scorer_hash(place.scorer), None) == source
    other = ThresholdRule(threshold=0.7)
    assert source.for_model(None, other).used_rule == other
    with pytest.raises(ValueError, match="annotate anew with that one"):
        source.for_model("0" * 64, place.rule)
    with pytest.raises(ValueError, match="name the same in both"):
        source.replace(rule=other).for_model(None, place.rule)
    with pytest.raises(ValueError, match="not decided by entropies"):
        _ = source.replace(rule="bpe").used_rule
    with pytest.raises(ValueError, match="source = 2, but it holds 2 sources"):
        place.documents(source=2)
    assert source.inputs() is not None and len(source.inputs() or ()) == 1 + len(read_manifest(source.directory).shards)


def test_models_without_entropies_are_refused(place: Place) -> None:
    boundary = fill(BoundaryModel(BoundaryConfig(**CONFIG.model_dump(exclude={"kind"}))), 1)
    save_bundle(place.folder / "boundary", Bundle(None, boundary, None))
    with pytest.raises(ValueError, match="is a boundary model, which has no entropies"):
        place.run(model=str(place.folder / "boundary"))
    with pytest.raises(ValueError, match="is not decided by entropies"):
        place.run(rule=parse_rule("bpe"))
    with pytest.raises(ValueError, match="shard-bytes = 0"):
        place.run(shard_bytes=0)
    with pytest.raises(ValueError, match="device = 'cudo' is no device"):
        place.run(device="cudo")
    with pytest.raises(ValueError, match="workers = 0"):
        place.run(workers=0)


def test_the_reader_finds_every_shard(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_shards(place.sources, 700)
    wanted = [document for source in place.sources for document in read(source)]
    forward, reader = ShardReader(plan), ShardReader(plan)
    in_order = [forward.read(shard) for shard in plan.shards]
    assert [document for shard in in_order for document in shard] == wanted
    order = np.random.RandomState(0).permutation(len(plan.shards)).tolist()
    assert all(reader.read(plan.shards[number]) == in_order[number] for number in order + order)
    assert {shard.source for shard in plan.shards} == {0, 1}
    last = {shard.source: shard for shard in plan.shards}
    assert all(shard.bytes >= 700 for shard in plan.shards if shard is not last[shard.source])
    (place.folder / "texts/1.txt").write_bytes(text_of(3000, 9))
    with pytest.raises(ValueError, match="its files changed while they were annotated"):
        [ShardReader(plan).read(shard) for shard in plan.shards]


def test_the_verb(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    config = place.folder / "config.toml"
    config.write_text(f'[model]\nkind = "blt"\n[data]\nrow_bytes = 64\nsources = ["{place.folder}/lines.jsonl"]\n')
    model, out = str(place.folder / "model"), place.folder / "out"
    verb(config, model, out, engine=AnnotationEngine.local, dtype=EntropyDtype.fp16, shard_bytes=300, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["documents"] == 40 and found["shards"] > 2 and found["bytes_per_second"] > 0
    assert {"bytes", "patches", "mean_patch_bytes", "near_threshold", "sources"} <= found.keys()
    verb(config, model, out, dtype=EntropyDtype.fp16, shard_bytes=300)
    assert "nothing was left to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"none.txt does not exist"):
        verb(config, model, place.folder / "b", [f'data.sources=["{place.folder}/none.txt"]'])
    assert not (place.folder / "b").exists()


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the ray extra")


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="needs the material beside the repository")
def test_ray_and_local_agree_byte_for_byte(tmp_path: Path) -> None:
    assert SHARED is not None
    place = Place(tmp_path)
    text = SHARED / "data/text"
    sources = [parse_source(str(text / "udhr.jsonl.zst")), parse_source(str(text / "tinyshakespeare.txt"))]
    local = place.run("local", sources=sources, shard_bytes=400_000)
    ray = place.run("ray", sources=sources, shard_bytes=400_000, engine="ray", workers=2)
    assert local.bytes > 2_000_000 and local.shards == ray.new_shards > 3
    assert place.files("local") == place.files("ray")
