"""Ablations: what their variants differ in, rows that are made once, and what the table says of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bltkit.cli import main
from bltkit.config import parse
from bltkit.data import Corpus, Loader
from bltkit.model import BltConfig
from bltkit.model.families import blt_params
from bltkit.patching import PatchingRule, parse_rule
from bltkit.study.ablation import ABLATIONS, AblationSettings, AblationTools, ablation_named, run, table
from bltkit.study.ablation.heldout import HeldoutText
from bltkit.study.ablation.report import at_best_rates, difference
from bltkit.study.ablation.shapes import grown
from bltkit.study.ablation.training_settings import AblationTexts
from bltkit.study.row_file import ROWS
from bltkit.train import Result, TrainConfig
from bltkit.vocab import BOS
from tests.tiny_training import documents


@pytest.fixture
def settings(tmp_path: Path) -> AblationSettings:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(documents(60)):
        (folder / f"{number}.txt").write_bytes(text)
    texts = {"words": str(folder / "*.txt")}
    fields = {"steps": 2, "scorer_steps": 2, "texts": texts, "rule": "stride:k=4", "row_bytes": 64, "batch_rows": 2}
    found: AblationSettings = parse(AblationSettings, fields, "test")
    return found


class Stub:
    """Trains nothing; knows what it was asked for, and breaks off at the run number `breaks`."""

    def __init__(self, breaks: int | None = None) -> None:
        self.configs: list[TrainConfig] = []
        self.breaks = breaks

    def train(self, config: TrainConfig, out: Path, **options: Any) -> Result:
        stopped = len(self.configs) == self.breaks
        if not stopped:
            self.configs.append(config)
        return Result(str(out), config.trainer.max_steps, 2.0, 1000, 1e9, 4.0, stopped, "held-out")

    def heldout(
        self, config: TrainConfig, checkpoint: Path, texts: Sequence[str], rule: PatchingRule | None = None
    ) -> Mapping[str, HeldoutText]:
        found = HeldoutText(2.0 + 0.01 * len(self.configs), 100, 4.0)
        return dict.fromkeys([*texts, ""], found)

    @property
    def tools(self) -> AblationTools:
        return AblationTools(self.train, self.heldout, lambda cuts, place: parse_rule("stride:k=4"), lambda place: 0.0)


def test_rows_are_made_once(settings: AblationSettings, tmp_path: Path) -> None:
    """A study that was broken off goes on where it was, and one that is done does nothing."""
    ablation, out = ablation_named("cross-attention"), tmp_path / "out"
    first, second, third = Stub(breaks=3), Stub(), Stub()
    both = settings.replace(seeds=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        run(ablation, both, out, {}, tools=first.tools)
    rows = run(ablation, both, out, {"commit": "x"}, tools=second.tools)
    assert len(first.configs) == 3 and len(second.configs) == 2 * len(ablation.variants) - 3
    keys = [(row["variant"], row["seed"]) for row in rows]
    assert len(set(keys)) == len(keys) == 2 * len(ablation.variants)
    assert run(ablation, both, out, {}, tools=third.tools) == rows and not third.configs
    assert rows[-1]["commit"] == "x" and (out / ROWS).exists()


def test_rows_made_otherwise_are_refused(settings: AblationSettings, tmp_path: Path) -> None:
    ablation = ablation_named("cross-attention")
    only = [ablation.variants[0].name]
    run(ablation, settings, tmp_path / "out", {}, only=only, tools=Stub().tools)
    with pytest.raises(ValueError, match="made otherwise"):
        run(ablation, settings.replace(steps=3), tmp_path / "out", {}, only=only, tools=Stub().tools)


@pytest.mark.parametrize("name", ["ngrams", "cross-attention"])
def test_variants_differ_in_the_model_alone(name: str, settings: AblationSettings, tmp_path: Path) -> None:
    stub = Stub()
    run(ablation_named(name), settings, tmp_path / "out", {}, tools=stub.tools)
    models = [config.model.model_dump_json() for config in stub.configs]
    assert len(set(models)) == len(models) == len(ABLATIONS[name].variants)
    others = {config.model_dump_json(exclude={"model"}) for config in stub.configs}
    assert len(others) == 1


def test_every_variant_tries_as_many_rates_and_the_best_trains_the_other_seeds(
    settings: AblationSettings, tmp_path: Path
) -> None:
    """The stub's figures rise with every run: a variant's first rate is its best. Resumed after any run."""
    ablation, out = ablation_named("optimizer"), tmp_path / "out"
    both, stubs = settings.replace(seeds=(0, 1)), [Stub(breaks=4), Stub(breaks=9), Stub()]
    for stub in stubs[:2]:
        with pytest.raises(KeyboardInterrupt):
            run(ablation, both, out, {}, tools=stub.tools)
    rows = run(ablation, both, out, {}, tools=stubs[2].tools)
    keys = [(row["variant"], row["seed"], row["rate"]) for row in rows]
    assert len(set(keys)) == len(keys) == len(ablation.variants) * 4
    bits = {key: row["bits_per_byte"] for key, row in zip(keys, rows, strict=True)}
    best = {}
    for variant in ablation.variants:
        tried = {rate: bits[variant.name, 0, rate] for rate in ablation.rates}
        best[variant.name] = min(tried, key=tried.__getitem__)
        assert (variant.name, 1, best[variant.name]) in keys
    for row in rows:
        assert row["config"]["optim"]["lr"] == pytest.approx(settings.lr * row["rate"])
    kept = at_best_rates(rows)
    assert {(row["variant"], row["rate"]) for row in kept} == set(best.items()) and len(kept) == 12
    assert "one seed, at lr | 0.0015 | 0.003 | 0.006 |" in table(rows)


def test_groups_train_on_the_same_operations(settings: AblationSettings, tmp_path: Path) -> None:
    """Where the ablation says so, a variant that costs more per byte sees fewer bytes."""
    stub, ablation = Stub(), ablation_named("local")
    run(ablation, settings.replace(steps=300, row_bytes=1024, patch_bytes=4.0), tmp_path / "out", {}, tools=stub.tools)
    groups: dict[str, list[tuple[int, float]]] = {}
    for variant, config in zip(ablation.variants, stub.configs, strict=True):
        steps = config.trainer.max_steps
        groups.setdefault(variant.group, []).append((steps, steps * config.train_flops(1.0, 4.0)))
    assert len(groups) == 3
    for runs in groups.values():
        assert runs[0][0] == 300 and len({steps for steps, _ in runs}) > 3
        assert all(spent == pytest.approx(runs[0][1], rel=1 / 200) for _, spent in runs)


def test_all_variants_may_be_of_another_shape(settings: AblationSettings, tmp_path: Path) -> None:
    stub, changes = Stub(), ("model.encoder.window=16", "optim.lr=1e-4")
    rows = run(
        ablation_named("cross-attention"), settings.replace(changes=changes), tmp_path / "out", {}, tools=stub.tools
    )
    assert all(config.model.encoder.window == 16 and config.optim.lr == 1e-4 for config in stub.configs)
    assert len({config.model.model_dump_json() for config in stub.configs}) == len(stub.configs)
    assert "model.encoder.window=16" in table(rows)
    with pytest.raises(ValueError, match=r"unknown key 'model\.encoder\.windows'; did you mean 'window'"):
        wrong = settings.replace(changes=("model.encoder.windows=16",))
        run(ablation_named("cross-attention"), wrong, tmp_path / "other", {}, tools=Stub().tools)
    assert not (tmp_path / "other" / "scorers").exists()


def test_two_processes_share_a_directory(settings: AblationSettings, tmp_path: Path) -> None:
    """A run that another process holds is left to it, and is no row here."""
    ablation, out = ablation_named("cross-attention"), tmp_path / "out"
    inner, said = Stub(), list[str]()

    class Outer(Stub):
        def train(self, config: TrainConfig, out: Path, **options: Any) -> Result:
            if not self.configs:
                run(ablation, settings, tmp_path / "out", {}, tools=inner.tools, say=said.append)
            return super().train(config, out, **options)

    outer = Outer()
    rows = run(ablation, settings, out, {}, tools=outer.tools)
    assert len(outer.configs) == 1 and len(inner.configs) == len(ablation.variants) - 1
    assert [line for line in said if "another process" in line] == [
        f"cross-attention: {ablation.variants[0].name}, seed 0: another process is at it"
    ]
    assert sorted(row["variant"] for row in rows) == sorted(variant.name for variant in ablation.variants)


def test_rules_are_calibrated_on_what_training_reads(settings: AblationSettings, tmp_path: Path) -> None:
    texts = AblationTexts(settings, tmp_path / "out")
    rows = texts.rows(1000)
    assert all(int(row[0]) == BOS and int(row.min()) >= BOS for row in rows)
    corpus = Corpus.from_sources(list(texts.data.sources), 0.05)
    batch = next(Loader(corpus, settings.row_bytes, settings.batch_rows, 0))
    assert torch.equal(rows[0], batch.ids[0, : int(batch.num_bytes[0])])


@pytest.mark.parametrize("params", [0.8e6, 1.6e6, 3.2e6])
@pytest.mark.parametrize("local", [(64, 1, 2), (64, 2, 4), (32, 1, 2), (96, 1, 2)])
def test_grown_shapes_have_as_many_parameters(params: float, local: tuple[int, int, int]) -> None:
    config = parse(BltConfig, grown(params, *local), "test")
    assert abs(blt_params(config) / params - 1) < 0.03
    assert config.encoder.width == local[0] and (config.encoder.layers, config.decoder.layers) == local[1:]


def test_the_learned_rule_and_its_rate(settings: AblationSettings, tmp_path: Path) -> None:
    """All variants of `patching` cut at the rate of words, or at the one that is asked for."""
    stub = Stub()
    only = ["words", "stride", "random", "learned"]
    run(
        ablation_named("patching"), settings.replace(patch_bytes=5.0), tmp_path / "out", {}, only=only, tools=stub.tools
    )
    words, stride, random, learned = stub.configs
    assert str(words.patching.rule) == "space"
    assert str(stride.patching.rule) == "stride:k=5.0" and str(random.patching.rule) == "random:k=5.0"
    assert learned.objective.kind == "learned-boundary" and learned.objective.patch_bytes == 5.0
    again = Stub()
    run(ablation_named("patching"), settings, tmp_path / "other", {}, only=["stride"], tools=again.tools)
    rule = again.configs[0].patching.rule
    assert rule is not None and 2.5 < rule.k < 5  # type: ignore[attr-defined]


def test_differences_are_taken_seed_by_seed() -> None:
    bits = {("a", 0): 2.0, ("a", 1): 3.0, ("b", 0): 2.1, ("b", 1): 3.3, ("c", 0): 1.0}
    rows = [
        {"variant": variant, "seed": seed, "group": "", "ablation": "none of ours", "bits_per_byte": value}
        for (variant, seed), value in bits.items()
    ]
    assert difference("a", rows) is None
    found = difference("b", rows)
    assert found is not None and found[1] is not None
    assert found[0] == pytest.approx(0.2)
    assert found[1] == pytest.approx(12.706 * 0.1, rel=1e-3)  # sd of 0.1 and 0.3 is 0.1 sqrt 2
    # One seed of its own: the spread is that of the others.
    alone = difference("c", rows)
    assert alone is not None and alone[0] == pytest.approx(-1.0)
    assert alone[1] == pytest.approx(12.706 * 0.1 * 2**0.5, rel=1e-3)
    single = difference("c", [row for row in rows if row["seed"] == 0])
    assert single is not None and single[0] == pytest.approx(-1.0) and single[1] is None


def test_intervals_of_differences_hold_what_they_say() -> None:
    """Of 400 ablations with known effects, about 95 % of the intervals hold the true difference."""
    random, held, total = np.random.default_rng(0), 0, 0
    for _ in range(400):
        of_seed = random.normal(size=3)
        rows = [
            {"variant": name, "seed": seed, "group": "", "ablation": "none of ours", "bits_per_byte": value}
            for effect, name in enumerate("abcd")
            for seed, value in enumerate(effect + of_seed + 0.1 * random.normal(size=3))
        ]
        for effect, name in list(enumerate("abcd"))[1:]:
            found = difference(name, rows)
            assert found is not None and found[1] is not None
            held, total = held + (abs(found[0] - effect) < found[1]), total + 1
    assert 0.92 < held / total < 0.98


def test_texts_of_which_nothing_is_held_back_are_refused(settings: AblationSettings, tmp_path: Path) -> None:
    """Alone such a text would hold something back: a document that the mixture trains on."""
    lonely = tmp_path / "lonely.txt"
    lonely.write_bytes(b"only one document")
    texts = {**settings.texts, "lonely": str(lonely)}
    with pytest.raises(ValueError, match="text 'lonely': none of its 1 documents is held back"):
        run(ablation_named("ngrams"), settings.replace(texts=texts), tmp_path / "out", {}, tools=Stub().tools)


def test_mistakes(settings: AblationSettings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'ngrams'"):
        ablation_named("ngram")
    with pytest.raises(ValueError, match="has no variant 'x'"):
        run(ablation_named("ngrams"), settings, tmp_path / "out", {}, only=["x"], tools=Stub().tools)
    with pytest.raises(ValueError, match="texts of several kinds"):
        run(ablation_named("scripts"), settings, tmp_path / "out", {}, tools=Stub().tools)
    with pytest.raises(ValueError, match="no rows"):
        table([])


@pytest.mark.parametrize("seeds", [0, -1, 1001, 10**400])
def test_a_number_of_seeds_that_cannot_be(seeds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "ablation", "patching", f"--seeds={seeds}", "--out", str(tmp_path / "out")]) == 2
    assert "train with 1 to 1,000 seeds" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_runs(settings: AblationSettings, tmp_path: Path) -> None:
    """Trained and measured: patches, a learned boundary, tokens; and the table of all."""
    out = tmp_path / "out"
    patching = run(ablation_named("patching"), settings, out, {}, only=["entropy rise", "learned"])
    texts = {"one": settings.texts["words"], "two": settings.texts["words"]}
    both = settings.replace(texts=texts)
    scripts = run(ablation_named("scripts"), both, out, {}, only=["BLT, stride", "BPE 1k"])
    assert [row["variant"] for row in patching + scripts] == ["entropy rise", "learned", "BLT, stride", "BPE 1k"]
    assert all(0 < row["bits_per_byte"] < 12 and row["unit_bytes"] > 0 for row in patching + scripts)
    assert patching[0]["scorer_bits_per_byte"] > 0
    # On what training reads the router cuts at the common rate, as all rules do; its own rate is told beside.
    learned = patching[1]
    assert learned["as_trained"]["unit_bytes"] > 0 and patching[0]["as_trained"] is None
    assert scripts[1]["by_text"]["one"]["bits_per_byte"] > 0
    shown = table(patching + scripts)
    assert "## patching" in shown and "one: bits (bytes)" in shown
