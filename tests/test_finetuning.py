"""Fine-tuning through the trainer: from our checkpoints and Hugging Face's, in part, with LoRA, and on answers only."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import bltkit
from bltkit.checkpoint import Bundle, load_bundle, save_bundle
from bltkit.config import apply_overrides, dump_toml, parse
from bltkit.data.template import RECORD_KEY, ChatTemplate
from bltkit.model import EntropyModel
from bltkit.patching import parse_rule, patch
from bltkit.train import TrainConfig, read_metrics, train
from tests import golden_files
from tests.processes import train_together
from tests.tiny import fill
from tests.tiny_training import Workplace, same, state_of

LORA = "adapt.lora={rank = 2, alpha = 4.0}"
TEN = "trainer.max_steps=10"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


@pytest.fixture
def base(place: Workplace) -> str:
    """A BLT with an entropy model and the rule that reads it."""
    place.train("base", "blt", "trainer.max_steps=2")
    scorer = fill(EntropyModel(place.config("entropy").model), 1, head=4.0)  # type: ignore[arg-type]
    model, rule = load_bundle(place.path / "base").model, parse_rule("threshold:threshold=3.0")
    save_bundle(place.path / "checkpoint", Bundle(model, scorer, rule))  # type: ignore[arg-type]
    return str(place.path / "checkpoint")


@pytest.fixture
def theirs(place: Workplace) -> str:
    """A directory of Hugging Face's, without ours beside it."""
    (place.path / "hf").mkdir()
    golden_files.read("as_released").write(place.path / "hf")
    return str(place.path / "hf")


def tune(place: Workplace, out: str, init: str, *overrides: str, resume: bool = False) -> Any:
    """Fine-tunes with neither [model] nor [patching]."""
    fields = place.fields("entropy", f"trainer.init={init}")
    del fields["model"]
    config: TrainConfig = parse(TrainConfig, apply_overrides(fields, overrides), "test")
    return train(config, place.path / out, resume=resume, say=lambda line: None)


def changed(place: Workplace, out: str, base: str) -> set[str]:
    """The weights that are not those of the base."""
    old = load_bundle(base, dtype=torch.float32).model
    assert old is not None
    before, after = dict(old.state_dict()), place.weights(out)
    assert before.keys() == after.keys()
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize("whose", ["base", "theirs"])
def test_model_and_patching_come_from_the_checkpoint(
    whose: str, place: Workplace, request: pytest.FixtureRequest
) -> None:
    init = request.getfixturevalue(whose)
    old = load_bundle(init)
    tune(place, "run", init, "trainer.max_steps=3")
    new = load_bundle(place.path / "run")
    assert new.model is not None and old.model is not None and new.model.config == old.model.config
    assert new.rule == old.rule and new.scorer is not None and old.scorer is not None
    same(dict(new.scorer.state_dict()), dict(old.scorer.state_dict()))
    assert len(changed(place, "run", init)) == len(old.model.state_dict())
    rows = [row for row in read_metrics(place.path / "run") if "loss" in row]
    assert all(1 < row["patch_bytes"] < 60 for row in rows), [row["patch_bytes"] for row in rows]


def test_five_and_five_from_theirs(place: Workplace, theirs: str) -> None:
    """And the base is read once: a resumed run needs it no more."""
    tune(place, "whole", theirs, TEN)
    tune(place, "parts", theirs, "trainer.max_steps=5")
    config: TrainConfig = parse(TrainConfig, load_bundle(place.path / "parts").record["config"], "record")
    shutil.copytree(theirs, place.path / "patcher")
    shutil.rmtree(theirs)
    moved = apply_overrides(config.model_dump(mode="json", exclude_none=True), [TEN])
    moved["patching"]["model"] = str(place.path / "patcher")
    train(parse(TrainConfig, moved, "test"), place.path / "parts", resume=True, say=lambda line: None)
    same(place.tensors("parts"), place.tensors("whole"))
    assert place.losses("parts") == place.losses("whole")


