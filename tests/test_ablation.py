"""Ablations: what their variants differ in, rows that are made once, and what the table says of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bltkit.cli import main
from bltkit.config import parse
from bltkit.data import Corpus, Loader
from bltkit.files.json_lines import read_lines
from bltkit.model import BltConfig
from bltkit.model.families import blt_params
from bltkit.patching import PatchingRule, parse_rule
from bltkit.study.ablation import AblationStudy, trainings
from bltkit.study.ablation.ablation_tables import at_best_rates, differences, section
from bltkit.study.ablation.ablation_texts import AblationTexts
from bltkit.study.ablation.catalog import ABLATIONS, ablation_named
from bltkit.study.ablation.patchers import Cuts
from bltkit.study.ablation.shapes import grown
from bltkit.study.driver import run_study
from bltkit.train import Result, TrainConfig
from bltkit.vocab import BOS
from tests.tiny_training import documents

DOCS = Path(__file__).parents[1] / "docs"
Rows = list[dict[str, Any]]


@pytest.fixture
def plan(tmp_path: Path) -> AblationStudy:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(documents(60)):
        (folder / f"{number}.txt").write_bytes(text)
    fields = {
        "name": "cross-attention",
        "steps": 2,
        "scorer_steps": 2,
        "texts": {"words": str(folder / "*.txt")},
        "rule": "stride:k=4",
        "row_bytes": 64,
        "batch_rows": 2,
    }
    return parse(AblationStudy, fields, "test")  # type: ignore[no-any-return]


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
    ) -> dict[str, dict[str, Any]]:
        figures = {"bits_per_byte": 2.0 + 0.01 * len(self.configs), "num_bytes": 100, "unit_bytes": 4.0}
        return {name: dict(figures) for name in [*texts, ""]}

    def run(self, plan: AblationStudy, out: Path, stamp: dict[str, Any] | None = None, **options: Any) -> Rows:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(trainings, "heldout", self.heldout)
            monkeypatch.setattr(trainings, "seconds_of", lambda place: 0.0)
            monkeypatch.setattr(Cuts, "of_router", lambda cuts, place: parse_rule("stride:k=4"))
            return run_study(plan, out, stamp or {}, train=self.train, **options).rows()


def paper(rows: Rows) -> str:
    """Cells and paragraphs of the section."""
    described = section(pd.DataFrame(rows))
    tables = [" | ".join(map(str, line)) for table in described.tables for line in (table.columns, *table.to_numpy())]
    return "\n".join([described.title, *described.paragraphs, *tables])


def test_rows_are_made_once(plan: AblationStudy, tmp_path: Path) -> None:
    """A study that was interrupted resumes, and one that is done does nothing."""
    out, variants = tmp_path / "out", plan.ablation.variants
    first, second, third = Stub(breaks=3), Stub(), Stub()
    both = plan.replace(seeds=2)
    with pytest.raises(KeyboardInterrupt):
        first.run(both, out)
    rows = second.run(both, out, {"commit": "x"})
    assert len(first.configs) == 3 and len(second.configs) == 2 * len(variants) - 3
    keys = [(row["variant"], row["seed"]) for row in rows]
    assert len(set(keys)) == len(keys) == 2 * len(variants)
    assert third.run(both, out) == rows and not third.configs
    assert rows[-1]["commit"] == "x" and read_lines(out / "rows.jsonl") == rows
    assert set(read_lines(DOCS / "ablations-narrow.jsonl")[0]) <= set(rows[-1]) | {"threads", "machine", "command"}


def test_rows_of_other_settings_are_refused(plan: AblationStudy, tmp_path: Path) -> None:
    only = [plan.ablation.variants[0].name]
    Stub().run(plan, tmp_path / "out", only=only)
    with pytest.raises(ValueError, match=r"a row of 'encoder: last, decoder: all', seed 0.*use a new --out"):
        Stub().run(plan.replace(steps=3), tmp_path / "out", only=only)
    # Another ablation may share the directory.
    rows = Stub().run(plan.replace(name="ngrams", steps=3), tmp_path / "out", only=["none"])
    assert [row["ablation"] for row in rows] == ["cross-attention", "ngrams"]


@pytest.mark.parametrize("name", ["ngrams", "cross-attention"])
def test_variants_differ_in_the_model_alone(name: str, plan: AblationStudy, tmp_path: Path) -> None:
    stub = Stub()
    stub.run(plan.replace(name=name), tmp_path / "out")
    models = [config.model.model_dump_json() for config in stub.configs]
    assert len(set(models)) == len(models) == len(ABLATIONS[name].variants)
    others = {config.model_dump_json(exclude={"model"}) for config in stub.configs}
    assert len(others) == 1


def test_every_variant_tries_as_many_rates_and_the_best_trains_the_other_seeds(
    plan: AblationStudy, tmp_path: Path
) -> None:
    """The stub's figures rise with every run: a variant's first rate is its best. Resumed after any run."""
    ablation, out = ablation_named("optimizer"), tmp_path / "out"
    both, stubs = plan.replace(name="optimizer", seeds=2), [Stub(breaks=4), Stub(breaks=9), Stub()]
    for stub in stubs[:2]:
        with pytest.raises(KeyboardInterrupt):
            stub.run(both, out)
    rows = stubs[2].run(both, out)
    keys = [(row["variant"], row["seed"], row["rate"]) for row in rows]
    assert len(set(keys)) == len(keys) == len(ablation.variants) * 4
    bits = {key: row["bits_per_byte"] for key, row in zip(keys, rows, strict=True)}
    best = {}
    for variant in ablation.variants:
        tried = {rate: bits[variant.name, 0, rate] for rate in ablation.rates}
        best[variant.name] = min(tried, key=tried.__getitem__)
        assert (variant.name, 1, best[variant.name]) in keys
    for row in rows:
        assert row["config"]["optim"]["lr"] == pytest.approx(plan.lr * row["rate"])
    kept = at_best_rates(pd.DataFrame(rows))
    assert set(zip(kept.variant, kept.rate, strict=True)) == set(best.items()) and len(kept) == 12
    assert "one seed, at lr | 0.0015 | 0.003 | 0.006" in paper(rows)


def test_a_seed_waits_for_the_learning_rates_of_the_first(plan: AblationStudy, tmp_path: Path) -> None:
    said = list[str]()
    both = plan.replace(name="optimizer", seeds=2)
    assert Stub().run(both, tmp_path / "out", only=["Muon:seed 1"], say=said.append) == []
    assert "Muon:seed 1: its learning rates are not all tried yet; skipping" in said
    rows = Stub().run(both, tmp_path / "out", only=["Muon"])
    assert [(row["seed"], row["rate"]) for row in rows] == [(0, 0.5), (0, 1.0), (0, 2.0), (1, 0.5)]


def test_groups_train_on_the_same_operations(plan: AblationStudy, tmp_path: Path) -> None:
    """Where the ablation says so, a variant that costs more per byte sees fewer bytes."""
    stub, ablation = Stub(), ablation_named("local")
    stub.run(plan.replace(name="local", steps=300, row_bytes=1024, patch_bytes=4.0), tmp_path / "out")
    groups: dict[str, list[tuple[int, float]]] = {}
    for variant, config in zip(ablation.variants, stub.configs, strict=True):
        steps = config.trainer.max_steps
        groups.setdefault(variant.group, []).append((steps, steps * config.train_flops(1.0, 4.0)))
    assert len(groups) == 3
    for runs in groups.values():
        assert runs[0][0] == 300 and len({steps for steps, _ in runs}) > 3
        assert all(spent == pytest.approx(runs[0][1], rel=1 / 200) for _, spent in runs)


def test_all_variants_may_be_of_another_shape(plan: AblationStudy, tmp_path: Path) -> None:
    stub, changes = Stub(), ("model.encoder.window=16", "optim.lr=1e-4")
    rows = stub.run(plan.replace(changes=changes), tmp_path / "out")
    assert all(config.model.encoder.window == 16 and config.optim.lr == 1e-4 for config in stub.configs)
    assert len({config.model.model_dump_json() for config in stub.configs}) == len(stub.configs)
    assert "model.encoder.window=16" in paper(rows)
    with pytest.raises(ValueError, match=r"unknown key 'model\.encoder\.windows'; did you mean 'window'"):
        Stub().run(plan.replace(changes=("model.encoder.windows=16",)), tmp_path / "other")
    assert not (tmp_path / "other" / "scorers").exists()


def test_two_processes_share_a_directory(plan: AblationStudy, tmp_path: Path) -> None:
    """A run that another process holds is left to it, and is no row here."""
    inner, said, variants = Stub(), list[str](), plan.ablation.variants

    class Outer(Stub):
        def train(self, config: TrainConfig, out: Path, **options: Any) -> Result:
            if not self.configs:
                inner.run(plan, tmp_path / "out", say=said.append)
            return super().train(config, out, **options)

    outer = Outer()
    rows = outer.run(plan, tmp_path / "out")
    assert len(outer.configs) == 1 and len(inner.configs) == len(variants) - 1
    skipped = [line for line in said if "another process" in line]
    assert len(skipped) == 1 and f"{variants[0].name}:seed 0" in skipped[0]
    assert sorted(row["variant"] for row in rows) == sorted(variant.name for variant in variants)


def test_rules_are_calibrated_on_what_training_reads(plan: AblationStudy, tmp_path: Path) -> None:
    texts = AblationTexts(plan, tmp_path / "out")
    rows = texts.rows(1000)
    assert all(int(row[0]) == BOS and int(row.min()) >= BOS for row in rows)
    corpus = Corpus.from_sources(list(texts.data.sources), 0.05)
    batch = next(Loader(corpus, plan.row_bytes, plan.batch_rows, 0))
    assert torch.equal(rows[0], batch.ids[0, : int(batch.num_bytes[0])])


@pytest.mark.parametrize("params", [0.8e6, 1.6e6, 3.2e6])
@pytest.mark.parametrize("local", [(64, 1, 2), (64, 2, 4), (32, 1, 2), (96, 1, 2)])
def test_grown_shapes_have_as_many_parameters(params: float, local: tuple[int, int, int]) -> None:
    config = parse(BltConfig, grown(params, *local), "test")
    assert abs(blt_params(config) / params - 1) < 0.03
    assert config.encoder.width == local[0] and (config.encoder.layers, config.decoder.layers) == local[1:]


def test_the_learned_rule_and_its_rate(plan: AblationStudy, tmp_path: Path) -> None:
    """All variants of `patching` cut at the rate of words, or at the one that is asked for."""
    stub, patching = Stub(), plan.replace(name="patching")
    only = ["words", "stride", "random", "learned"]
    stub.run(patching.replace(patch_bytes=5.0), tmp_path / "out", only=only)
    words, stride, random, learned = stub.configs
    assert str(words.patching.rule) == "space"
    assert str(stride.patching.rule) == "stride:k=5.0" and str(random.patching.rule) == "random:k=5.0"
    assert learned.objective.kind == "learned-boundary" and learned.objective.patch_bytes == 5.0
    again = Stub()
    again.run(patching, tmp_path / "other", only=["stride"])
    rule = again.configs[0].patching.rule
    assert rule is not None and 2.5 < rule.k < 5  # type: ignore[attr-defined]


def made(bits: dict[tuple[str, int], float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"variant": variant, "seed": seed, "group": "", "ablation": "none of ours", "bits_per_byte": value}
        for (variant, seed), value in bits.items()
    )


def test_differences_are_taken_seed_by_seed() -> None:
    rows = made({("a", 0): 2.0, ("a", 1): 3.0, ("b", 0): 2.1, ("b", 1): 3.3, ("c", 0): 1.0})
    table = differences(rows)
    assert table.loc["a"].isna().all()
    # The standard deviation of 0.1 and 0.3 is 0.1 sqrt 2.
    assert tuple(table.loc["b"]) == pytest.approx((0.2, 12.7062 * 0.1), rel=1e-5)
    # A single seed: the spread is that of the others.
    assert tuple(table.loc["c"]) == pytest.approx((-1.0, 12.7062 * 0.1 * 2**0.5), rel=1e-5)
    single = differences(rows[rows.seed == 0]).loc["c"]
    assert single["mean"] == pytest.approx(-1.0) and pd.isna(single.half)


def test_intervals_of_differences_hold_what_they_say() -> None:
    """Of 400 ablations with known effects, about 95 % of the intervals hold the true difference."""
    random, held, total = np.random.default_rng(0), 0, 0
    for _ in range(400):
        of_seed = random.normal(size=3)
        table = differences(
            made(
                {
                    (name, seed): value
                    for effect, name in enumerate("abcd")
                    for seed, value in enumerate(effect + of_seed + 0.1 * random.normal(size=3))
                }
            )
        )
        for effect, name in list(enumerate("abcd"))[1:]:
            held, total = held + (abs(table["mean"][name] - effect) < table.half[name]), total + 1
    assert 0.92 < held / total < 0.98


COMMITTED = {  # mean and half by variant, of the implementation before pandas
    ("ablations.jsonl", "patching"): {
        "entropy rise": (0.0023601439502765054, 0.005305576999623158),
        "words": (0.0004902325835238012, 0.005305576999623158),
        "stride": (0.0050269015302431734, 0.005305576999623158),
        "random": (0.00797619943527191, 0.005305576999623158),
        "learned": (0.011450670267564522, 0.005305576999623158),
    },
    ("ablations.jsonl", "local"): {
        "0.8M: width 64, 1+1": (-0.07411391066793849, 0.02754369047088356),
        "0.8M: width 64, 1+4": (0.11984794302534274, 0.02754369047088356),
        "0.8M: width 64, 2+4": (0.14096361485197217, 0.02754369047088356),
        "0.8M: width 32, 1+2": (0.14802863714981762, 0.02754369047088356),
        "0.8M: width 96, 1+2": (0.037189993115433806, 0.02754369047088356),
        "3.2M: width 64, 1+1": (-0.015247349572233393, 0.03895266062173011),
        "3.2M: width 64, 1+4": (0.06197620996474473, 0.03895266062173011),
        "3.2M: width 64, 2+4": (0.04410571812401187, 0.03895266062173011),
        "3.2M: width 32, 1+2": (0.29585721525905173, 0.03895266062173011),
        "3.2M: width 96, 1+2": (-0.048065121267345745, 0.03895266062173011),
    },
    ("ablations-narrow.jsonl", "patching"): {
        "entropy rise": (0.006604463882473155, 0.011906059125365982),
        "words": (0.0070157033835283045, 0.011906059125365982),
        "stride": (0.0075889013377010706, 0.011906059125365982),
        "random": (0.012799307417725059, 0.011906059125365982),
        "learned": (0.027841152316448792, 0.011906059125365982),
    },
}


def test_differences_of_the_committed_rows() -> None:
    """Figures of docs/ablations.md; halves were made with Student's t to four digits."""
    for file, name in COMMITTED:
        rows = pd.DataFrame(row for row in read_lines(DOCS / file) if row["ablation"] == name)
        table = differences(at_best_rates(rows)).dropna()
        expected = pd.DataFrame(COMMITTED[file, name], ["mean", "half"]).T
        assert list(table.index) == list(expected.index)
        assert table["mean"].to_numpy() == pytest.approx(expected["mean"].to_numpy(), abs=1e-12)
        assert table.half.to_numpy() == pytest.approx(expected.half.to_numpy(), rel=2e-4)


