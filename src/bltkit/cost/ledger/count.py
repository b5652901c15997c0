"""Counts the ledger's rows: operations by `cost.formulas.operations`, weights by their names on the meta device.

Reads are those of a decoder of one row with everything cached. Byte by byte the latent transformer reads its weights
and its keys once a patch, so once in `patch_bytes` bytes; of other strategies `PassRates` says how often.
"""

from dataclasses import replace

import torch

from bltkit.cost.formulas.fast_blt import paper_gb, paper_params
from bltkit.cost.formulas.operations import (
    ScorerConfig,
    Work,
    cell_flops,
    exact_flops,
    mean_visible_keys,
    paper_flops,
    paper_token_flops,
    recomputed_flops,
    scorer_flops,
    stack_flops,
    token_flops,
)
from bltkit.cost.ledger.passes import PassRates
from bltkit.cost.ledger.row import Ledger, LedgerRow, sum_rows
from bltkit.generate.memory import SequenceMemory
from bltkit.model import (
    Blt,
    BltConfig,
    BoundaryConfig,
    BoundaryModel,
    CnnConfig,
    CnnEntropy,
    EntropyModel,
    StackConfig,
)
from bltkit.model.config import TokenShape

PATCH_BYTES = 4.5
"""Mean bytes per patch that is assumed where nobody knows it: the paper's and the released models'."""

MAX_CONTEXT = 10**12
"""Longest row that is counted, in bytes."""

BYTES_PER_TOKEN = 4.4
"""Of a token model, where the user does not say it: what the paper has for the tokenizer of Llama 3."""

_MODULES = {
    "embed": ("embed.", "decoder.bytes."),
    "encoder": ("encoder.stack.",),
    "encoder_cross": ("encoder.cross.", "encoder.patch_projection."),
    "latent": ("latent.",),
    "decoder": ("decoder.stack.", "decoder.norm.", "decoder.head."),
    "decoder_cross": ("decoder.cross.", "decoder.patch_projection."),
}
"""The rows of the ledger, by the names of their parameters."""

_PATCH_SIDE = ("decoder.patch_projection.", ".kv.", ".kv_norm.")
"""What `decoder_cross` runs once a patch: it makes the keys and values that bytes read."""


def ledger(
    model: BltConfig | None,
    scorer: ScorerConfig | None,
    patch_bytes: float = PATCH_BYTES,
    context: int = 8192,
    *,
    element_bytes: int = 4,
    scorer_name: str | None = None,
    annotated: bool = False,
    recompute: bool = False,
    block: int = 0,
    passes: PassRates | None = None,
    strategy: str | None = None,
    patch_bytes_source: str | None = None,
) -> Ledger:
    """The ledger of a BLT, of its scorer, or of both.

    patch_bytes: mean bytes per patch. context: bytes in the row. element_bytes: of a weight and of a cached number.
    annotated: training finds the patches stored, and does not run the scorer. recompute: activations in training.
    block: cells of the block that training adds for every patch (BLT-D), 0 for none.
    passes: of the decoding strategy, which `strategy` names; byte by byte by default.
    patch_bytes_source: where `patch_bytes` is known from, for the tables.
    Raises ValueError where there is nothing to count, or a number is out of range.
    """
    if model is None and scorer is None:
        raise ValueError("nothing to count: give a model, a scorer, or both")
    check_context(context)
    if not 1 <= patch_bytes <= context:
        raise ValueError(f"patch_bytes = {patch_bytes} must lie between 1 and context = {context}")
    if model is None:
        assert scorer is not None
        if passes is not None:
            raise ValueError(f"strategy {strategy!r} is for decoding with a BLT, which this is not")
        row = _scorer_row(scorer, context, element_bytes)
        again = recompute * recomputed_flops(scorer, 1.0, context)
        row = replace(row, flops_train=3 * row.flops_exact + again)
        looked_up = _table(scorer)
        return Ledger(
            modules={"entropy": row},
            total=row,
            total_with_entropy=row,
            params=row.params,
            params_without_tables=row.params,
            params_without_embeddings=row.params - looked_up,
            patch_bytes=None,
            bytes_per_token=None,
            context=context,
            element_bytes=element_bytes,
            scorer=scorer_name,
        )
    rates = PassRates.plain(patch_bytes, scorer is not None) if passes is None else passes
    rows = _model_rows(model, patch_bytes, context, element_bytes, rates, passes is not None)
    if recompute:
        rows = {name: _again(row, model, name, patch_bytes, context) for name, row in rows.items()}
    if block:
        rows["blocks"] = _blocks_row(model, patch_bytes, context, block, recompute)
    total = sum_rows(list(rows.values()))
    notes = [f"training: blocks of {block} cells, one for every patch"] if block else []
    notes += ["training: activations are recomputed"] if recompute else []
    notes += ["training: patches are stored, the entropy model does not run"] if annotated and scorer else []
    if scorer is not None:
        own = _scorer_row(scorer, context, element_bytes, rates)
        rows["entropy"] = replace(own, flops_train=0.0 if annotated else scorer_flops(scorer, context))
    tables = model.ngrams.num_tables * model.ngrams.buckets * model.encoder.width
    with torch.device("meta"):
        charged = paper_params(Blt(model))
    return Ledger(
        modules=rows,
        total=total,
        total_with_entropy=sum_rows(list(rows.values())),
        params=total.params,
        params_without_tables=total.params - tables,
        params_without_embeddings=total.params - rows["embed"].params,
        patch_bytes=patch_bytes,
        bytes_per_token=None,
        context=context,
        element_bytes=element_bytes,
        scorer=scorer_name,
        strategy=strategy,
        passes=passes,
        patch_bytes_source=patch_bytes_source,
        paper_bytes=1e9 * paper_gb(rates.decoder, rates.latent, *charged),
        sequence_bytes=_sequence_bytes(model, scorer, patch_bytes, context, element_bytes),
        notes=tuple(notes),
    )