@pytest.mark.parametrize(
    ("frozen", "still"),
    [
        (["ngrams"], ("embed.ngrams",)),
        (["latent", "encoder"], ("latent.", "encoder.")),
        (["embed", "encoder", "latent", "decoder.stack"], ("embed.", "encoder.", "latent.", "decoder.stack")),
    ],
)
def test_what_is_frozen_keeps_every_bit(frozen: list[str], still: tuple[str, ...], place: Workplace, base: str) -> None:
    tune(place, "whole", base, f"adapt.freeze={frozen}", TEN)
    names = load_bundle(base).model.state_dict().keys()  # type: ignore[union-attr]
    assert changed(place, "whole", base) == {name for name in names if not name.startswith(still)}
    moments = [key for key in state_of(place.path / "whole" / "latest") if key.startswith("optim.")]
    assert moments and not any(key.removeprefix("optim.").startswith(still) for key in moments)
    tune(place, "parts", base, f"adapt.freeze={frozen}", "trainer.max_steps=5")
    tune(place, "parts", base, f"adapt.freeze={frozen}", TEN, resume=True)
    same(place.tensors("parts"), place.tensors("whole"))


def test_a_part_is_set_free_in_the_middle(place: Workplace, base: str) -> None:
    tune(place, "run", base, "adapt.freeze=['latent', 'ngrams']", "trainer.max_steps=5")
    tune(place, "run", base, "adapt.freeze=['latent']", TEN, resume=True)
    assert "embed.ngrams" in changed(place, "run", base)
    assert not any(name.startswith("latent.") for name in changed(place, "run", base))


class TestLora:
    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("peft")

    @pytest.mark.parametrize("more", [(), ("trainer.checkpoint_activations=true",)], ids=["", "recomputed"])
    def test_five_and_five_are_ten(self, more: tuple[str, ...], place: Workplace, base: str) -> None:
        tune(place, "whole", base, LORA, TEN, *more)
        tune(place, "parts", base, LORA, "trainer.max_steps=5", *more)
        tune(place, "parts", base, LORA, TEN, *more, resume=True)
        same(place.tensors("parts"), place.tensors("whole"))
        assert place.losses("parts") == place.losses("whole")
        state = state_of(place.path / "whole" / "latest")
        assert any("lora_A" in name for name in state)
        assert not any("base_layer" in name for name in state if name.startswith("optim.")), "moments of what is still"

    def test_what_is_saved_is_an_ordinary_model(self, place: Workplace, base: str) -> None:
        """Adapters added in, and only the adapted matrices of the global transformer moved."""
        tune(place, "run", base, "adapt.lora={rank = 2, targets = ['qkv', 'down']}", TEN)
        moved = {name for name in changed(place, "run", base) if name.startswith("latent.")}
        assert {name.split(".")[-2] for name in moved} == {"qkv", "down"} and len(moved) == 2
        model, old = load_bundle(place.path / "run").model, load_bundle(base).model
        assert model is not None and old is not None
        for name in moved:
            change = model.state_dict()[name] - old.state_dict()[name]
            assert torch.linalg.matrix_rank(change.double(), rtol=1e-4) <= 2
        state = state_of(place.path / "run" / "latest")
        base_names = [name for name in state if name.startswith("model.") and "base_layer" in name]
        for name in base_names:
            assert torch.equal(state[name], old.state_dict()[name.removeprefix("model.").replace(".base_layer", "")])

    def test_transformers_reads_it(self, place: Workplace, theirs: str) -> None:
        """No document masks and their shapes: what their format can say."""
        transformers = pytest.importorskip("transformers")
        tune(place, "run", theirs, LORA, "trainer.max_steps=3")
        theirs_now = transformers.BltForCausalLM.from_pretrained(place.path / "run", attn_implementation="eager").eval()
        ids = torch.tensor([[1, *(byte + 4 for byte in b"the of and a to in is you")]])
        with torch.no_grad():
            logits = theirs_now(ids).logits
        ours = load_bundle(place.path / "run")
        assert ours.model is not None and ours.scorer is not None and ours.rule is not None
        patches = patch(ours.rule, ids, ours.scorer.scores(ids))
        with torch.no_grad():
            torch.testing.assert_close(ours.model(ids, patches), logits, rtol=1e-4, atol=1e-4)
        assert len(bltkit.load(place.path / "run").generate(b"the ", max_bytes=3).data) <= 3

    def test_changing_to_or_from_lora_is_refused(self, place: Workplace, base: str) -> None:
        tune(place, "run", base, LORA, "trainer.max_steps=2")
        for adapters in ("adapt={}", "adapt.lora={rank = 3}"):
            with pytest.raises(ValueError, match=r"adapt\.lora\.\w+ = .* differs from the run's own"):
                tune(place, "run", base, adapters, TEN, resume=True)

    @pytest.mark.slow
    @pytest.mark.parametrize("adapt", [LORA, "adapt.freeze=['ngrams', 'latent']", "adapt={}"])
    def test_two_processes_train_as_one(self, adapt: str, place: Workplace, base: str) -> None:
        fields = place.fields("entropy", f"trainer.init={base}", adapt, TEN)
        del fields["model"]
        config = place.path / "lora.toml"
        config.write_text(dump_toml(fields))
        for end in train_together(2, config, place.path / "two"):
            assert end.returncode == 0, end.stderr[-2000:]
        tune(place, "one", base, adapt, TEN)
        for step, figures in place.losses("two").items():
            assert figures == pytest.approx(place.losses("one")[step], rel=2e-5), step
        ours, theirs = place.weights("two"), place.weights("one")
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            # A tenth of one update: where a gradient is all but 0, AdamW makes steps of its rounding.
            torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-3)
        tune(place, "two", base, adapt, "trainer.max_steps=12", resume=True)
        assert len(place.losses("two")) == 12


