"""The contract of every training objective: its line in `OBJECTIVES` enrols it here.

Sums of nats over rows, determined by the seed and each row, finite, and resumable bit for bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bltkit.config import dump_toml, parse
from bltkit.data import Batch, TokenBatch
from bltkit.train import TrainConfig, train
from bltkit.train.learner import Learner
from bltkit.train.objectives import OBJECTIVES, Losses
from bltkit.train.parallel import world_of
from bltkit.train.patcher import load_patcher
from bltkit.train.token_vocabulary import known_vocabulary
from bltkit.vocab import PAD, encode
from tests.processes import train_together
from tests.tiny_training import MODELS, STACK, Workplace, documents, same

FIELDS: dict[str, dict[str, Any]] = {
    "learned-boundary": {"router": STACK | {"window": 8}},
    "block-diffusion": {"block": 4},
    "token-boundary": {"tokenizer": "t.json"},
}
"""Fields beside the defaults, so that models stay tiny."""
PAIRS = [(kind, model) for kind, objective in OBJECTIVES.items() for model in objective.models]
FIRST = [(kind, objective.models[0]) for kind, objective in OBJECTIVES.items()]
LENGTH = 72


def objective_fields(kind: str) -> dict[str, Any]:
    examples = {name: info.examples[0] for name, info in OBJECTIVES[kind].model_fields.items() if info.examples}
    return {"kind": kind} | examples | FIELDS.get(kind, {})


def config_of(kind: str, model: str, place: Workplace, *overrides: str) -> TrainConfig:
    fields = place.fields(model, *overrides)
    if "objective" not in fields or fields["objective"]["kind"] != kind:
        fields["objective"] = objective_fields(kind)
    if kind == "learned-boundary":
        del fields["patching"]  # it makes the patches itself
    return parse(TrainConfig, fields, "test")


@dataclass
class Bench:
    """An objective at work on a model in float64-like quiet: the same weights each time."""

    config: TrainConfig
    learner: Learner

    def loss(self, rows: list[int], step: int = 0, learned: bool = True) -> Losses:
        """Of these rows of the texts, in this order."""
        ids = torch.full((len(rows), LENGTH), PAD)
        for place, row in enumerate(rows):
            text = encode(documents()[row][: LENGTH - 2], eos=True)
            ids[place, : len(text)] = text
        batch = Batch.from_ids(ids, None if learned else torch.zeros_like(ids, dtype=torch.bool))
        vocabulary = known_vocabulary(self.config, None)
        batch = batch if vocabulary is None else TokenBatch.of(batch, vocabulary=vocabulary)
        return self.learner.loss(batch, step)[0]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


@pytest.fixture
def bench(place: Workplace, request: pytest.FixtureRequest) -> Iterator[Bench]:
    kind, model = request.param
    config = config_of(kind, model, place)
    if model == "bpe":  # the tokenizer that a run would train
        train(config, place.path / "tokens", say=lambda line: None)
        tokenizer = next((place.path / "tokens").rglob("tokenizer.json"))
        config = config_of(kind, model, place, f"model.tokenizer={tokenizer}")
    with world_of("cpu", None) as world:
        yield Bench(config, Learner(config, world, load_patcher(config)))


def value(losses: Losses) -> float:
    return float(losses.total.detach())


@pytest.mark.parametrize("bench", PAIRS, ids=str, indirect=True)
def test_losses_are_finite_sums_with_finite_gradients(bench: Bench) -> None:
    losses = bench.loss([0, 1, 2])
    assert losses.total.shape == losses.text.shape == () and losses.total.isfinite() and losses.text.isfinite()
    assert value(losses) > 0 and float(losses.text) >= 0 and not losses.text.requires_grad
    assert len(losses.parts) == len(bench.config.objective.parts)
    assert all(nats.isfinite() and count.isfinite() and float(count) >= 0 for nats, count in losses.parts)
    losses.total.backward()
    gradients = [weight.grad for weight in bench.learner.model.parameters() if weight.grad is not None]
    assert gradients and all(bool(gradient.to_dense().isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.to_dense().any()) for gradient in gradients)


@pytest.mark.parametrize("bench", PAIRS, ids=str, indirect=True)
def test_text_is_nats_of_bytes_and_nothing_to_learn_costs_nothing(bench: Bench) -> None:
    """An untrained model needs about 8 bits for a byte; rows without targets add nothing."""
    assert float(bench.loss([0, 1]).text) > 0
    nothing = bench.loss([0, 1], learned=False)
    assert value(nothing) == float(nothing.text) == 0


@pytest.mark.parametrize("bench", PAIRS, ids=str, indirect=True)
def test_the_seed_and_the_row_decide(bench: Bench) -> None:
    with torch.no_grad():
        for step in (0, 7):
            once, again = bench.loss([0, 1], step), bench.loss([0, 1], step)
            assert value(once) == value(again) and float(once.text) == float(again.text)


@pytest.mark.parametrize("bench", PAIRS, ids=str, indirect=True)
def test_rows_do_not_meet(bench: Bench) -> None:
    """So a batch that is shared out among processes gives the same sums."""
    with torch.no_grad():
        together, turned = bench.loss([0, 1, 2]), bench.loss([2, 0, 1])
        alone = [bench.loss([row]) for row in (0, 1, 2)]
    assert float(together.text) == pytest.approx(sum(float(each.text) for each in alone), rel=1e-4)
    assert value(together) == pytest.approx(value(turned), rel=1e-4)
    if bench.config.objective.per_row:
        assert value(together) == pytest.approx(sum(map(value, alone)), rel=1e-4)


@pytest.mark.parametrize(("kind", "model"), FIRST, ids=str)
def test_a_run_resumes_bit_for_bit(kind: str, model: str, place: Workplace) -> None:
    config = config_of(kind, model, place, "trainer.max_steps=4")
    half = config.replace(trainer=config.trainer.replace(max_steps=2))
    train(config, place.path / "whole", say=lambda line: None)
    train(half, place.path / "parts", say=lambda line: None)
    train(config, place.path / "parts", resume=True, say=lambda line: None)
    same(place.tensors("parts"), place.tensors("whole"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "model"), [pair for pair in FIRST if OBJECTIVES[pair[0]].per_row], ids=lambda part: str(part)
)
def test_two_processes_train_as_one(kind: str, model: str, place: Workplace) -> None:
    config = config_of(kind, model, place, "trainer.max_steps=4")
    train(config, place.path / "one", say=lambda line: None)
    path = place.path / "config.toml"
    path.write_text(dump_toml(config.model_dump(mode="json")))
    for end in train_together(2, path, place.path / "two"):
        assert end.returncode == 0, end.stderr[-2000:]
    ours, theirs = place.losses("one"), place.losses("two")
    assert all(ours[step] == pytest.approx(theirs[step], rel=2e-5) for step in ours)


@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_models_that_it_does_not_train_are_refused_in_one_line(kind: str, place: Workplace) -> None:
    for model in sorted({"blt", "entropy", "boundary", "cnn", "bpe"} - set(OBJECTIVES[kind].models)):
        fields = place.fields(model) | {"objective": objective_fields(kind)}
        with pytest.raises(ValueError, match=f"model.kind = '{model}' does not go with objective.kind = '{kind}'") as e:
            parse(TrainConfig, fields, "test")
        assert "\n" not in str(e.value)


def test_every_kind_of_model_has_an_objective() -> None:
    assert {model["kind"] for model in MODELS.values()} == {model for _, model in PAIRS}