def _sequence_bytes(
    model: BltConfig, scorer: ScorerConfig | None, patch_bytes: float, context: int, element_bytes: int
) -> int:
    """Keys and values that decoding holds of a row of `context` bytes behind BOS, which is a patch of its own."""
    cached = scorer if isinstance(scorer, StackConfig) else None
    memory = SequenceMemory.planned(model, cached, element_bytes)
    return memory.held(context + 1, 1 + round(context / patch_bytes))


def token_ledger(
    shape: TokenShape,
    bytes_per_token: float = BYTES_PER_TOKEN,
    context: int = 8192,
    *,
    element_bytes: int = 4,
    recompute: bool = False,
) -> Ledger:
    """The ledger of a token model, per byte of text: embed, attention, ffn, head.

    bytes_per_token: of text, by its tokenizer; 1 for a transformer over bytes. context: bytes in the row, which are
    context / bytes_per_token tokens. The table of a tied model stands under `embed`, and `head` reads it.
    Raises ValueError for a number out of range.
    """
    check_context(context)
    if not 1 <= bytes_per_token <= context:
        raise ValueError(f"bytes_per_token = {bytes_per_token} must lie between 1 and context = {context}")
    width, layers, kv = shape.width, shape.layers, shape.num_kv_heads * shape.head_dim
    table = shape.vocab_size * width
    exact, paper = (count(shape, bytes_per_token, context) for count in (token_flops, paper_token_flops))
    # Norms with what they stand in front of.
    attention = layers * (2 * width**2 + 2 * width * kv + width)
    params = {
        "embed": table,
        "attention": attention,
        "ffn": layers * (3 * width * shape.ffn + width),
        "head": width + (0 if shape.tied else table),
    }
    reads = params | {"embed": width, "head": width + table}
    again = {"attention": exact["attention"], "ffn": exact["ffn"]} if recompute else {}
    cached = {"attention": _cached(shape, context / bytes_per_token)}
    rows = {
        name: LedgerRow(
            params=params[name],
            weight_bytes=element_bytes * reads[name] / bytes_per_token,
            kv_bytes=element_bytes * cached.get(name, 0.0) / bytes_per_token,
            flops_exact=exact.get(name, 0.0),
            flops_paper=paper.get(name, 0.0),
            flops_train=3 * exact.get(name, 0.0) + again.get(name, 0.0),
        )
        for name in params
    }
    total = sum_rows(list(rows.values()))
    return Ledger(
        modules=rows,
        total=total,
        total_with_entropy=total,
        params=total.params,
        params_without_tables=total.params,
        params_without_embeddings=total.params - (0 if shape.tied else table),
        patch_bytes=None,
        bytes_per_token=bytes_per_token,
        context=context,
        element_bytes=element_bytes,
        scorer=None,
    )


def check_context(context: int) -> None:
    """Raise ValueError for a row of no bytes, or of more than `MAX_CONTEXT`."""
    if not 1 <= context <= MAX_CONTEXT:
        raise ValueError(f"context = {context}: the bytes of a row must lie between 1 and {MAX_CONTEXT:,}")