class TestAnswersOnly:
    PAIRS = (("2+2=", "4"), ("3+1=", "four"), ("the capital of France is ", "Paris"), ("", "hm"), ("1", "2" * 90))

    def write(self, place: Workplace, name: str, records: list[Any]) -> str:
        (place.path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(place.path / name)

    def test_losses_count_completions_alone(self, place: Workplace, base: str) -> None:
        """Each document once and an EOS behind each: the targets of an epoch."""
        path = self.write(place, "p.jsonl", [{"prompt": ask, "completion": say} for ask, say in self.PAIRS])
        source = f"data.sources=[{{kind = 'prompts', paths = '{path}'}}]"
        data = [source, "data.validation_fraction=0", "data.row_bytes=256", "data.batch_rows=1"]
        tune(place, "run", base, *data, "trainer.max_steps=1", "optim.lr=1e-30")
        (row,) = [row for row in read_metrics(place.path / "run") if "loss" in row]
        answers, text = sum(len(say) for _, say in self.PAIRS), sum(len(ask + say) for ask, say in self.PAIRS)
        assert row["bytes_seen"] == text
        ratio = (row["bits_per_byte"] * answers) / (row["loss"] / 0.6931471805599453 * (answers + len(self.PAIRS)))
        assert 0.5 < ratio < 1.0, "text's share of the loss, all of it on completions and EOS"

    def test_prompts_have_no_gradient(self, place: Workplace, base: str) -> None:
        """Other prompts' bytes as targets would change the loss of an untrained head."""
        first = self.write(place, "a.jsonl", [{"prompt": "aaaa", "completion": "x"}] * 3)
        source = "data.sources=[{{kind = 'prompts', paths = '{}'}}]"
        more = ["data.validation_fraction=0", "trainer.max_steps=30", "optim.lr=3e-2", "optim.schedule_steps=30"]
        tune(place, "run", base, source.format(first), *more)
        losses = place.losses("run")
        assert losses[30][0] < 0.2 < losses[1][0]
        model = load_bundle(place.path / "run").model
        assert model is not None
        ids = torch.tensor([[1, *(byte + 4 for byte in b"aaaa")]])
        with torch.no_grad():
            likely = model(ids, patch(parse_rule("byte"), ids)).softmax(-1)[0]
        assert likely[4, ord("x") + 4] > 0.5 and likely[0, ord("a") + 4] < 0.1

    def test_the_template_is_in_the_record(self, place: Workplace, base: str) -> None:
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        path = self.write(place, "c.jsonl", [{"messages": messages}] * 4)
        tune(place, "run", base, f"data.sources=[{{kind = 'chat', paths = '{path}'}}]", "trainer.max_steps=1")
        record = load_bundle(place.path / "run").record
        assert ChatTemplate.model_validate(record[RECORD_KEY]) == ChatTemplate()
        assert RECORD_KEY not in load_bundle(place.path / "base").record
