"""Floating-point operations of a model, per byte of text, in closed form (BLT eq. 13-17; docs/model.md 11).

`exact` counts every matrix product that our code does, but for those of padding; `paper` is the published formula,
which leaves the entropy model out. A product [m, k] x [k, n] is 2 m k n operations, a causal query is charged the keys
that it sees. Training costs three forward passes (backward = 2).
"""

from dataclasses import dataclass

from bltkit.model.config import BltConfig, BoundaryConfig, CnnConfig, EntropyConfig, StackConfig, TokenShape
from bltkit.vocab import VOCAB_SIZE

ScorerConfig = EntropyConfig | BoundaryConfig | CnnConfig


@dataclass(frozen=True)
class Work:
    """How often the parts of a BLT run for one byte of text, in positions: reading a text, and training, by default.

    encoder, decoder: bytes that their layers compute. pooled: bytes whose keys and values pooling makes. patches: None
    is one in patch_bytes. cells: of blocks of `block` cells, which only the decoder computes.
    """

    encoder: float = 1.0
    pooled: float = 1.0
    patches: float | None = None
    decoder: float = 1.0
    cells: float = 0.0
    block: int = 1


READING = Work()


def mean_visible_keys(length: float, window: int | None) -> float:
    """Keys that a causal query sees on average over a row of `length` positions."""
    if window is None or length <= window:
        return (length + 1) / 2
    return (window * (window + 1) / 2 + (length - window) * window) / length


def product_flops(stack: StackConfig) -> tuple[float, float]:
    """Of the matrix products of a stack for one position: attention's projections, and the feed-forward part."""
    kv = stack.num_kv_heads * stack.head_dim
    projections = 2 * (2 * stack.width**2 + 2 * stack.width * kv)
    return stack.layers * projections, stack.layers * 6 * stack.width * stack.ffn


def stack_flops(stack: StackConfig, length: float, more_keys: float = 0.0) -> float:
    """Forward operations of a stack for one position of a row of `length` positions, mean over the row.

    more_keys: that a position sees beside the causal ones.
    """
    keys = mean_visible_keys(length, stack.window) + more_keys
    return sum(product_flops(stack)) + stack.layers * 4 * stack.width * keys


def exact_flops(config: BltConfig, patch_bytes: float, context: int, work: Work = READING) -> dict[str, float]:
    """Forward operations per byte by module: encoder, encoder_cross, latent, decoder, decoder_cross.

    patch_bytes: mean bytes per patch; context: bytes in the row.
    """
    h, k, wide = config.encoder.width, config.cross_attn_k, config.latent.width
    patches = 1 / patch_bytes if work.patches is None else work.patches
    encoder_kv, decoder_kv = (stack.num_kv_heads * stack.head_dim for stack in (config.encoder, config.decoder))
    # A byte is seen by the k queries of its patch, and sees the k vectors of one patch.
    pooling = work.pooled * (4 * h * encoder_kv + 4 * h * k) + patches * 4 * h**2 * k
    reading = (work.decoder + work.cells) * (4 * h**2 + 4 * h * k) + patches * 4 * h * decoder_kv * k
    projection = 2 * config.patch_width * wide if config.patch_width != wide else 0
    head = 2 * h * VOCAB_SIZE
    cells = 0.0
    if work.cells:
        cells = work.cells * (stack_flops(config.decoder, context, (work.block - 1) / 2) + head)
    return {
        "encoder": work.encoder * stack_flops(config.encoder, context),
        "encoder_cross": config.num_encoder_cross * pooling + patches * 2 * config.pooled_width * config.patch_width,
        "latent": patches * (stack_flops(config.latent, context / patch_bytes) + projection),
        "decoder": work.decoder * (stack_flops(config.decoder, context) + head) + cells,
        "decoder_cross": config.num_decoder_cross * reading + patches * 2 * wide * config.read_width,
    }


def cell_flops(config: BltConfig, context: int, block: int = 1) -> float:
    """Forward operations of the decoder for one cell of a block of `block` cells beside the row (BLT-D).

    A cell sees the clean bytes in front of its block that are within the window of its own position, and the block.
    """
    only_cells = Work(encoder=0, pooled=0, patches=0, decoder=0, cells=1, block=block)
    return sum(exact_flops(config, 1.0, context, only_cells).values())


