"""The block-diffusion objective: what is masked, what is scored, and a run that learns it."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bltkit.checkpoint import load_bundle
from bltkit.config import parse
from bltkit.data import IGNORE, Batch
from bltkit.model import Blt, BltConfig
from bltkit.model.masked_blocks import BlockRows
from bltkit.patches import Patches
from bltkit.train import TrainConfig, read_metrics, train
from bltkit.train.objectives import BlockDiffusion, NextByte
from bltkit.vocab import BOS, EOS, MASK, PAD
from tests import tiny
from tests.tiny_training import MODELS, Workplace, same

SHAPE = BltConfig.model_validate(MODELS["blt"])


def rows_of(seed: int, length: int = 60, num_rows: int = 3) -> tuple[Batch, Patches]:
    """Packed rows of several documents with padding at their ends, and patches at random."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 260, (num_rows, length), generator=generator)
    ids[:, 0] = BOS
    for b in range(num_rows):
        at = int(torch.randint(5, length - 12, (1,), generator=generator))
        ids[b, at : at + 2] = torch.tensor([EOS, BOS])
        ids[b, length - int(torch.randint(1, 8, (1,), generator=generator)) :] = PAD
    learned = torch.rand(ids.shape, generator=generator) < 0.8
    batch = Batch.from_ids(ids, learned)
    starts = torch.rand(num_rows, length + 1, generator=generator) < 0.3
    begins = ids == BOS
    starts[:, :-1] |= begins
    starts[:, 1:] |= begins
    return batch, Patches.from_starts(starts, batch.num_bytes)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(2, 9),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.sampled_from(["example", "block"]),
    st.sampled_from(["patches", "anywhere"]),
)
def test_loss_is_the_sum_that_the_paper_writes(seed: int, size: int, weight: float, t: str, starts: str) -> None:
    batch, patches = rows_of(seed)
    model = tiny.fill(Blt(SHAPE).double(), 1)
    objective = BlockDiffusion.model_validate({"block": size, "weight": weight, "t": t, "starts": starts})
    with torch.no_grad():
        found = objective.loss(model, batch, patches, seed)
    blocks = objective.blocks(batch.ids, patches, seed)
    hidden, probability = objective.masks(batch.ids, blocks, seed)
    with torch.no_grad():
        logits = model(batch.ids, patches, blocks.with_ids(blocks.ids.masked_fill(hidden, MASK))).log_softmax(-1)
    length = batch.ids.shape[1]
    clean = text = masked = part = 0.0
    count = 0
    for b in range(len(batch.ids)):
        for p in range(length):
            target = int(batch.targets[b, p])
            if target != IGNORE:
                clean -= float(logits[b, p, target])
                text -= float(logits[b, p, target]) if target >= 4 else 0.0
        for n in range(blocks.first.shape[1]):
            for k in range(size):
                p = int(blocks.first[b, n]) + k
                if not hidden[b, n, k] or batch.targets[b, p - 1] == IGNORE:
                    continue
                assert batch.targets[b, p - 1] == batch.ids[b, p] == blocks.ids[b, n, k]
                nats = -float(logits[b, length + n * size + k, batch.ids[b, p]])
                masked += nats / float(probability[b, n, k])
                part += nats
                count += 1
    assert math.isclose(float(found.total), clean + weight * masked, rel_tol=1e-4)
    assert math.isclose(float(found.text), text, rel_tol=1e-4)
    ((nats_found, count_found),) = found.parts
    assert int(count_found) == count
    assert math.isclose(float(nats_found), part, rel_tol=1e-4, abs_tol=1e-6)
    plain = NextByte().loss(model, batch, patches, seed)
    assert math.isclose(float(plain.total), clean, rel_tol=1e-4)


def drawn(objective: BlockDiffusion, batch: Batch, patches: Patches, seed: int) -> tuple[BlockRows, Tensor, Tensor]:
    blocks = objective.blocks(batch.ids, patches, seed)
    return blocks, *objective.masks(batch.ids, blocks, seed)


def test_masks_follow_from_the_seed_and_the_row_alone() -> None:
    batch, patches = rows_of(0)
    for starts in ("patches", "anywhere"):
        objective = BlockDiffusion.model_validate({"block": 4, "starts": starts})
        blocks, hidden, probability = drawn(objective, batch, patches, 7)
        again = drawn(objective, batch, patches, 7)
        assert torch.equal(again[1], hidden)
        other = drawn(objective, batch, patches, 8)
        assert not torch.equal(other[1], hidden)
        for b in range(3):
            own = Patches(patches.starts[b : b + 1], patches.num_bytes[b : b + 1], patches.max_patches)
            alone = objective.blocks(batch.ids[b : b + 1], own, 7)
            assert torch.equal(alone.first, blocks.first[b : b + 1])
            one, p = objective.masks(batch.ids[b : b + 1], alone, 7)
            assert torch.equal(one[0], hidden[b])
            assert torch.equal(p[0], probability[b])
        assert not bool((hidden & ~blocks.inside).any())


