"""The ledger of generation: the paper's figures from the passes it states, and ours from shapes, by hand.

The paper's rows are read from the notes beside the repository, not copied from there.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from bltkit import vocab
from bltkit.cost.formulas.fast_blt import GB, PaperPasses, paper_gb, paper_params, paper_passes
from bltkit.generate import STRATEGIES, Passes, Request, Session, Speculative, generate, strategy_of
from bltkit.generate.ledger import WeightReads
from bltkit.model import Blt, CnnConfig, CnnEntropy, EntropyConfig, EntropyModel
from bltkit.patching import parse_rule
from tests import tiny
from tests.rows import GREEDY, by, counted, example, tempered
from tests.shared import SHARED

needs_paper = pytest.mark.skipif(SHARED is None, reason="needs the paper's figures beside the repository")

P_DEC, P_REST = 160e6, {"1B": 1.30e9, "3B": 2.85e9}
LENGTHS = {"FR-EN": 512, "DE-EN": 512, "HumanEval": 512, "MBPP": 256}
TITLE = re.compile(r"\*\*(1B|3B), (\S+)\*\* \(score")


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Tables 3 to 10."""

    size: str
    task: str
    setting: str
    acceptance: float | None
    decoder: int
    encoder: int
    gb: float
    saved: float | None

    @property
    def num_bytes(self) -> int:
        return LENGTHS[self.task]

    @property
    def way(self) -> str:
        """BLT, BLT-S, D or DV."""
        return re.split(r"-\d| k=| AR", self.setting)[0]

    @property
    def block(self) -> int:
        found = re.search(r"k=(\d+)|-(\d+) ", self.setting)
        assert found is not None
        return int(found[1] or found[2])

    @property
    def estimate(self) -> float:
        return paper_gb(self.decoder, self.encoder, P_DEC, P_REST[self.size])


@cache
def paper_rows() -> tuple[PaperRow, ...]:
    assert SHARED is not None
    found, table = [], None
    for line in (SHARED / "spec/fast_blt.md").read_text(encoding="utf-8").splitlines():
        if title := TITLE.match(line):
            table = title.groups()
        elif line.startswith(("#", "**")):
            table = None
        elif table is not None and re.match(r"\| (BLT|D|DV)[ -]", line):
            setting, _, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
            acceptance, decoder, encoder, gb, saved = (None if n == "–" else float(n) for n in numbers)
            assert decoder is not None and encoder is not None and gb is not None
            share = None if acceptance is None else acceptance / 100
            found.append(PaperRow(*table, setting, share, int(decoder), int(encoder), gb, saved))
    return tuple(found)


@needs_paper
def test_all_rows_of_the_paper_are_read() -> None:
    rows = paper_rows()
    assert len(rows) == len({(row.size, row.task, row.setting) for row in rows}) == 223
    counts = {way: sum(row.way == way for row in rows) for way in ("BLT", "BLT-S", "D", "DV")}
    assert counts == {"BLT": 8, "BLT-S": 24, "D": 96, "DV": 95}
    assert {(row.size, row.task) for row in rows} == {(size, task) for size in P_REST for task in LENGTHS}


@needs_paper
def test_the_formula_gives_the_papers_gigabytes() -> None:
    """Within what two rounded constants can do; a sign, a factor or a pass mistaken would be off by far more."""
    worst = max(abs(row.estimate / row.gb - 1) for row in paper_rows())
    assert 0.001 < worst < 0.023


@needs_paper
def test_the_formula_gives_the_papers_savings() -> None:
    """Against plain BLT of the same table: the printed gigabytes' to a hundredth, ours' to the formula's error."""
    plain = {(row.size, row.task): row for row in paper_rows() if row.way == "BLT"}
    for row in paper_rows():
        of = plain[row.size, row.task]
        assert (row.saved is None) == (row is of)
        if row.saved is not None:
            assert 100 * (1 - row.gb / of.gb) == pytest.approx(row.saved, abs=0.011)
            assert 100 * (1 - row.estimate / of.estimate) == pytest.approx(row.saved, abs=2.3)


