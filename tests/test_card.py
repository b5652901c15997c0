"""The model card: what it says, that it is the same every time, and that an edited one stays."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import bltkit
from bltkit.checkpoint import Bundle, listed_files, load_bundle, save_bundle, store_rule
from bltkit.checkpoint.card import model_card
from bltkit.checkpoint.card_mark import is_generated
from bltkit.convert import convert
from bltkit.patching import ThresholdRule
from tests.tiny_training import Workplace

APACHE = "\n  Apache License\n  Version 2.0, January 2004\n"


@pytest.fixture(scope="module")
def tiny() -> bltkit.ByteLM:
    return bltkit.load("bltkit:tiny")


@pytest.fixture
def saved(tiny: bltkit.ByteLM, tmp_path: Path) -> Path:
    tiny.save(tmp_path / "tiny")
    return tmp_path / "tiny"


def metadata(text: str) -> dict[str, Any]:
    """As the hub reads it."""
    cards = pytest.importorskip("huggingface_hub")
    fields: dict[str, Any] = cards.ModelCard(text).data.to_dict()
    return fields


def test_what_it_says(tiny: bltkit.ByteLM, saved: Path) -> None:
    text = (saved / "README.md").read_text()
    assert metadata(text) == {
        "library_name": "bltkit",
        "pipeline_tag": "text-generation",
        "tags": ["bltkit", "blt", "byte-level", "tokenizer-free", "transformers"],
    }
    for said in ("| bits per byte, held-out text | not recorded |", "4.49 (measured in training)", "threshold=2.2568"):
        assert said in text
    for said in ("- stdlib: 729 documents", "licence | not stated", 'bltkit.load("', "AutoModelForCausalLM"):
        assert said in text
    assert text == model_card(tiny.bundle) and is_generated(saved / "README.md")
    assert "README.md" not in listed_files(saved)
    (saved / "README.md").write_text("# Mine\n")
    bltkit.load(saved, verify=True)


def test_its_programs_run(saved: Path) -> None:
    pytest.importorskip("transformers")
    for program in re.findall(r"```python\n(.*?)```", (saved / "README.md").read_text(), re.DOTALL):
        exec(program.replace("DIRECTORY", str(saved)).replace("64", "2"), {})


def test_record_and_licence(tiny: bltkit.ByteLM, tmp_path: Path) -> None:
    sources = [{"kind": "hub", "name": "ada/books"}, {"kind": "text", "paths": ["/data/ada/a.txt"]}, {"kind": "hub"}]
    record = {
        "config": {"data": {"sources": sources}},
        "sources": [
            {"label": "ada/books:train", "num_documents": 3, "num_bytes": 1234},
            {"label": "/data/ada/a.txt, b/c.txt", "num_documents": 1, "num_bytes": 5},
            {"label": "odd | <b>`\nname"},
        ],
        "validation_bits_per_byte": 1.23456,
        "steps": float("nan"),
    }
    (tmp_path / "LICENSE").write_text(APACHE)
    bundle = Bundle(tiny.model, tiny.scorer, tiny.rule, record)
    text = model_card(bundle, [tmp_path / "LICENSE"])
    fields = metadata(text)
    assert fields["datasets"] == ["ada/books"] and fields["license"] == "apache-2.0"
    assert "| bits per byte, held-out text | 1.2346 |" in text and "[LICENSE](LICENSE)" in text
    for line in ("- ada/books:train: 3 documents, 1,234 bytes", "- a.txt, c.txt: 1 ", "- odd \\| &lt;b>' name"):
        assert line in text
    assert "/data" not in text and "nan" not in text
    (tmp_path / "LICENSE").write_text("Terms of our own.")
    fields = metadata(model_card(bundle, [tmp_path / "LICENSE"]))
    assert (fields["license"], fields["license_name"], fields["license_link"]) == ("other", "see-license", "LICENSE")


def test_a_rule_that_transformers_does_not_know(
    tiny: bltkit.ByteLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.save(tmp_path / "plain")
    assert not caplog.records
    rules = {
        "stride:k=6": "patching rule 'stride'",
        "threshold:threshold=1.0,max_patch_bytes=8": "rule.max_patch_bytes = 8",
    }
    for number, (rule, reason) in enumerate(rules.items()):
        caplog.clear()
        tiny.with_patching(rule).save(tmp_path / str(number))
        (line,) = [entry.getMessage() for entry in caplog.records]
        assert f"transformers cannot load this checkpoint: {reason} has no place in its format" in line
        text = (tmp_path / str(number) / "README.md").read_text()
        assert f"cannot load it: {reason}" in text and "AutoModelForCausalLM" not in text
        assert "transformers" not in metadata(text)["tags"]


@pytest.mark.parametrize("name", ["BltForCausalLM", "BltModel", "BltConfig"])
def test_the_refusal_of_transformers_is_a_sentence(name: str, tiny: bltkit.ByteLM, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tiny.with_patching("stride:k=6").save(tmp_path / "stride")
    with pytest.raises(Exception, match=r"str \(value: \"This checkpoint needs bltkit: .*\.load\.\"\)$") as error:
        getattr(transformers, name).from_pretrained(tmp_path / "stride")
    assert "patching rule 'stride' has no place in transformers' format" in str(error.value)


def test_an_edited_card_stays(tiny: bltkit.ByteLM, saved: Path, tmp_path: Path) -> None:
    before = (saved / "README.md").read_text()
    store_rule(saved, ThresholdRule(threshold=1.5), {"validation_bits_per_byte": 2.0})
    after = (saved / "README.md").read_text()
    assert "threshold=1.5" in after and "2.0000" in after and after != before
    save_bundle(saved, tiny.bundle, overwrite=True)
    assert (saved / "README.md").read_text() == before
    (saved / "README.md").write_text(before.replace("stdlib", "the standard library"))
    edited = (saved / "README.md").read_text()
    store_rule(saved, ThresholdRule(threshold=1.5))
    assert (saved / "README.md").read_text() == edited
    with pytest.raises(ValueError, match=r"it holds README\.md"):
        save_bundle(saved, tiny.bundle, overwrite=True)
    convert(saved, tmp_path / "converted")
    assert (tmp_path / "converted" / "README.md").read_text() == edited


def test_converting_writes_one(saved: Path, tmp_path: Path) -> None:
    (saved / "LICENSE").write_text(APACHE)
    result = convert(saved, tmp_path / "hf", to="hf")
    text = (tmp_path / "hf" / "README.md").read_text()
    assert metadata(text)["license"] == "apache-2.0" and result.unreadable is None
    assert text == model_card(load_bundle(saved, device="meta"), [saved / "LICENSE"])
    (saved / "README.md").unlink()
    store_rule(saved, ThresholdRule(threshold=1.0, max_patch_bytes=4))
    assert not (saved / "README.md").exists()
    summary = convert(saved, tmp_path / "ours").summary()
    assert "transformers cannot load it: rule.max_patch_bytes = 4 has no place in its format" in summary
    with pytest.raises(ValueError, match=r"rule\.max_patch_bytes = 4 has no place in Hugging Face's format"):
        convert(saved, tmp_path / "none", to="hf")


def test_saving_takes_licences_along(saved: Path, tmp_path: Path) -> None:
    (saved / "LICENSE").write_text(APACHE)
    (saved / "USE_POLICY.md").write_text("Be kind.")
    bltkit.load(saved).with_patching("threshold:threshold=1.0").save(tmp_path / "copy")
    assert {"LICENSE", "USE_POLICY.md"} <= set(listed_files(tmp_path / "copy"))
    assert (tmp_path / "copy" / "LICENSE").read_text() == APACHE
    assert "[LICENSE](LICENSE), [USE_POLICY.md](USE_POLICY.md)" in (tmp_path / "copy" / "README.md").read_text()
    bltkit.load(tmp_path / "copy", verify=True)


def test_a_scorer_alone(tiny: bltkit.ByteLM, tmp_path: Path) -> None:
    save_bundle(tmp_path / "entropy", Bundle(None, tiny.scorer, None))
    text = (tmp_path / "entropy" / "README.md").read_text()
    assert "pipeline_tag" not in metadata(text) and "library_name: bltkit" in text
    assert torch.equal(load_bundle(tmp_path / "entropy").scorer.embed.weight, tiny.scorer.embed.weight)  # type: ignore[union-attr]


def test_the_end_of_a_training(tmp_path: Path) -> None:
    place, said = Workplace.at(tmp_path), list[str]()
    place.train("run", "blt", "trainer.max_steps=4", say=said.append)
    out = tmp_path / "run"
    note = "transformers will not load this run's checkpoints: patching rule 'stride' has no place in its format"
    assert said.count(note) == 1
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (bits,) = [row["validation_bits_per_byte"] for row in rows if "validation_bits_per_byte" in row]
    assert load_bundle(out).record["validation_bits_per_byte"] == bits
    assert f"| bits per byte, held-out text | {bits:.4f} |" in (out / "README.md").read_text()
    (out / "README.md").write_text("# Mine\n")
    place.train("run", "blt", "trainer.max_steps=6", resume=True)
    assert (out / "README.md").read_text() == "# Mine\n"
    assert not list(out.glob("step-*/README.md"))