def _model_rows(
    config: BltConfig, patch_bytes: float, context: int, element: int, rates: PassRates, drafting: bool
) -> dict[str, LedgerRow]:
    with torch.device("meta"):
        sizes = {name: weight.numel() for name, weight in Blt(config).named_parameters()}
    reading, paper = exact_flops(config, patch_bytes, context), paper_flops(config, patch_bytes, context)
    decoding = exact_flops(config, patch_bytes, context, work_of(rates, patch_bytes)) if drafting else reading
    patch_width, width = config.decoder.num_kv_heads * config.decoder.head_dim, config.encoder.width
    looked_up = 1 + config.ngrams.num_tables + (config.decoder_input == "embedding")
    # Where nothing is attended to, a byte reads the one vector that is added to it.
    read = config.num_decoder_cross * 2 * config.cross_attn_k * patch_width
    read += 0 if config.decoder_cross_attn else config.decoder.width
    numbers = {
        "embed": (rates.ids + rates.draft_ids) * looked_up * width + rates.cells * width,
        "encoder": _cached(config.encoder, context) * rates.encoder,
        "encoder_cross": 0.0,
        "latent": _cached(config.latent, context / patch_bytes) * rates.latent,
        "decoder": _cached(config.decoder, context) * rates.decoder,
        "decoder_cross": read * rates.decoder,
    }
    often = {"encoder": rates.encoder}
    rows = {}
    for module, prefixes in _MODULES.items():
        own = {name: size for name, size in sizes.items() if name.startswith(prefixes)}
        params = sum(own.values())
        if module == "embed":
            rows[module] = LedgerRow(params, element * numbers[module], 0.0, 0.0, 0.0, 0.0)
            continue
        # The encoder pools, and the latent transformer runs, when a patch closes.
        seldom = sum(
            size
            for name, size in own.items()
            if module in ("encoder_cross", "latent") or any(part in name for part in _PATCH_SIDE)
        )
        rows[module] = LedgerRow(
            params=params,
            weight_bytes=element * ((params - seldom) * often.get(module, rates.decoder) + seldom * rates.latent),
            kv_bytes=element * numbers[module],
            flops_exact=decoding[module],
            flops_paper=None if drafting else paper[module],
            flops_train=3 * reading[module],
        )
    return rows


def work_of(rates: PassRates, patch_bytes: float) -> Work:
    """What a strategy computes for one byte of text: drafts that were wrong as well, in cached passes.

    A patch closes every patch_bytes ids that are read, and every one of these is pooled once.
    """
    return Work(
        encoder=rates.ids + rates.draft_ids,
        pooled=rates.ids + rates.open_latents * patch_bytes / 2,
        patches=rates.ids / patch_bytes + rates.open_latents,
        decoder=rates.ids + rates.draft_ids,
        cells=rates.cells,
        block=rates.block,
    )


def _again(row: LedgerRow, config: BltConfig, module: str, patch_bytes: float, context: int) -> LedgerRow:
    """With the layers of its stack computed once more in training."""
    stacks = {
        "encoder": (config.encoder, 1.0),
        "latent": (config.latent, patch_bytes),
        "decoder": (config.decoder, 1.0),
    }
    if module not in stacks:
        return row
    stack, unit = stacks[module]
    return replace(row, flops_train=row.flops_train + stack_flops(stack, context / unit) / unit)


def _blocks_row(config: BltConfig, patch_bytes: float, context: int, block: int, recompute: bool) -> LedgerRow:
    """Of training alone: the decoder's cells, a block for every patch."""
    of_cell = 3 * cell_flops(config, context, block)
    if recompute:
        of_cell += stack_flops(config.decoder, context, (block - 1) / 2)
    return LedgerRow(0, 0.0, 0.0, 0.0, 0.0, of_cell * block / patch_bytes)


def _scorer_row(config: ScorerConfig, context: int, element: int, rates: PassRates | None = None) -> LedgerRow:
    """Forward. rates: of a BLT's strategy; a pass for every byte by default."""
    passes, ids = (1.0, 1.0) if rates is None else (rates.entropy, rates.ids if rates.entropy else 0.0)
    with torch.device("meta"):
        module = _scorer(config)
    params = sum(weight.numel() for weight in module.parameters())
    table = module.embed.weight
    read = (params - table.numel()) * passes + table.shape[1] * ids
    kv = _cached(config, context) * passes if isinstance(config, StackConfig) else 0.0
    flops = scorer_flops(config, context)
    return LedgerRow(params, element * read, element * kv, flops * ids, None, flops)


def _table(config: ScorerConfig) -> int:
    with torch.device("meta"):
        return _scorer(config).embed.weight.numel()


def _scorer(config: ScorerConfig) -> EntropyModel | BoundaryModel | CnnEntropy:
    if isinstance(config, CnnConfig):
        return CnnEntropy(config)
    return BoundaryModel(config) if isinstance(config, BoundaryConfig) else EntropyModel(config)


def _cached(stack: StackConfig, length: float) -> float:
    """Keys and values that one position reads of a stack's cache, in numbers, mean over a row of `length`."""
    return 2 * stack.layers * stack.num_kv_heads * stack.head_dim * mean_visible_keys(length, stack.window)
