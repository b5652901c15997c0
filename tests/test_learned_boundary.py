"""Learned borders: they see nothing of what is ahead, learn by gradient, keep their rate, and are saved as a scorer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bltkit
from bltkit.checkpoint import load_bundle
from bltkit.config import parse
from bltkit.data import Batch
from bltkit.model import Blt, BltConfig, BoundaryConfig, BoundaryModel, RoutedBlt
from bltkit.model.learned_boundaries import renewed, without_router
from bltkit.patches import Patches
from bltkit.patching import BpeRule, extend, patch, start_stream
from bltkit.train import TrainConfig, read_metrics
from bltkit.train.objectives import LearnedBoundary
from bltkit.train.objectives.learned_boundary import ratio
from bltkit.vocab import BOS, OFFSET, encode
from tests.tiny_training import MODELS, Workplace, same

ROUTER = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 24, "window": 8}
OBJECTIVE = {"kind": "learned-boundary", "patch_bytes": 4.0, "router": ROUTER}


def routed(seed: int = 0) -> RoutedBlt:
    model = RoutedBlt(parse(BltConfig, MODELS["blt"], "test"), BoundaryConfig(**ROUTER))
    return model.reset_parameters(torch.Generator().manual_seed(seed))


def own_patches(model: RoutedBlt, ids: Tensor, threshold: float = 0.0, longest: int | None = None) -> Patches:
    return patch(BpeRule(threshold=threshold, max_patch_bytes=longest), ids, model.router.scores(ids))


def rows(seed: int, length: int = 40, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(OFFSET, OFFSET + 256, (count, length), generator=generator)
    ids[:, 0] = BOS
    ids[0, length // 2] = BOS
    return ids


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def config_of(place: Workplace, *overrides: str, **objective: Any) -> TrainConfig:
    fields = place.fields("blt", *overrides)
    del fields["patching"]
    return parse(TrainConfig, fields | {"objective": OBJECTIVE | objective}, "test")


def run(place: Workplace, out: str, config: TrainConfig, resume: bool = False) -> bltkit.train.Result:
    return bltkit.train.train(config, place.path / out, resume=resume, say=lambda line: None)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(1, 39))
def test_nothing_ahead_is_seen(seed: int, at: int) -> None:
    """Neither the border in front of a byte nor a prediction of it changes with the byte or what is behind it."""
    model, ids = routed(seed).double(), rows(seed)
    other = ids.clone()
    other[:, at:] = torch.where(ids[:, at:] == BOS, BOS, OFFSET + (ids[:, at:] - OFFSET + 1 + seed) % 256)
    before, after = own_patches(model, ids), own_patches(model, other)
    assert torch.equal(
        before.starts[:, : at + 1] & (ids[:, : at + 1] != BOS), after.starts[:, : at + 1] & (other[:, : at + 1] != BOS)
    )
    ours, p = model.routed(ids, before, 0.0)
    theirs, q = model.routed(other, after, 0.0)
    torch.testing.assert_close(ours[:, :at], theirs[:, :at])
    torch.testing.assert_close(p[:, :at], q[:, :at])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 5), st.integers(1, 38))
def test_no_gradient_comes_from_ahead(seed: int, at: int) -> None:
    """What the loss up to a byte teaches the router depends on the text up to there alone."""
    model, ids = routed(seed).double(), rows(seed)
    other = ids.clone()
    other[:, at + 1 :] = OFFSET + 7
    grads = []
    for each in (ids, other):
        model.zero_grad()
        logits, _ = model.routed(each, own_patches(model, each), 0.0)
        logits[:, : at + 1].logsumexp(-1).sum().backward()
        grads.append([weight.grad.clone() for weight in model.router.parameters() if weight.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 5), st.sampled_from([None, 3]))
def test_what_is_trained_is_what_is_used(seed: int, longest: int | None) -> None:
    model, ids = routed(seed), rows(seed)
    patches = own_patches(model, ids, longest=longest)
    alone = without_router(model)
    assert type(alone) is Blt and not any("router" in name for name in alone.state_dict())
    with torch.no_grad():
        assert torch.equal(model.routed(ids, patches, 0.0)[0], alone(ids, patches))


def test_the_gradient_is_that_of_going_on_with_the_old_latent() -> None:
    """By the slow way: patch for patch, p z_j + (1 - p) z_(j-1), where p is 1."""
    starts = torch.tensor([[1, 1, 0, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 1, 1]], dtype=torch.bool)
    patches = Patches.from_starts(starts)
    latents = torch.randn(2, patches.max_patches, 5, dtype=torch.float64)
    p = torch.ones(2, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(latents)
    found = renewed(latents, patches, p)
    assert torch.equal(found, latents)
    mixed = latents.clone()
    for row in range(2):
        number = 0
        for t in range(7):
            if starts[row, t + 1]:  # the border behind t completes patch `number`
                if number:
                    mixed[row, number] = p[row, t] * latents[row, number] + (1 - p[row, t]) * latents[row, number - 1]
                number += 1
    read = torch.zeros(2, patches.max_patches, 1, dtype=torch.float64)
    for row in range(2):
        read[row, : int(starts[row, 1:].sum())] = 1  # nobody reads a patch that does not end
    (ours,) = torch.autograd.grad((found * read * weights).sum(), p)
    (theirs,) = torch.autograd.grad((mixed * read * weights).sum(), p)
    torch.testing.assert_close(ours, theirs)


def test_the_router_learns_from_the_next_byte_alone() -> None:
    model, ids = routed(), rows(1)
    batch = Batch.from_ids(ids)
    objective = LearnedBoundary(weight=0.0, threshold=0.0, router=BoundaryConfig(**ROUTER))
    objective.loss(model, batch, own_patches(model, ids), 0).total.backward()
    for name, weight in model.router.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name
    # Borders that are none of the router's own teach it nothing.
    model.zero_grad()
    far = LearnedBoundary(weight=0.0, threshold=100.0, max_patch_bytes=3, router=BoundaryConfig(**ROUTER))
    far.loss(model, batch, own_patches(model, ids, 100.0, 3), 0).total.backward()
    assert all(weight.grad is None or not weight.grad.any() for weight in model.router.parameters())


@given(st.floats(1.5, 20), st.floats(0.01, 0.99), st.integers(0, 60))
def test_the_ratio_pulls_towards_the_rate(n: float, mean: float, borders: int) -> None:
    """As H-Net writes it; its slope in the probabilities has the sign of the rate's error."""
    opens = torch.arange(60)[None] < borders
    p = torch.full((1, 60), mean, dtype=torch.float64, requires_grad=True)
    found = ratio(opens, p, torch.ones(1, 60, dtype=torch.bool), n)
    share = borders / 60
    torch.testing.assert_close(
        found.item(), n / (n - 1) * ((n - 1) * share * mean + (1 - share) * (1 - mean)), rtol=1e-6, atol=1e-6
    )
    (slope,) = torch.autograd.grad(found, p)
    if abs(n * share - 1) > 1e-6:
        assert torch.equal(slope.sign(), torch.full_like(slope, 1.0 if n * share > 1 else -1.0))


