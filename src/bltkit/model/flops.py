"""Floating-point operations of a model, per byte of text, in closed form (BLT eq. 13-17; spec 9.2 and 9.3).

`exact` counts every matrix product that our code does; `paper` is the published formula, which leaves the entropy
model out. A product [m, k] x [k, n] is 2 m k n operations. Training costs three forward passes (backward = 2).
"""

from bltkit.model.config import BltConfig, BoundaryConfig, CnnConfig, EntropyConfig, StackConfig, TokenConfig
from bltkit.vocab import VOCAB_SIZE


def mean_visible_keys(length: float, window: int | None) -> float:
    """Keys that a causal query sees on average over a row of `length` positions."""
    if window is None or length <= window:
        return (length + 1) / 2
    return (window * (window + 1) / 2 + (length - window) * window) / length


def stack_flops(stack: StackConfig, length: float) -> float:
    """Forward operations of a stack for one position of a row of `length` positions."""
    kv = stack.num_kv_heads * stack.head_dim
    products = 2 * (2 * stack.width**2 + 2 * stack.width * kv + 3 * stack.width * stack.ffn)
    return stack.layers * (products + 4 * stack.width * mean_visible_keys(length, stack.window))


def exact_flops(config: BltConfig, patch_bytes: float, context: int) -> dict[str, float]:
    """Forward operations per byte by module: encoder, encoder_cross, latent, decoder, decoder_cross.

    patch_bytes: mean bytes per patch; context: bytes in the row.
    """
    h, k, p = config.encoder.width, config.cross_attn_k, patch_bytes
    wide = config.latent.width
    cross = 4 * h**2 * (1 + k / p) + 4 * h * k
    projection = 2 * config.patch_width * wide if config.patch_width != wide else 0
    return {
        "encoder": stack_flops(config.encoder, context),
        "encoder_cross": config.num_encoder_cross * cross + 2 * k * h**2 / p,
        "latent": (stack_flops(config.latent, context / p) + projection) / p,
        "decoder": stack_flops(config.decoder, context) + 2 * h * VOCAB_SIZE,
        "decoder_cross": config.num_decoder_cross * cross + 2 * wide * k * h / p,
    }


def cell_flops(config: BltConfig, context: int) -> float:
    """Forward operations of the decoder for one cell of a block beside the row (BLT-D); keys of its own block aside."""
    h, k = config.decoder.width, config.cross_attn_k
    cross = 4 * h**2 + 4 * h * k
    return stack_flops(config.decoder, context) + 2 * h * VOCAB_SIZE + config.num_decoder_cross * cross


def paper_flops(config: BltConfig, patch_bytes: float, context: int) -> dict[str, float]:
    """The paper's formula (eq. 13-17), FFN of 4 x width and 256 outputs, for the same modules."""

    def transformer(stack: StackConfig, keys: float) -> float:
        attention = 4 * stack.layers * stack.width * (keys + 1) / 2
        return attention + 8 * stack.layers * stack.width**2 + 16 * stack.layers * stack.width**2

    def cross(stack: StackConfig, layers: int, keys: float, keys_per_query: float) -> float:
        attention = 4 * layers * stack.width * (keys + 1) / 2
        return attention + (2 * keys_per_query + 2) * 2 * layers * stack.width**2

    p, k = patch_bytes, config.cross_attn_k
    encoder, decoder = config.encoder, config.decoder
    return {
        "encoder": transformer(encoder, encoder.window or context),
        "encoder_cross": cross(encoder, config.num_encoder_cross, p, p / k) * k / p,
        "latent": transformer(config.latent, context / p) / p,
        "decoder": transformer(decoder, decoder.window or context) + 2 * decoder.width * 256,
        "decoder_cross": cross(decoder, config.num_decoder_cross, k, k / p),
    }


def scorer_flops(config: EntropyConfig | BoundaryConfig | CnnConfig, context: int) -> float:
    """Forward operations per byte of an entropy, boundary or CNN model."""
    if isinstance(config, CnnConfig):
        return 2 * (config.context * 2 * config.width**2 + 2 * config.width * VOCAB_SIZE)
    outputs = 1 if config.kind == "boundary" else VOCAB_SIZE
    return stack_flops(config, context) + 2 * config.width * outputs


def token_flops(config: TokenConfig, token_bytes: float, context: int) -> float:
    """Forward operations of a token model per byte of text. token_bytes: mean bytes of a token."""
    return (stack_flops(config, context / token_bytes) + 2 * config.width * config.vocab_size) / token_bytes


def forward_flops(
    config: BltConfig | EntropyConfig | BoundaryConfig | CnnConfig | TokenConfig, patch_bytes: float, context: int
) -> float:
    """Forward operations per byte of a whole model, the exact count. patch_bytes: of a token model, of a token."""
    if isinstance(config, TokenConfig):
        return token_flops(config, patch_bytes, context)
    if isinstance(config, BltConfig):
        return sum(exact_flops(config, patch_bytes, context).values())
    return scorer_flops(config, context)