def paper_flops(config: BltConfig, patch_bytes: float, context: int) -> dict[str, float]:
    """The paper's formula (eq. 13-17), FFN of 4 x width and 256 outputs, for the same modules."""

    def cross(stack: StackConfig, layers: int, keys: float, keys_per_query: float) -> float:
        attention = 4 * layers * stack.width * (keys + 1) / 2
        return attention + (2 * keys_per_query + 2) * 2 * layers * stack.width**2

    p, k = patch_bytes, config.cross_attn_k
    encoder, decoder = config.encoder, config.decoder
    return {
        "encoder": sum(paper_stack_flops(encoder, encoder.window or context)),
        "encoder_cross": cross(encoder, config.num_encoder_cross, p, p / k) * k / p,
        "latent": sum(paper_stack_flops(config.latent, context / p)) / p,
        "decoder": sum(paper_stack_flops(decoder, decoder.window or context)) + 2 * decoder.width * 256,
        "decoder_cross": cross(decoder, config.num_decoder_cross, k, k / p),
    }


def paper_stack_flops(stack: StackConfig, keys: float) -> tuple[float, float]:
    """The paper's formula of a stack for one position, by attention (scores, QKVO) and feed-forward part.

    keys: m, of which (m + 1) / 2 are charged, a window's as well.
    """
    attention = 4 * stack.layers * stack.width * (keys + 1) / 2 + 8 * stack.layers * stack.width**2
    return attention, 16.0 * stack.layers * stack.width**2


def token_flops(shape: TokenShape, bytes_per_token: float, context: int) -> dict[str, float]:
    """Forward operations per byte of a token model: attention, ffn, head. context: bytes in the row, not tokens."""
    projections, ffn = product_flops(shape)
    scores = shape.layers * 4 * shape.width * mean_visible_keys(context / bytes_per_token, shape.window)
    of_token = {"attention": projections + scores, "ffn": ffn, "head": 2.0 * shape.width * shape.vocab_size}
    return {name: flops / bytes_per_token for name, flops in of_token.items()}


def paper_token_flops(shape: TokenShape, bytes_per_token: float, context: int) -> dict[str, float]:
    """The paper's formula of a transformer with V outputs, for the same modules: MHA and an FFN of 4 x width."""
    attention, ffn = paper_stack_flops(shape, shape.window or context / bytes_per_token)
    of_token = {"attention": attention, "ffn": ffn, "head": 2.0 * shape.width * shape.vocab_size}
    return {name: flops / bytes_per_token for name, flops in of_token.items()}


def scorer_flops(config: ScorerConfig, context: int) -> float:
    """Forward operations per byte of an entropy, boundary or CNN model."""
    if isinstance(config, CnnConfig):
        return 2 * (config.context * 2 * config.width**2 + 2 * config.width * VOCAB_SIZE)
    outputs = 1 if config.kind == "boundary" else VOCAB_SIZE
    return stack_flops(config, context) + 2 * config.width * outputs


def forward_flops(config: BltConfig | ScorerConfig | TokenShape, patch_bytes: float, context: int) -> float:
    """Forward operations per byte of a whole model, the exact count; of a BLT without its entropy model.

    patch_bytes: bytes per patch, or per token. context: bytes in the row.
    """
    if isinstance(config, BltConfig):
        return sum(exact_flops(config, patch_bytes, context).values())
    if isinstance(config, TokenShape):
        return sum(token_flops(config, patch_bytes, context).values())
    return scorer_flops(config, context)


def recomputed_flops(config: BltConfig | ScorerConfig | TokenShape, patch_bytes: float, context: int) -> float:
    """What recomputing activations adds to training per byte: the layers of all stacks once more, forward."""
    if isinstance(config, BltConfig):
        latent = stack_flops(config.latent, context / patch_bytes) / patch_bytes
        return stack_flops(config.encoder, context) + stack_flops(config.decoder, context) + latent
    if isinstance(config, TokenShape):
        return stack_flops(config, context / patch_bytes) / patch_bytes
    return stack_flops(config, context) if isinstance(config, StackConfig) else 0.0


def training_flops(
    config: BltConfig | ScorerConfig | TokenShape,
    patch_bytes: float,
    context: int,
    *,
    scorer: ScorerConfig | None = None,
    block: int = 0,
    recompute: bool = False,
) -> float:
    """Operations of training per byte of text: forward and backward, all that a run computes.

    patch_bytes: bytes per patch, or per token. context: bytes in the row.
    scorer: that finds the patches while the model trains, forward only; None where they are stored or need no scores.
    block: cells of the block that a BLT-D gets for every patch, 0 for none. recompute: see `recomputed_flops`.
    """
    forward = forward_flops(config, patch_bytes, context)
    if isinstance(config, BltConfig) and block:
        forward += cell_flops(config, context, block) * block / patch_bytes
    found = 3 * forward
    if recompute:
        found += recomputed_flops(config, patch_bytes, context)
        if isinstance(config, BltConfig) and block:
            found += stack_flops(config.decoder, context, (block - 1) / 2) * block / patch_bytes
    return found + (0.0 if scorer is None else scorer_flops(scorer, context))