def test_the_page_shows_the_committed_table() -> None:
    page = (DOCS / "ablations.md").read_text(encoding="utf-8")
    for file in ("ablations.jsonl", "ablations-narrow.jsonl"):
        for _, rows in pd.DataFrame(read_lines(DOCS / file)).groupby("ablation"):
            (table,) = section(rows).tables
            assert all(f"| {' | '.join(cells)} |" in page for cells in (table.columns, *table.to_numpy()))


def test_texts_of_which_nothing_is_held_back_are_refused(plan: AblationStudy, tmp_path: Path) -> None:
    """Alone such a text would hold something back: a document that the mixture trains on."""
    lonely = tmp_path / "lonely.txt"
    lonely.write_bytes(b"only one document")
    texts = {**plan.texts, "lonely": str(lonely)}
    with pytest.raises(ValueError, match="text 'lonely': none of its 1 documents is held back"):
        Stub().run(plan.replace(texts=texts), tmp_path / "out")


def test_mistakes(plan: AblationStudy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="did you mean 'ngrams'"):
        Stub().run(plan.replace(name="ngram"), out)
    with pytest.raises(ValueError, match="needs the name of one: optimizer, patching"):
        Stub().run(plan.replace(name=""), out)
    with pytest.raises(ValueError, match="'x'"):
        Stub().run(plan, out, only=["x"])
    with pytest.raises(ValueError, match="texts of several kinds"):
        Stub().run(plan.replace(name="scripts"), out)
    assert all(name in str(AblationStudy.model_fields["name"].description) for name in ABLATIONS)


