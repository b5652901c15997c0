"""What is put side by side, and what each of them costs by exact count: operations and bytes per byte of text.

One BLT cut into patches of several sizes, and a token model with as many parameters (tables that are only looked up
left out on both sides, the head counted). Notable: decoding is counted at its own place behind the context, not as the
mean over a row, which is what the ledger has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bltkit.bench import MachineRates
from bltkit.cost.formulas.operations import training_flops
from bltkit.cost.ledger import Ledger, ledger, token_ledger
from bltkit.model import BltConfig
from bltkit.model.config import EntropyConfig, TokenShape

Phase = Literal["prefill", "decode", "train"]
PHASES: tuple[Phase, ...] = ("prefill", "decode", "train")

ELEMENT = 4
"""Bytes of a number in fp32."""

UPDATE = 10
"""Numbers moved for every weight by clipping and AdamW: the norm reads the gradient, scaling reads and writes it, the
fused update reads weight, gradient and two moments and writes all but the gradient."""

FFN_STEP = 8
"""Inner widths of the token model are multiples of it."""


@dataclass(frozen=True)
class System:
    """Something that reads text: a BLT with patches of `unit_bytes` bytes, or a model of tokens that stand for them."""

    name: str
    shape: BltConfig | TokenShape
    unit_bytes: float
    scorer: EntropyConfig | None = None
    """Runs over every byte beside the model; its answer is not asked for, so that patches stay as they are."""

    @property
    def kind(self) -> Literal["blt", "token"]:
        """`blt` or `token`."""
        return "blt" if isinstance(self.shape, BltConfig) else "token"

    @property
    def position_bytes(self) -> float:
        """Bytes of text that a position of the row stands for: 1, or a token's."""
        return 1.0 if self.kind == "blt" else self.unit_bytes

    def ledger(self, length: int, patch_bytes: float = 1.0) -> Ledger:
        """The ledger of a row of `length` positions, per position. patch_bytes: of a BLT's patches."""
        if isinstance(self.shape, BltConfig):
            return ledger(self.shape, self.scorer, patch_bytes, length, element_bytes=ELEMENT)
        return token_ledger(self.shape, 1.0, length, element_bytes=ELEMENT)


@dataclass(frozen=True)
class ByteCost:
    """Per byte of text."""

    flops: float
    """Of all matrix products."""
    read_bytes: float
    """Weights, gradients, and cached keys and values that the products of this phase read or write, activations not
    counted: what has to come from memory if the caches hold nothing of it."""
    update_bytes: float = 0.0
    """Moved by the optimizer."""

    def seconds(self, rates: MachineRates) -> tuple[float, float, float]:
        """Of the operations, of the reads and of the update, each alone at the machine's rate."""
        return (
            self.flops / (rates.matmul_gflops * 1e9),
            self.read_bytes / (rates.product_gb_per_second["fp32"] * 1e9),
            self.update_bytes / (rates.copy_gb_per_second * 1e9),
        )

    def predicted(self, rates: MachineRates) -> float:
        """Seconds: the longer of operations and reads, which happen in the same products at the same time, and the
        update, which begins when they are over."""
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
    """Patches of each size, the same with a scorer where there is one, and tokens.

    Raises ValueError for a vocabulary that leaves the token model no layers.
    """
    found = [System(f"patch {size:g}", shape, size) for size in patch_bytes]
    if scorer is not None:
        found += [System(f"patch {size:g} + entropy {scorer_name}", shape, size, scorer) for size in patch_bytes]
    tokens = equal_token_shape(shape, vocab_size)
    return (*found, System(f"token {vocab_size} at {bytes_per_token:g}", tokens, bytes_per_token))


def equal_token_shape(shape: BltConfig, vocab_size: int) -> TokenShape:
    """A token model as wide as the BLT's global transformer, with the BLT's number of parameters.

    Tables that are only looked up do not count: n-grams and bytes there, the tokens' input table here. Depth comes
    first, at the global transformer's inner width, which then takes up what is left.
    Raises ValueError where the head leaves less than a layer.
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
    """Of a forward pass over a row of `length` positions in `units` patches (or tokens), logits everywhere."""
    found = system.ledger(length, length / units)
    weights = ELEMENT * _dense(found) / length
    return _of_bytes(system, found.total_with_entropy.flops_exact, weights + _looked_up(found))


def decoding_cost(system: System, context: int, steps: int, units: int) -> ByteCost:
    """Of `steps` positions one by one behind `context` of them, with everything cached; `units` patches close
    meanwhile (or tokens are read).

    What the positions of a row cost together, less what its first `context` cost, is exactly the ones behind these.
    """
    length, patch_bytes = context + steps, steps / units
    whole = system.ledger(length, patch_bytes).total_with_entropy
    first = system.ledger(context, min(patch_bytes, context)).total_with_entropy

    def behind(of_whole: float, of_first: float) -> float:
        return (length * of_whole - context * of_first) / steps

    return _of_bytes(
        system,
        behind(whole.flops_exact, first.flops_exact),
        whole.weight_bytes + behind(whole.kv_bytes, first.kv_bytes),
    )


def training_cost(system: System, length: int, units: int) -> ByteCost:
    """Of forward, backward and update on one row of `length` positions in `units` patches (or tokens).

    Weights are read by forward and backward, gradients written once. Of the n-gram tables only rows that were looked up
    are updated, each counted as often as it was looked up.
    """
    found = system.ledger(length, length / units)
    scorer = found.modules["entropy"].params if "entropy" in found.modules else 0
    read = ELEMENT * (3 * (_dense(found) - scorer) + scorer) / length + _looked_up(found)
    rows = 0
    if isinstance(system.shape, BltConfig):
        rows = system.shape.ngrams.num_tables * system.shape.encoder.width
    return _of_bytes(
        system,
        training_flops(system.shape, length / units, length, scorer=system.scorer),
        read,
        ELEMENT * UPDATE * (found.params_without_tables / length + rows),
    )


def _of_bytes(system: System, flops: float, read_bytes: float, update_bytes: float = 0.0) -> ByteCost:
    """What positions cost, by the bytes that they stand for."""
    own = system.position_bytes
    return ByteCost(flops / own, read_bytes / own, update_bytes / own)


def _dense(found: Ledger) -> int:
    """Weights that products read, the scorer's among them."""
    scorer = found.modules["entropy"].params if "entropy" in found.modules else 0
    return found.params_without_embeddings + scorer


def _looked_up(found: Ledger) -> float:
    """Of tables, per position."""
    return found.modules["embed"].weight_bytes