@needs_paper
def test_rounds_of_the_paper() -> None:
    """Two passes of encoder and global a round of drafting and verification, one a block without verification."""
    shares = []
    for row in paper_rows():
        if row.way == "D":
            assert row.acceptance is None and row.encoder * row.block == row.num_bytes
            assert row.num_bytes / row.block < row.decoder < row.num_bytes
        if row.acceptance is not None:
            speculative, one_step = row.way == "BLT-S", row.setting.endswith("one")
            per_round = row.block + 1 if speculative else 2
            model = paper_passes(row.num_bytes, row.block, row.acceptance, per_round)
            shares.append(row.encoder / model.rounds)
            assert row.encoder == pytest.approx(model.encoder, rel=0.055)
            if speculative or one_step:
                assert row.decoder == pytest.approx(model.decoder, rel=0.06)
            else:
                assert row.decoder > model.decoder - 1  # several unmasking steps
    assert len(shares) == 119
    assert (round(min(shares), 2), round(max(shares), 2)) == (2.00, 2.11)
    assert sum(shares) / len(shares) == pytest.approx(2.03, abs=0.005)


@needs_paper
@pytest.mark.parametrize(
    ("task", "setting", "printed", "reused"),
    [
        ("FR-EN", "BLT-S k=8", 52, 71),
        ("FR-EN", "BLT-S k=16", 62, 75),
        ("FR-EN", "DV-8 one", 58, 78),
        ("FR-EN", "DV-16 one", 69, 84),
        ("HumanEval", "BLT-S k=8", 46, 68),
        ("HumanEval", "DV-8 one", 54, 76),
        ("MBPP", "BLT-S k=16", 77, 85),
        ("MBPP", "DV-8 one", 72, 86),
        ("MBPP", "DV-16 one", 81, 90),
    ],
)
def test_what_reusing_latents_would_save(task: str, setting: str, printed: int, reused: int) -> None:
    """Percent less than plain BLT of the 3B models, as printed and with one pass of encoder and global a round."""
    table = {row.setting: row for row in paper_rows() if (row.size, row.task) == ("3B", task)}
    row, plain = table[setting], table["BLT AR"]
    assert row.saved is not None and row.acceptance is not None and round(row.saved) == printed
    per_round = row.block + 1 if row.way == "BLT-S" else 2
    passes = paper_passes(row.num_bytes, row.block, row.acceptance, per_round, latent_reuse=True)
    found = paper_gb(passes.decoder, passes.encoder, P_DEC, P_REST["3B"])
    assert 100 * (1 - found / plain.estimate) == pytest.approx(reused, abs=1)


def test_the_formula() -> None:
    """Plain numbers: 10 x 3 + 4 x 5 parameters of 2 bytes."""
    assert paper_gb(10, 4, 3e9, 5e9) == pytest.approx(100)
    assert paper_gb(10, 4, 3e9, 5e9, param_bytes=4) == pytest.approx(200)


def test_the_round_model() -> None:
    assert paper_passes(90, 4, 0.5, 5) == PaperPasses(rounds=30, decoder=150, encoder=60)
    assert paper_passes(90, 4, 0.5, 5, latent_reuse=True) == PaperPasses(30, 150, 30)
    assert paper_passes(90, 0, 0, 1, latent_reuse=True) == PaperPasses(90, 90, 90)  # byte by byte
    assert paper_passes(90, 8, 1, 2).rounds == 10
    with pytest.raises(ValueError, match=r"acceptance = 75.*share from 0 to 1"):
        paper_passes(90, 4, 75, 5)
    with pytest.raises(ValueError, match="drafted = -4"):
        paper_passes(90, -4, 0.75, 5)


WIDTH, LATENT, FFN, VOCAB, K = 16, 32, 16, 260, 2
TABLES = 6  # of n-grams