@pytest.mark.parametrize("seeds", [0, -1, 1001, 10**400])
def test_a_number_of_seeds_that_cannot_be(seeds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["study", "ablation", "patching", f"--seeds={seeds}", "--dry-run", "--out", str(tmp_path / "out")]
    assert main(line) == 2
    bound = "greater than or equal to 1" if seeds < 1 else "less than or equal to 1000"
    assert f"should be {bound}" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_runs(plan: AblationStudy, tmp_path: Path) -> None:
    """Trained and measured: patches, a learned boundary, tokens; and the table of all."""
    out = tmp_path / "out"
    patching = run_study(plan.replace(name="patching"), out, {}, only=["entropy rise", "learned"]).rows()
    both = plan.replace(name="scripts", texts={"one": plan.texts["words"], "two": plan.texts["words"]})
    scripts = run_study(both, out, {}, only=["BLT, stride", "BPE 1k"]).rows()[2:]
    assert [row["variant"] for row in patching + scripts] == ["entropy rise", "learned", "BLT, stride", "BPE 1k"]
    assert all(0 < row["bits_per_byte"] < 12 and row["unit_bytes"] > 0 for row in patching + scripts)
    assert patching[0]["scorer_bits_per_byte"] > 0
    # On what training reads the router cuts at the common rate, as all rules do; its own rate is told beside.
    learned = patching[1]
    assert learned["as_trained"]["unit_bytes"] > 0 and patching[0]["as_trained"] is None
    assert scripts[1]["by_text"]["one"]["bits_per_byte"] > 0
    assert "patching" in paper(patching) and "one: bits (bytes)" in paper(scripts)
