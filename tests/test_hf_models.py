"""Our model types in transformers' library: the Auto classes, Trainer, peft, and the way back to our checkpoints."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import bltkit
from bltkit.checkpoint import Bundle, load_bundle, save_bundle
from bltkit.model import Blt, BltConfig, EntropyConfig, EntropyModel, NgramConfig, StackConfig
from bltkit.patching import parse_rule
from bltkit.vocab import encode
from tests.tiny import fill

pytest.importorskip("transformers")

RULES = ("space", "rise:rise=0.1", "stride:k=3,max_patch_bytes=8")
TEXTS = ("def read(path):\n    return path", "import os", "")


def tiny_bundle(rule: str = "rise:rise=0.1", documents: bool = True) -> Bundle:
    local = StackConfig(width=16, layers=1, heads=2, ffn_width=24, window=8)
    config = BltConfig(
        encoder=local,
        latent=StackConfig(width=32, layers=2, heads=4, ffn_width=48),
        decoder=local,
        ngrams=NgramConfig(sizes=(3, 4), buckets=97),
        document_masks=documents,
    )
    scorer = EntropyConfig(width=16, layers=1, heads=2, ffn_width=24, window=6, document_masks=documents)
    model, entropy_model = fill(Blt(config), 1), fill(EntropyModel(scorer), 2, head=4.0)
    return Bundle(model, entropy_model, parse_rule(rule), {"steps": 3})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("checkpoint") / "model", tiny_bundle())


def auto(directory: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    import bltkit.hf  # noqa: F401

    return AutoModelForCausalLM.from_pretrained(directory, **options)


def tokenized(directory: Path, left: bool = False, texts: tuple[str, ...] = TEXTS) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left" if left else "right")
    return tokenizer(list(texts), return_tensors="pt", padding=True)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("left", [True, False])
def test_logits_are_those_of_the_package_whatever_the_padding(rule: str, left: bool, tmp_path: Path) -> None:
    directory = save_bundle(tmp_path / "model", tiny_bundle(rule))
    model, lm = auto(directory), bltkit.load(directory)
    assert type(model).__name__ == "BltkitForCausalLM"
    batch = tokenized(directory, left)
    output = model(**batch, labels=batch.input_ids.masked_fill(batch.attention_mask == 0, -100))
    total, count = 0.0, 0
    for row, text in enumerate(TEXTS):
        real = batch.attention_mask[row] == 1
        expected = lm.logits(encode(text))
        torch.testing.assert_close(output.logits[row, real], expected, atol=1e-5, rtol=1e-5)
        losses = torch.nn.functional.cross_entropy(expected[:-1], encode(text)[1:], reduction="sum")
        total, count = total + float(losses), count + len(expected) - 1
    assert not output.logits[batch.attention_mask == 0].any()
    if not left:  # with padding to the left, transformers' loss has each row's BOS predicted as well
        assert float(output.loss.detach()) == pytest.approx(total / count, abs=1e-5)


def test_auto_classes(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    import bltkit.hf

    config = AutoConfig.from_pretrained(checkpoint)
    assert type(config) is bltkit.hf.BltkitConfig
    assert (config.vocab_size, config.eos_token_id, config.hidden_size) == (260, 2, 32)
    config.save_pretrained(tmp_path / "config")
    again = AutoConfig.from_pretrained(tmp_path / "config")
    assert again.manifest == config.manifest
    fresh = AutoModelForCausalLM.from_config(again)
    assert fresh.state_dict().keys() == auto(checkpoint).state_dict().keys()
    assert all(weight.isfinite().all() for weight in fresh.parameters())
    batch = tokenized(checkpoint)
    states = AutoModel.from_pretrained(checkpoint)(**batch).last_hidden_state
    full = auto(checkpoint)
    expected = full(**batch).logits
    logits = full.blt.decoder.head(states)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_an_entropy_model_alone(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    directory = save_bundle(tmp_path / "entropy", Bundle(None, bundle.scorer, None))
    model = auto(directory)
    assert type(model).__name__ == "BltkitEntropyForCausalLM"
    ids = encode("some words")[None]
    output = model(ids, labels=ids)
    assert isinstance(bundle.scorer, EntropyModel)
    torch.testing.assert_close(output.logits, bundle.scorer(ids))
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    model.save_pretrained(tmp_path / "again")
    same(load_bundle(tmp_path / "again").scorer, bundle.scorer)


def same(one: Any, other: Any) -> None:
    state, expected = one.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("strategy", ["ar", "speculative"])
def test_generate_is_that_of_the_package(checkpoint: Path, strategy: str) -> None:
    model, lm = auto(checkpoint), bltkit.load(checkpoint)
    batch = tokenized(checkpoint, left=True)
    output = model.generate(**batch, max_new_tokens=20, do_sample=False, strategy=strategy)
    for row, text in enumerate(TEXTS):
        made = [value - 4 for value in output[row, batch.input_ids.shape[1] :].tolist() if value not in (0, 2)]
        assert bytes(made) == lm.generate(text, max_bytes=20, temperature=0).data
    with pytest.raises(ValueError, match="row 0 begins with id 70"):
        model.generate(torch.tensor([[70, 71]]), max_new_tokens=2)


def test_saving_into_new_and_existing_directories(checkpoint: Path, tmp_path: Path) -> None:
    model, original = auto(checkpoint), load_bundle(checkpoint)
    target = tmp_path / "target"
    model.save_pretrained(target, max_shard_size="100KB")
    assert len(list(target.glob("*.safetensors"))) > 1
    (target / "optimizer.pt").write_bytes(b"something")
    model.generation_config.do_sample, model.generation_config.top_k = True, 7
    model.save_pretrained(target)
    assert [file.name for file in target.glob("*.safetensors*")] == ["model.safetensors"]
    assert (target / "optimizer.pt").exists()
    loaded = bltkit.load(target, verify=True)
    same(loaded.model, original.model)
    same(loaded.scorer, original.scorer)
    assert (loaded.rule, loaded.record) == (original.rule, original.record)
    assert auto(target).generation_config.top_k == 7
    assert auto(target).generation_config.suppress_tokens == [0, 1, 3]


def test_a_state_named_as_in_the_files_is_loaded(checkpoint: Path) -> None:
    """What Trainer does when it resumes: it reads model.safetensors by itself."""
    import safetensors.torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))
    result = model.load_state_dict(safetensors.torch.load_file(checkpoint / "model.safetensors"), strict=False)
    assert not result.missing_keys
    assert not result.unexpected_keys
    same(model, auto(checkpoint))
    model.load_state_dict(auto(checkpoint).state_dict())


LINES = "The same few words, again and again: the same few words.\n" * 4


def training(model: Any, directory: Path, out: Path, **options: Any) -> Any:
    """A short run of transformers' Trainer on one text."""
    pytest.importorskip("accelerate")
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(directory)
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=2,
        learning_rate=options.pop("learning_rate", 1e-2),
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"max_steps": 6, "save_steps": 3, **options},
    )
    rows = [{"input_ids": tokenizer(LINES[at : at + 60 + at])["input_ids"]} for at in range(0, 24, 2)]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer)


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer(checkpoint: Path, tmp_path: Path) -> None:
    model, before = auto(checkpoint), load_bundle(checkpoint)
    trainer = training(model, checkpoint, tmp_path / "run")
    trainer.train()
    history = losses(trainer)
    assert len(history) == 6
    assert history[-1] < history[0] - 0.5
    trainer.save_model(str(tmp_path / "saved"))
    saved = bltkit.load(tmp_path / "saved", verify=True)
    same(saved.model, model.blt)
    same(saved.scorer, before.scorer)  # it places patches, and is not trained
    assert saved.rule == before.rule
    # Resumed halfway, the run ends as it did: the checkpoint's own weights were read.
    again = training(auto(checkpoint), checkpoint, tmp_path / "run")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert losses(again)[:3] == history[:3]
    assert losses(again)[3:] == pytest.approx(history[3:], abs=2e-3)


