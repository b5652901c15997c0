"""Training: what a step does, what a schedule says, and what a run's files tell."""

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import bltkit
from bltkit.checkpoint import load_bundle
from bltkit.config import apply_overrides, load_toml, parse
from bltkit.data import Corpus, Loader
from bltkit.model import Blt
from bltkit.patching import patch
from bltkit.train import TrainConfig, build_model, read_metrics, train
from bltkit.train.learner import Learner
from bltkit.train.optim import Optimizer, learning_rate
from tests.tiny_training import MODELS, Workplace, same

KINDS = list(MODELS)
BYTES = [kind for kind in KINDS if kind != "bpe"]  # test_token_training.py has what differs for tokens


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def gradient(norms: list[float], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Watches the updates: their gradients before clipping by the parameter's name, and their norms."""
    seen: list[dict[str, torch.Tensor]] = []
    clip = Optimizer.clip

    def watched(optimizer: Optimizer) -> torch.Tensor:
        grads = {name: weight.grad for name, weight in optimizer.weights.items() if weight.grad is not None}
        seen.append({name: grad.to_dense() if grad.is_sparse else grad.clone() for name, grad in grads.items()})
        norm = clip(optimizer)
        norms.append(float(norm))
        return norm

    monkeypatch.setattr(Optimizer, "clip", watched)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_two_batches_make_the_step_of_one_twice_as_large(
    kind: str, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    seen = gradient(norms, monkeypatch)
    place.train("two", kind, "trainer.max_steps=1", "trainer.accumulate=2")
    place.train("one", kind, "trainer.max_steps=1", "data.batch_rows=4")
    two, one = seen
    assert two.keys() == one.keys() and len(two) == len(list(build_model(place.config(kind).model).parameters()))
    for i in two:
        torch.testing.assert_close(two[i], one[i], rtol=1e-4, atol=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    (loss, *_), (other, *_) = place.losses("two")[1], place.losses("one")[1]
    assert loss == pytest.approx(other, rel=1e-5) and loss > 0


def test_the_first_step_by_hand(place: Workplace) -> None:
    """Mean nats over all targets of the first batch, clipped to norm 0.01, AdamW at the first warm-up rate."""
    config = place.config("blt", "trainer.max_steps=1", "optim.clip=0.01", "optim.tables=dense")
    train(config, place.path / "run", say=lambda line: None)
    corpus = Corpus.from_sources(config.data.sources, 0.1)
    batch = next(Loader(corpus, 64, 2, 3))
    model = cast(Blt, build_model(config.model)).reset_parameters(torch.Generator().manual_seed(3))
    assert config.patching.rule is not None
    logits = model(batch.ids, patch(config.patching.rule, batch.ids, None, batch.num_bytes))
    chosen = batch.targets != -100
    loss = -logits.log_softmax(-1)[chosen].gather(1, batch.targets[chosen][:, None]).mean()
    loss.backward()
    weights = list(model.parameters())
    norm = math.sqrt(sum(float(weight.grad.square().sum()) for weight in weights if weight.grad is not None))
    assert norm > 0.01
    row = read_metrics(place.path / "run")[0]
    assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert row["lr"] == pytest.approx(1e-2 / 3)
    for weight in weights:
        assert weight.grad is not None
        g = weight.grad * (0.01 / (norm + 1e-6))
        # After one step the bias-corrected moments are the gradient and its square.
        weight.data.mul_(1 - row["lr"] * 0.1).sub_(row["lr"] * g / (g.abs() + 1e-8))
    found = place.weights("run")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.detach(), rtol=1e-4, atol=2e-5)


def test_a_run_follows_the_schedule(place: Workplace) -> None:
    place.train("run", "cnn", "trainer.max_steps=6", "optim.schedule_steps=8")
    optim = place.config("cnn").optim
    for step, (_, _, rate) in place.losses("run").items():
        assert rate == learning_rate(optim, step - 1, 8)


@pytest.mark.parametrize("kind", ["entropy", "blt", "bpe"])
def test_loss_goes_down_on_a_text_that_repeats(kind: str, place: Workplace) -> None:
    (place.path / "r.md").write_bytes(b"abcdefgh " * 200)
    data = f'data.sources=["{place.path / "r.md"}"]'
    steps = ["trainer.max_steps=40", "optim.schedule_steps=40", "trainer.log_every=10", "optim.lr=2e-2"]
    result = place.train("run", kind, data, *steps)
    losses = [loss for loss, *_ in place.losses("run").values()]
    assert losses[0] > 2.0 and losses[-1] < 0.5 * losses[0] and result.bits_per_byte < 2.0


def test_metrics_tell_what_they_promise(place: Workplace) -> None:
    result = place.train("run", "blt", "trainer.log_every=4", "trainer.validate_every=5", "trainer.max_steps=10")
    rows = read_metrics(place.path / "run")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [4, 8, 10]
    figures = {"loss", "bits_per_byte", "bytes_per_second", "patch_bytes", "bytes_seen", "lr", "grad_norm"}
    expected = figures | {"step", "epoch", "padding"}
    for row in steps:
        assert row.keys() == expected
        assert 0 < row["bits_per_byte"] < 20 and 1 <= row["patch_bytes"] <= 4 and row["bytes_per_second"] > 0
    validations = [row for row in rows if "validation_bits_per_byte" in row]
    assert [(row["step"], row.keys()) for row in validations] == [
        (step, {"step", "validation_bits_per_byte"}) for step in (5, 10)
    ]
    assert steps[-1]["bytes_seen"] == result.bytes_seen > 0
    assert validations[-1]["validation_bits_per_byte"] == result.bits_per_byte
    assert result.steps == 10 and not result.interrupted and result.train_flops > 0


def test_losses_are_means_over_the_steps_between_reports(place: Workplace) -> None:
    place.train("each", "cnn")
    place.train("five", "cnn", "trainer.log_every=5")
    # Rows hold different numbers of targets, so the mean of means is only near.
    each = [loss for loss, *_ in place.losses("each").values()]
    five = [loss for loss, *_ in place.losses("five").values()]
    assert five == pytest.approx([sum(each[:5]) / 5, sum(each[5:]) / 5], rel=0.02)


def test_mean_patch_bytes_counts_patches_of_text_only(place: Workplace) -> None:
    """With every byte a patch there is exactly one byte in each, whatever BOS and EOS do."""
    assert place.train("run", "blt", "patching.rule=byte", "trainer.max_steps=2").mean_patch_bytes == 1.0
    assert place.train("cnn", "cnn", "trainer.max_steps=1").mean_patch_bytes is None


@pytest.mark.parametrize("kind", BYTES)
def test_the_run_directory_is_a_checkpoint(kind: str, place: Workplace) -> None:
    result = place.train("run", kind, "trainer.max_steps=2")
    found = bltkit.load(place.path / "run")
    latest = load_bundle(place.path / "run" / "step-00000002")
    record = found.record
    assert (record["steps"], record["row_bytes"], record["seed"]) == (2, 64, 3)
    assert record["bytes_seen"] == result.bytes_seen and record["train_flops"] == result.train_flops
    assert parse(TrainConfig, record["config"], "record") == place.config(kind, "trainer.max_steps=2")
    assert len(record["corpus"]) == 64 and record["sources"][0]["num_documents"] == 13
    module, again = (one.scorer if one.model is None else one.model for one in (found, latest))
    assert module is not None and again is not None
    same(dict(module.state_dict()), dict(again.state_dict()))
    assert not list((place.path / "run").rglob("*.pt"))
    if kind == "blt":
        assert len(found.generate(b"the ", max_bytes=5).data) <= 5


def test_the_config_is_kept_beside(place: Workplace) -> None:
    place.train("run", "blt", "trainer.max_steps=1")
    kept: TrainConfig = parse(TrainConfig, load_toml(place.path / "run" / "config.toml"), "kept")
    assert kept == place.config("blt", "trainer.max_steps=1")


def test_a_single_document_leaves_nothing_to_validate_on(place: Workplace) -> None:
    (place.path / "one.md").write_bytes(b"x" * 30)
    result = place.train("run", "entropy", f"data.sources={place.path / 'one.md'}", "trainer.max_steps=2")
    assert math.isfinite(result.bits_per_byte) and result.bits_per_byte > 0
    assert not any("validation_bits_per_byte" in row for row in read_metrics(place.path / "run"))


def test_a_source_that_is_held_out_whole_is_named(place: Workplace) -> None:
    for name in ("one.md", "two.md"):
        (place.path / name).write_bytes(name.encode() * 20)
    said: list[str] = []
    sources = f"data.sources=['{place.path / 'one.md'}', '{place.path / 'two.md'}']"
    place.train("run", "entropy", sources, "trainer.max_steps=1", say=said.append)
    assert len(said) == 1 and "120 bytes are held out, since documents are held out whole" in said[0]
    said.clear()
    place.train("without", "entropy", sources, "data.validation_fraction=0", "trainer.max_steps=1", say=said.append)
    assert not said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [b"a", b"\xff\x00", b"shorter than a row"])
def test_texts_shorter_than_a_row(kind: str, text: bytes, place: Workplace) -> None:
    (place.path / "short.md").write_bytes(text)
    result = place.train("run", kind, f"data.sources={place.path / 'short.md'}", "trainer.max_steps=2")
    assert result.bytes_seen == 2 * 2 * len(text) and math.isfinite(result.bits_per_byte)


def test_a_bf16_checkpoint_holds_bf16_and_the_run_stays_exact(place: Workplace) -> None:
    exact, rounded = ["trainer.max_steps=3"], ["trainer.max_steps=3", "checkpoint.dtype=bf16"]
    place.train("fp32", "entropy", *exact)
    place.train("bf16", "entropy", *rounded)
    tensors = {name: t for name, t in place.tensors("bf16").items() if not name.startswith("state.")}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    whole = place.weights("fp32")
    for name, weight in place.weights("bf16").items():
        assert torch.equal(weight, whole[name].bfloat16().float())
    assert json.loads((place.path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"
    place.train("fp32", "entropy", "trainer.max_steps=6", resume=True)
    place.train("bf16", "entropy", "trainer.max_steps=6", "checkpoint.dtype=bf16", resume=True)
    assert place.losses("bf16") == place.losses("fp32")


def test_a_loss_that_is_not_a_number_stops_the_run(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.train("run", "entropy", "trainer.max_steps=2")
    before = place.tensors("run")
    calls = 0
    real = Learner.loss

    def broken(self: Any, batch: Any, step: int) -> Any:
        nonlocal calls
        calls += 1
        losses, patches = real(self, batch, step)
        return losses._replace(total=losses.total * (math.nan if calls == 2 else 1.0)), patches

    monkeypatch.setattr(Learner, "loss", broken)
    with pytest.raises(FloatingPointError, match=r"loss of step 4 is not finite .*lower optim\.lr \(now 0\.01\)"):
        place.train("run", "entropy", "trainer.max_steps=5", resume=True)
    same(place.tensors("run"), before)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("patching={model = 'none'}",), "model 'none': no such directory"),
        (("patching.rule=threshold:threshold=1.0",), "reads entropy scores: set patching.model"),
        (("patching.rule=bpe-oracle:tokenizer=t.json",), "needs to see the byte it decides about"),
        (("data.sources=none.txt",), "none.txt does not exist"),
        (("data.row_bytes=4",), "row_bytes"),
        (("trainer.device=tpu9",), "is no device"),
    ],
)
def test_mistakes_leave_no_directory(overrides: tuple[str, ...], message: str, place: Workplace) -> None:
    with pytest.raises(ValueError) as caught:
        place.train("run", "blt", *overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (place.path / "run").exists()


def test_a_missing_tokenizer_is_noticed_before_anything_is_written(place: Workplace) -> None:
    with pytest.raises(ValueError, match=r"none\.json'?: no such file"):
        place.train("run", "boundary", f"objective.tokenizer={place.path / 'none.json'}")
    assert not (place.path / "run").exists()


def test_a_rule_and_a_scorer_that_speak_of_different_things(place: Workplace) -> None:
    place.train("entropy", "entropy", "trainer.max_steps=1")
    place.train("boundary", "boundary", "trainer.max_steps=1")
    with pytest.raises(ValueError, match=r"'bpe' reads boundary scores, but .*entropy' is an entropy model"):
        place.train("run", "blt", f"patching.model={place.path / 'entropy'}", "patching.rule=bpe")
    with pytest.raises(ValueError, match=r"reads entropy scores, but .* is a boundary model"):
        place.train("run", "blt", f"patching.model={place.path / 'boundary'}", "patching.rule=rise:rise=0.1")
    with pytest.raises(ValueError, match="stores no rule: run `blt calibrate"):
        place.train("run", "blt", "patching={}", f"patching.model={place.path / 'entropy'}")


def test_the_gradient_reaches_every_weight(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = gradient([], monkeypatch)
    for kind in KINDS:
        place.train(kind, kind, "trainer.max_steps=1")
    for kind, grads in zip(KINDS, seen, strict=True):
        names = [name for name, _ in build_model(place.config(kind).model).named_parameters()]
        still = [name for name in names if not bool(grads[name].any())]
        assert not still, f"{kind}: {still} never learn"


def test_train_is_a_function_of_the_package(place: Workplace) -> None:
    """Also once its modules were imported, which binds the same name to a package."""
    config = place.config("cnn", "trainer.max_steps=1")
    assert bltkit.train(config, place.path / "a", say=lambda line: None).steps == 1
    assert bltkit.train(config, place.path / "b", say=lambda line: None).steps == 1


@pytest.mark.parametrize("kind", ["entropy", "blt", "bpe"])
def test_a_run_starts_from_given_weights(kind: str, place: Workplace) -> None:
    place.train("first", kind)
    init = f"trainer.init={place.path / 'first'}"
    second = place.train("second", kind, init, "trainer.max_steps=1", "trainer.seed=4", "optim.lr=1e-30")
    assert second.steps == 1
    same(place.weights("second"), place.weights("first"))
    other = apply_overrides(
        place.fields(kind, init), ["model.encoder.ffn_width=32" if kind == "blt" else "model.ffn_width=32"]
    )
    with pytest.raises(ValueError, match=r"trainer.init.*another shape"):
        train(parse(TrainConfig, other, "test"), place.path / "third")
    assert not (place.path / "third").exists()