def layer(width: int, ffn: int = FFN) -> int:
    """A transformer layer: queries, keys, values, output; SwiGLU; two norms."""
    return 4 * width**2 + 3 * width * ffn + 2 * width


CROSS = 4 * WIDTH**2 + 2 * WIDTH
KEYS_VALUES = 2 * WIDTH**2 + WIDTH
PATCH_SIDE = LATENT * K * WIDTH + KEYS_VALUES
DECODER = layer(WIDTH) + CROSS + LATENT * K * WIDTH + WIDTH + WIDTH * VOCAB
ENCODER = layer(WIDTH) + CROSS + WIDTH * K * WIDTH
ENTROPY = layer(8, 12) + 8 + 8 * VOCAB


def model_of(**fields: object) -> Blt:
    """One layer in each stack, fp32."""
    return example("byte", **fields).model.float()


def scorer_of() -> EntropyModel:
    found: EntropyModel = tiny.fill(EntropyModel(EntropyConfig(width=8, layers=1, heads=2, ffn_width=12)), 0)
    return found


@pytest.mark.parametrize("own_table", [False, True])
def test_parameters_of_the_papers_modules(own_table: bool) -> None:
    """Tables are looked up and do not count, the decoder's own neither."""
    model = model_of(decoder_input="embedding" if own_table else "encoder")
    assert paper_params(model) == (DECODER, ENCODER + layer(LATENT))
    assert sum(weight.numel() for weight in model.decoder.parameters()) == DECODER + own_table * VOCAB * WIDTH


@pytest.mark.parametrize("own_table", [False, True])
def test_what_a_pass_reads(own_table: bool) -> None:
    model = model_of(decoder_input="embedding" if own_table else "encoder")
    scorer = scorer_of()
    rows = 1 + TABLES + own_table
    assert WeightReads.of(model, scorer) == WeightReads(
        entropy=4 * ENTROPY,
        encoder=4 * layer(WIDTH),
        latent=4 * (ENCODER - layer(WIDTH) + layer(LATENT) + PATCH_SIDE),
        decoder=4 * (DECODER - PATCH_SIDE),
        id=4 * (rows * WIDTH + 8),
        draft_id=4 * rows * WIDTH,
        cell=4 * WIDTH,
    )
    alone = WeightReads.of(model, None)
    assert alone == replace(WeightReads.of(model, scorer), entropy=0, id=alone.draft_id)
    table = CnnEntropy(CnnConfig(width=8)).table()
    assert WeightReads.of(model, table) == replace(alone, id=alone.draft_id + 4)


def test_what_passes_read() -> None:
    """Each kind counts by itself; of a table of the decoder's own a block's cell reads one row."""
    reads = WeightReads.of(model_of(decoder_input="embedding"), scorer_of())
    for name, each in {
        "entropy": reads.entropy,
        "encoder": reads.encoder,
        "latent": reads.latent,
        "decoder": reads.decoder,
        "ids": reads.id,
        "draft_ids": reads.draft_id,
        "cells": reads.cell,
    }.items():
        assert reads.total(Passes(**{name: 3})) == 3 * each > 0
    one, other = Passes(1, 2, 3, 4, 5, 6, 7, 8), Passes(8, 7, 6, 5, 4, 3, 2, 1)
    assert one + other == Passes(*[9] * 8) and one + other - other == one
    assert reads.total(one + other) == reads.total(one) + reads.total(other)


def test_tables_in_another_precision_read_what_they_hold() -> None:
    model = model_of()
    model.embed.ngrams = torch.nn.Parameter(model.embed.ngrams.half())
    assert WeightReads.of(model, None).draft_id == 4 * WIDTH + 2 * TABLES * WIDTH