def test_lora(checkpoint: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, before = auto(checkpoint), load_bundle(checkpoint)
    config = peft.LoraConfig(r=4, target_modules=r"blt\..*\.(qkv|out|gate_up|down)", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    names = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert names
    assert all("lora" in name and "scorer" not in name for name in names)
    trainer = training(adapted, checkpoint, tmp_path / "run", learning_rate=5e-2, save_strategy="no")
    trainer.train()
    history = losses(trainer)
    assert history[-1] < history[0] - 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    batch = tokenized(checkpoint)
    adapted.eval()
    expected, written = adapted(**batch).logits, adapted.generate(**batch, max_new_tokens=8, do_sample=False)
    with pytest.raises(ValueError, match="merge_and_unload"):
        model.save_pretrained(tmp_path / "unmerged")
    reread = peft.PeftModel.from_pretrained(auto(checkpoint), tmp_path / "adapter")
    torch.testing.assert_close(reread(**batch).logits, expected)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    saved = bltkit.load(tmp_path / "merged", verify=True)
    torch.testing.assert_close(saved.logits(encode(TEXTS[0])), expected[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(auto(tmp_path / "merged").generate(**batch, max_new_tokens=8, do_sample=False), written)
    assert not torch.equal(saved.logits(encode(TEXTS[0])), bltkit.load(checkpoint).logits(encode(TEXTS[0])))
    same(saved.scorer, before.scorer)


def test_dtypes(checkpoint: Path) -> None:
    assert auto(checkpoint).dtype == torch.float32
    assert auto(checkpoint, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert auto(checkpoint, dtype="float64").dtype == torch.float64
    assert auto(checkpoint, dtype="auto", device_map="cpu").dtype == torch.float32


def test_model_of_the_harness_by_its_directory(checkpoint: Path) -> None:
    """What `lm_eval --model hf --model_args pretrained=DIR` makes, once bltkit.hf has been imported."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    import bltkit.hf

    lm = HFLM(pretrained=str(checkpoint), batch_size=1, device="cpu")
    ((logprob, _),) = lm.loglikelihood([Instance("loglikelihood", {}, ("def", " main()"), 0)])
    each = bltkit.load(checkpoint).logits(encode("def main()")).log_softmax(-1)
    ids = encode("def main()")
    expected = sum(float(each[at - 1, ids[at]]) for at in range(4, len(ids)))
    assert logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": "v2"}, "revision = 'v2'"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config"),
        ({"dtype": "int4"}, r"dtype = .*int4"),
        ({"device_map": {"a": 0, "b": "cpu"}}, "lies on one device"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation"),
    ],
)
def test_arguments_that_are_not_supported_are_refused(checkpoint: Path, options: Any, message: str) -> None:
    from bltkit.hf import BltkitForCausalLM

    with pytest.raises(ValueError, match=message):
        BltkitForCausalLM.from_pretrained(checkpoint, **options)


def test_bad_inputs_are_refused_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    from bltkit.hf import BltkitConfig, BltkitForCausalLM, BltkitModel

    model, ids = auto(checkpoint), torch.tensor([[1, 5]])
    for options, message in [
        ({"input_ids": torch.tensor([[1, 260]])}, "0..259"),
        ({}, "input_ids are missing"),
        ({"input_ids": ids, "past_key_values": object()}, "past_key_values"),
        ({"inputs_embeds": torch.zeros(1, 2, 16)}, "inputs_embeds"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**options)
    with pytest.raises(ValueError, match="describes no model"):
        BltkitForCausalLM(BltkitConfig())
    with pytest.raises(ValueError, match="state_dict"):
        model.save_pretrained(tmp_path / "other", state_dict={"blt.x": torch.zeros(1)})
    with pytest.raises(ValueError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "other", push_to_hub=True)
    with pytest.raises(ValueError, match="max_shard_size"):
        model.save_pretrained(tmp_path / "other", max_shard_size="much")
    with pytest.raises(ValueError, match="no head"):
        BltkitModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        model.save_pretrained(tmp_path / "file")


def test_damage_is_found(checkpoint: Path, tmp_path: Path) -> None:
    directory = save_bundle(tmp_path / "model", tiny_bundle())
    manifest = json.loads((directory / "bltkit.json").read_text())
    manifest["rule"]["rise"] = 0.2
    (directory / "bltkit.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"bltkit\.json"):
        auto(directory)


def test_without_transformers_the_extra_is_named() -> None:
    code = "import sys; sys.modules['transformers'] = None\nimport bltkit\nbltkit.accelerate"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'bltkit[hf]'" in run.stderr.splitlines()[-1]