def test_streaming_gives_the_same_borders() -> None:
    model, ids = routed(3), rows(3, length=30, count=1)
    whole = own_patches(model, ids)
    state, stream, opens = model.router.start(1), start_stream(BpeRule(), 1), []
    for t in range(ids.shape[1]):
        one = ids[:, t : t + 1]
        if int(one) in model.router.resets:
            state = state.forget([0])
        scores, slot = model.router.extend_scores(one, state)
        state = slot.keep([1])
        answer, stream = extend(BpeRule(), stream, one, scores)
        opens.append(bool(answer))
    ahead = [opens[t - 1] or int(ids[0, t]) == BOS for t in range(1, ids.shape[1])]
    assert ahead == whole.starts[0, 1:-1].tolist()


def test_a_checkpoint_is_a_blt_with_a_scorer(place: Workplace) -> None:
    """Trained, saved, loaded: the same borders, and scored and written with them as with any others."""
    config = config_of(place, max_patch_bytes=6)
    run(place, "run", config)
    bundle = load_bundle(place.path / "run")
    assert type(bundle.model) is Blt and isinstance(bundle.scorer, BoundaryModel)
    assert config.objective.kind == "learned-boundary" and bundle.rule == config.objective.rule
    lm = bltkit.load(str(place.path / "run"))
    text = b"with his they that he was"
    scores = bundle.scorer.scores(encode(text)[None])
    assert bundle.rule is not None
    expected = patch(bundle.rule, encode(text)[None], scores).starts[0, 1:-1].nonzero()[:, 0].tolist()
    assert list(lm.patches(text).starts) == expected
    written = lm.generate(text, max_bytes=24, temperature=0.0)
    # What was written byte by byte is what scoring finds most likely at every place.
    whole = encode(text + written.data)[None]
    patches = patch(bundle.rule, whole, bundle.scorer.scores(whole))
    with torch.no_grad():
        best = bundle.model(whole, patches)[0].argmax(-1)
    assert best[len(text) : -1].tolist() == whole[0, len(text) + 1 :].tolist()
    assert lm.score(text).bits_per_byte > 0


def test_a_broken_off_run_ends_as_a_whole_one(place: Workplace) -> None:
    run(place, "whole", config_of(place))
    run(place, "parts", config_of(place, "trainer.max_steps=4"))
    run(place, "parts", config_of(place), resume=True)
    same(place.tensors("whole"), place.tensors("parts"))


def test_training_goes_on_from_a_checkpoint(place: Workplace) -> None:
    run(place, "first", config_of(place))
    fields = config_of(place).model_dump(mode="json", exclude_none=True)
    fields["trainer"] |= {"init": str(place.path / "first"), "max_steps": 1}
    fields["optim"] |= {"lr": 1e-12, "weight_decay": 0.0}
    run(place, "second", parse(TrainConfig, fields, "test"))
    first, second = (load_bundle(place.path / out) for out in ("first", "second"))
    assert first.scorer is not None and second.scorer is not None
    for ours, theirs in zip(first.scorer.state_dict().values(), second.scorer.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3.0, 6.0])
def test_the_rate_converges(place: Workplace, n: float) -> None:
    overrides = ("trainer.max_steps=300", "data.batch_rows=8", "trainer.log_every=50", "optim.schedule_steps=300")
    run(place, "run", config_of(place, *overrides, patch_bytes=n))
    last = [row["patch_bytes"] for row in read_metrics(place.path / "run") if "patch_bytes" in row][-1]
    assert 0.8 * n < last < 1.25 * n


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patching": {"rule": "stride:k=4"}}, "leave [patching] out"),
        ({"model": MODELS["entropy"]}, "objective.kind = 'learned-boundary', which trains blt; use 'next-byte'"),
        ({"adapt": {"lora": {"rank": 2}}, "trainer": {"max_steps": 1, "init": "x"}}, "a router is trained whole"),
        ({"objective": OBJECTIVE | {"patch_bytes": 1.0}}, "patch_bytes"),
    ],
)
def test_mistakes(place: Workplace, change: dict[str, Any], said: str) -> None:
    fields = {name: value for name, value in place.fields("blt").items() if name != "patching"}
    with pytest.raises(ValueError, match=said.replace("[", r"\[").replace("]", r"\]")):
        parse(TrainConfig, fields | {"objective": OBJECTIVE} | change, "test")