@contextmanager
def looked_up(session: Session) -> Iterator[Counter[str]]:
    """Rows read of each table while the context is open, one for every id that is put into it."""
    model, found = session.model, Counter[str]()
    tables = {"bytes": model.embed.bytes, "own": model.decoder.bytes}
    if isinstance(session.scorer, EntropyModel):
        tables["entropy"] = session.scorer.embed
    handles = []
    for name, table in tables.items():

        def count(_: object, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            found[name] += inputs[0].numel()

        if table is not None:
            handles.append(table.register_forward_pre_hook(count))
    buckets = model.embed._buckets

    def counted_buckets(windows: torch.Tensor) -> torch.Tensor:
        rows = buckets(windows)
        found["ngrams"] += rows.numel()
        return rows

    model.embed._buckets = counted_buckets
    native = getattr(model.embed, "_embed_ids", None)  # reads bytes and n-grams by itself, through no module

    def counted_call(tables: object, window: int, size_rows: int, size: int, x: int) -> None:
        assert native is not None
        native(tables, window, size_rows, size, x)
        found["bytes"] += size_rows * size
        found["ngrams"] += size_rows * size * len(model.embed.table_offsets)

    if native is not None:
        model.embed._embed_ids = counted_call
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        del model.embed._buckets
        if native is not None:
            model.embed._embed_ids = native


@pytest.mark.parametrize("decoder_input", ["encoder", "embedding"])
@pytest.mark.parametrize("kind", sorted(STRATEGIES))
def test_weights_read_by_hand(kind: str, decoder_input: str) -> None:
    """From forward calls and look-ups that hooks count, for every strategy: in one row, since in others padding is
    looked up as well."""
    case = tempered(replace(example("byte", decoder_input=decoder_input, diffusion_block=8), dtype=torch.float32), 0.2)
    rule = parse_rule("threshold:threshold=100.0,max_patch_bytes=3")  # that nothing reaches
    session = Session.start(case.model, scorer_of(), rule).extend(vocab.encode(b"some text"))
    session.model.embed.ngrams.data.mul_(0.01)  # a text that repeats, and is easy to draft
    with counted(session) as calls, looked_up(session) as rows:
        *_, last = generate(session, by(strategy_of(kind), Request(GREEDY, 40)))
    assert last.stats is not None and last.stats.bytes == 40
    assert last.stats.drafted == 0 or kind != "ar"  # a strategy may find nothing to draft
    weights = (
        calls["entropy"] * ENTROPY
        + calls["encoder"] * layer(WIDTH)
        + calls["latent"] * (ENCODER - layer(WIDTH) + layer(LATENT) + PATCH_SIDE)
        + calls["decoder"] * (DECODER - PATCH_SIDE)
        + (rows["bytes"] + rows["own"] + rows["ngrams"]) * WIDTH
        + rows["entropy"] * 8
    )
    assert rows["entropy"] and rows["ngrams"] and (rows["own"] > 0) == (decoder_input == "embedding")
    assert last.stats.weight_gb_read == pytest.approx(4 * weights / GB, rel=1e-12)
    parameters = calls["decoder"] * DECODER + calls["latent"] * (ENCODER + layer(LATENT))
    assert last.stats.paper_gb == pytest.approx(2 * parameters / GB, rel=1e-12)


@pytest.mark.parametrize("draft", [1, 3, 8])
def test_passes_of_speculation(draft: int) -> None:
    """Where every draft is kept, rounds are the paper's; where the latents are made again, it is one pass a round.

    Patches of every byte: a global pass in every round.
    """
    case = tempered(example("byte"), 0.0)
    session = Session.start(case.model, None, parse_rule("byte")).extend(vocab.encode(b"some text"))
    made = 1 + 6 * (draft + 1)  # the first byte needs no round
    *_, last = generate(session, by(Speculative(draft=draft), Request(GREEDY, made)))
    found = last.stats
    assert found is not None and found.bytes == made and found.accepted == found.drafted == 6 * draft
    model = paper_passes(made - 1, draft, 1.0, draft + 1, latent_reuse=True)
    assert (found.decoder_passes, found.global_passes) == (model.decoder, model.encoder)
    assert found.paper_gb == pytest.approx(paper_gb(model.decoder, model.encoder, *paper_params(case.model)))