@pytest.mark.parametrize("t", ["example", "block"])
def test_t_is_uniform_and_masks_as_often_as_it_says(t: str) -> None:
    batch, patches = rows_of(1, num_rows=8)
    objective = BlockDiffusion.model_validate({"block": 8, "t": t})
    first, share, expected = [], [], []
    for seed in range(300):
        blocks, hidden, probability = drawn(objective, batch, patches, seed)
        assert (len(probability[0].unique()) > 1) == (t == "block")
        first.append(probability[:, 0, 0])
        share.append(hidden[blocks.inside].float().mean())
        expected.append(probability[blocks.inside].mean())
    drawn_t = torch.cat(first).sort().values
    grid = (torch.arange(len(drawn_t)) + 0.5) / len(drawn_t)
    assert float((drawn_t - grid).abs().max()) < 0.04  # Kolmogorov's bound of 2,400 draws at 0.1 %
    assert abs(float(torch.stack(share).mean() - torch.stack(expected).mean())) < 0.01
    assert float(torch.stack(share).std()) > 0.01


def test_blocks_anywhere_begin_everywhere_and_never_twice() -> None:
    batch, patches = rows_of(2)
    objective = BlockDiffusion.model_validate({"block": 4, "starts": "anywhere"})
    seen: set[int] = set()
    for seed in range(200):
        blocks = objective.blocks(batch.ids, patches, seed)
        for b in range(3):
            used = blocks.first[b][blocks.inside[b].any(-1)].tolist()
            assert len(set(used)) == len(used)
            assert used == sorted(used)
            seen |= set(used) if b == 0 else set()
    allowed = {p for p in range(1, int(batch.num_bytes[0])) if batch.ids[0, p] != BOS}
    assert seen == allowed


OBJECTIVE = "objective={kind='block-diffusion', block=4, weight=0.5}"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def test_a_run_learns_to_fill_in_and_says_so(place: Workplace) -> None:
    result = place.train("run", "blt", OBJECTIVE, "trainer.max_steps=30", "optim.schedule_steps=30")
    rows = read_metrics(place.path / "run")
    masked = [row["masked_bits_per_byte"] for row in rows if "masked_bits_per_byte" in row]
    assert masked[-1] < masked[0]
    assert rows[-1]["validation_bits_per_byte"] == result.bits_per_byte
    assert rows[-1]["validation_masked_bits_per_byte"] < masked[0]
    model = load_bundle(place.path / "run").model
    assert model is not None
    assert model.config.diffusion_block == 4
    plain = place.train("plain", "blt", "trainer.max_steps=30", "optim.schedule_steps=30")
    assert result.train_flops > plain.train_flops


def test_a_run_is_resumed_bit_for_bit(place: Workplace) -> None:
    place.train("whole", "blt", OBJECTIVE)
    place.train("pieces", "blt", OBJECTIVE, "trainer.max_steps=5", "trainer.log_every=3")
    place.train("pieces", "blt", OBJECTIVE, resume=True)
    same(place.tensors("pieces"), place.tensors("whole"))


def test_a_plain_model_goes_on_as_one_that_fills_in(place: Workplace) -> None:
    place.train("plain", "blt")
    init = f"trainer.init={place.path / 'plain'}"
    fields = place.fields("blt", OBJECTIVE, init)
    fields["model"] = {"kind": "blt"}
    train(parse(TrainConfig, fields, "test"), place.path / "run", say=lambda line: None)
    model = load_bundle(place.path / "run").model
    assert model is not None and model.config.diffusion_block == 4


def test_a_decoder_with_a_table_of_its_own(place: Workplace) -> None:
    """It trains, is saved, and Hugging Face's loader is told that it is none of its models."""
    place.train("run", "blt", OBJECTIVE, "model.decoder_input=embedding")
    model = load_bundle(place.path / "run").model
    assert model is not None and model.decoder.bytes is not None
    assert json.loads((place.path / "run" / "config.json").read_text())["model_type"] == "bltkit"
    assert not torch.equal(model.decoder.bytes.weight, model.embed.bytes.weight)
    wrong = "trainer.init=" + str(place.path / "run")
    with pytest.raises(ValueError, match="another shape"):
        place.train("other", "blt", wrong)


@pytest.mark.parametrize(
    ("kind", "override", "message"),
    [
        ("entropy", OBJECTIVE, "objective.kind = 'block-diffusion', which trains blt; use 'next-byte'"),
        ("blt", "objective={kind='block-diffusion', block=1}", "objective.block"),
        ("blt", "objective={kind='block-diffusion', weight=-1}", "objective.weight"),
        ("blt", "objective={kind='block-diffusion', blok=8}", "block"),
        ("blt", "objective={kind='block-difusion'}", "block-diffusion"),
    ],
)
def test_mistakes(place: Workplace, kind: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place.config(kind, override)
