"""Exact cost of the compared systems: operations and bytes moved per byte of text.

Compared are one BLT cut into patches of several sizes and a token model with as many parameters (lookup tables left out
on both sides, the head counted). Decoding is counted at its positions after the context, not as the ledger's mean over
a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bltkit.bench import MachineRates
from bltkit.cost.formulas.operations import training_flops
from bltkit.cost.ledger import Ledger, ledger, token_ledger
from bltkit.model import BltConfig
from bltkit.model.config import EntropyConfig, TokenShape

ELEMENT = 4
"""Bytes of a number in fp32."""

UPDATE = 10
"""Numbers moved for every weight by clipping and AdamW: the norm reads the gradient, scaling reads and writes it, the
fused update reads weight, gradient and two moments and writes all but the gradient."""

FFN_STEP = 8
"""Inner widths of the token model are multiples of it."""


@dataclass(frozen=True)
class System:
    """A model that reads text: a BLT with patches of `unit_bytes` bytes, or a model of tokens that stand for them."""

    name: str
    shape: BltConfig | TokenShape
    unit_bytes: float
    scorer: EntropyConfig | None = None
    """Entropy model that runs over every byte beside the BLT; its scores are not used, so that patches stay equal."""

    @property
    def kind(self) -> Literal["blt", "token"]:
        """`blt` or `token`."""
        return "blt" if isinstance(self.shape, BltConfig) else "token"

    @property
    def position_bytes(self) -> float:
        """Bytes of text per position of the row: 1, or a token's."""
        return 1.0 if self.kind == "blt" else self.unit_bytes

    def ledger(self, length: int, patch_bytes: float = 1.0) -> Ledger:
        """The ledger of a row of `length` positions, per position. patch_bytes: mean patch of a BLT."""
        if isinstance(self.shape, BltConfig):
            return ledger(self.shape, self.scorer, patch_bytes, length, element_bytes=ELEMENT)
        return token_ledger(self.shape, 1.0, length, element_bytes=ELEMENT)


@dataclass(frozen=True)
class ByteCost:
    """Cost per byte of text."""

    flops: float
    """Operations of all matrix products."""
    read_bytes: float
    """Weights, gradients and cached keys and values that the products of the phase read or write, without activations:
    the traffic from memory if the caches hold nothing of it."""
    update_bytes: float = 0.0
    """Bytes moved by the optimizer."""

    def seconds(self, rates: MachineRates) -> tuple[float, float, float]:
        """Seconds of the operations, of the reads and of the update, each alone at the machine's rate."""
        return (
            self.flops / (rates.matmul_gflops * 1e9),
            self.read_bytes / (rates.product_gb_per_second["fp32"] * 1e9),
            self.update_bytes / (rates.copy_gb_per_second * 1e9),
        )

    def predicted(self, rates: MachineRates) -> float:
        """Seconds: the longer of operations and reads, which overlap in the same products, and then the update."""
        operations, reads, update = self.seconds(rates)
        return max(operations, reads) + update


def systems_of(
    shape: BltConfig,
    patch_bytes: Sequence[float],
    vocab_size: int,
    bytes_per_token: float,
    scorer: EntropyConfig | None = None,
    scorer_name: str = "",
) -> tuple[System, ...]:
    """The BLT with patches of each size, the same with a scorer where there is one, and the token model.

    Raises ValueError for a vocabulary that leaves the token model no layers.
    """
    systems = [System(f"patch {size:g}", shape, size) for size in patch_bytes]
    if scorer is not None:
        systems += [System(f"patch {size:g} + entropy {scorer_name}", shape, size, scorer) for size in patch_bytes]
    tokens = equal_token_shape(shape, vocab_size)
    return (*systems, System(f"token {vocab_size} at {bytes_per_token:g}", tokens, bytes_per_token))


def equal_token_shape(shape: BltConfig, vocab_size: int) -> TokenShape:
    """A token model as wide as the BLT's global transformer, with the BLT's number of parameters.

    Lookup tables do not count: n-grams and bytes there, the tokens' input table here. Depth comes first, at the global
    transformer's inner width, which then takes the remainder. Raises ValueError where the head leaves less than a
    layer.
    """
    latent = shape.latent
    target = ledger(shape, None, 4.0, 64).params_without_embeddings
    left = target - latent.width - vocab_size * latent.width
    apart = 4 * latent.width**2 + 2 * latent.width
    layer = apart + 3 * latent.width * latent.ffn
    if left < layer:
        raise ValueError(
            f"vocab_size = {vocab_size}: a head of width {latent.width} leaves {max(0, left):,} of {target:,} "
            "parameters for layers; take a smaller vocabulary, or a larger preset"
        )
    layers = round(left / layer)
    ffn = FFN_STEP * round((left / layers - apart) / (3 * latent.width * FFN_STEP))
    return TokenShape(width=latent.width, layers=layers, heads=latent.heads, ffn_width=ffn, vocab_size=vocab_size)


def reading_cost(system: System, length: int, units: int) -> ByteCost:
    """Cost of a forward pass over a row of `length` positions in `units` patches (or tokens), logits everywhere."""
    row = system.ledger(length, length / units)
    weights = ELEMENT * (row.params_without_embeddings + _scorer_params(row)) / length
    return _per_byte(system, row.total_with_entropy.flops_exact, weights + _table_reads(row))


def decoding_cost(system: System, context: int, steps: int, units: int) -> ByteCost:
    """Cost of `steps` positions one by one after `context` cached ones; `units` patches close (or tokens are read).

    It is the cost of the whole row minus that of its first `context` positions.
    """
    length, patch_bytes = context + steps, steps / units
    whole = system.ledger(length, patch_bytes).total_with_entropy
    first = system.ledger(context, min(patch_bytes, context)).total_with_entropy

    def after_context(of_whole: float, of_first: float) -> float:
        return (length * of_whole - context * of_first) / steps

    reads = whole.weight_bytes + after_context(whole.kv_bytes, first.kv_bytes)
    return _per_byte(system, after_context(whole.flops_exact, first.flops_exact), reads)


def training_cost(system: System, length: int, units: int) -> ByteCost:
    """Cost of forward, backward and update on one row of `length` positions in `units` patches (or tokens).

    Weights are read by forward and backward, gradients written once. Of the n-gram tables only the rows that were
    looked up are updated, each counted as often as it was looked up.
    """
    row = system.ledger(length, length / units)
    weights = 3 * row.params_without_embeddings + _scorer_params(row)
    looked_up = 0
    if isinstance(system.shape, BltConfig):
        looked_up = system.shape.ngrams.num_tables * system.shape.encoder.width
    return _per_byte(
        system,
        training_flops(system.shape, length / units, length, scorer=system.scorer),
        ELEMENT * weights / length + _table_reads(row),
        ELEMENT * UPDATE * (row.params_without_tables / length + looked_up),
    )


def _per_byte(system: System, flops: float, read_bytes: float, update_bytes: float = 0.0) -> ByteCost:
    """Cost per position, divided by the bytes that a position stands for."""
    size = system.position_bytes
    return ByteCost(flops / size, read_bytes / size, update_bytes / size)


def _scorer_params(row: Ledger) -> int:
    return row.modules["entropy"].params if "entropy" in row.modules else 0


def _table_reads(row: Ledger) -> float:
    """Bytes of lookup tables per position."""
    return row.modules["embed"].weight_bytes
