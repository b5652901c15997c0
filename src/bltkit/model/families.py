"""Shapes of any size, for studies: four architectures over bytes, each scaled by one recipe.

- `blt`: the Byte Latent Transformer.
- `megabyte`: patches of one size (rule `stride`), their bytes side by side, no local encoder (MegaByte).
- `spacebyte`: patches that end with words (rule `space`), of which the last byte's state goes to the global layers,
  between local layers on both sides (SpaceByte).
- `byte`: a transformer over bytes without patches; a model of kind `entropy`, of which nobody uses the entropies.

Like their namesakes, not copies of them. What `megabyte` and `spacebyte` share with `blt`: latents that a byte sees as
soon as their patch is complete, local windows that reach over patches, RoPE and SwiGLU. MegaByte itself has a local
model that sees its own patch only and a slice of the latent for each byte; SpaceByte adds a latent to the byte in
front of its patch alone. Here one vector is added to every byte that sees the latent. Neither has cross-attention nor
n-grams.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, cast, get_args

from bltkit.model.config import BltConfig, ByteTransformerConfig, EntropyConfig, NgramConfig, StackConfig
from bltkit.vocab import VOCAB_SIZE

Family = Literal["blt", "megabyte", "spacebyte"]

MEGABYTE_BYTES = 8
"""Bytes of a patch that `megabyte` puts side by side: the largest patch of the studies."""

NO_NGRAMS = NgramConfig(sizes=())

_ASPECT = 80
"""Width of the global (or only) transformer by its layers; 1B of the released models: 82."""
_HEAD = 64
_WHOLE = EntropyConfig.model_fields["max_positions"].default
_TABLES = 0.5
"""Parameters of the n-gram tables of `blt`, as a share of all others."""
_SIZED = re.compile(r"(?P<family>[a-z]+)-(?P<number>\d+(\.\d+)?)(?P<unit>[kmb])")
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}

AnyShape = TypeVar("AnyShape", BltConfig, EntropyConfig)


def without_cross_attention(config: BltConfig, family: Literal["megabyte", "spacebyte"]) -> BltConfig:
    """The stacks of a BLT put together in another way. The encoder's layers: none, or as many as the decoder's."""
    is_megabyte = family == "megabyte"
    return config.replace(
        encoder=config.encoder.replace(layers=0 if is_megabyte else config.decoder.layers),
        ngrams=NO_NGRAMS,
        pooling="last",
        pooled_bytes=MEGABYTE_BYTES if is_megabyte else 1,
        encoder_cross_attn=False,
        encoder_cross_attn_all_layers=False,
        decoder_cross_attn=False,
    )


def sized_blt(family: Family, params: float) -> BltConfig:
    """A model of about so many parameters, n-gram tables not counted.

    Local width half of the global one, two vectors a patch, windows of 512 bytes, heads of 64, feed-forward layers
    three times as wide as their stack; `blt` has tables of half as many parameters beside.
    Raises ValueError for a size that no shape comes within a fifth of.
    """

    def shape(width: int, layers: int) -> BltConfig:
        local = width // 2
        stack = StackConfig(width=local, layers=1, heads=local // _HEAD, ffn_width=3 * local, window=512)
        blt = BltConfig(
            encoder=stack,
            latent=StackConfig(width=width, layers=layers, heads=width // _HEAD, ffn_width=3 * width),
            decoder=stack.replace(layers=max(2, round(0.4 * layers))),
            ngrams=NgramConfig(buckets=max(1, round(_TABLES * params / (6 * local)))),
        )
        return blt if family == "blt" else without_cross_attention(blt, cast(Any, family))

    return _nearest(family, params, 2 * _HEAD, shape, blt_params)


def sized_byte(params: float) -> EntropyConfig:
    """A byte transformer of about so many parameters, with a window that holds any row: it sees all, as latents do.

    Raises ValueError for a size that no shape comes within a fifth of.
    """

    def shape(width: int, layers: int) -> EntropyConfig:
        return EntropyConfig(
            width=width, layers=layers, heads=width // _HEAD, ffn_width=3 * width, window=_WHOLE, rope_theta=500000.0
        )

    return _nearest("byte", params, _HEAD, shape, byte_params)


def sized(name: str) -> BltConfig | EntropyConfig | None:
    """The shape that a name such as `megabyte-20m` or `byte-1.5b` stands for; None for other names.

    Raises ValueError for a size that no shape comes near.
    """
    found = _SIZED.fullmatch(name)
    if found is None or found["family"] not in (*get_args(Family), "byte"):
        return None
    params = float(found["number"]) * _UNITS[found["unit"]]
    return sized_byte(params) if found["family"] == "byte" else sized_blt(cast(Family, found["family"]), params)


def blt_params(config: BltConfig) -> int:
    """Parameters of a `Blt`, its n-gram tables left out."""
    width, wide = config.encoder.width, config.latent.width
    tables = VOCAB_SIZE * width * (2 if config.decoder_input == "embedding" else 1)
    pooling = config.pooled_width * config.patch_width + config.num_encoder_cross * _cross_params(config.encoder)
    latent = _stack_params(config.latent) + (config.patch_width * wide if config.patch_width != wide else 0)
    reading = wide * config.read_width + config.num_decoder_cross * _cross_params(config.decoder)
    decoder = _stack_params(config.decoder) + width + VOCAB_SIZE * width
    return tables + _stack_params(config.encoder) + pooling + latent + reading + decoder


def byte_params(config: ByteTransformerConfig) -> int:
    """Parameters of an `EntropyModel`."""
    return _stack_params(config) + config.width + 2 * VOCAB_SIZE * config.width


def _stack_params(stack: StackConfig) -> int:
    kv = stack.num_kv_heads * stack.head_dim
    return stack.layers * (2 * stack.width**2 + 2 * kv * stack.width + 3 * stack.width * stack.ffn + 2 * stack.width)


def _cross_params(stack: StackConfig) -> int:
    return 2 * stack.width**2 + 2 * stack.num_kv_heads * stack.head_dim * stack.width + 2 * stack.width


def _nearest(
    family: str,
    params: float,
    step: int,
    shape: Callable[[int, int], AnyShape],
    count: Callable[[AnyShape], int],
) -> AnyShape:
    """Of the right size above all, and as deep for its width as `_ASPECT` says as far as that leaves a choice."""

    def off(found: AnyShape) -> float:
        return abs(math.log(count(found) / params))

    def cost(one: tuple[int, int, AnyShape]) -> float:
        width, layers, found = one
        return off(found) + 0.1 * abs(math.log(width / layers / _ASPECT))

    found = min(_candidates(params, step, shape, count), key=cost)[2]
    if off(found) > math.log(1.2):
        raise ValueError(
            f"{family} of {params:,.0f} parameters: the nearest shape has {count(found):,}; ask for a size near that"
        )
    return found


def _candidates(
    params: float, step: int, shape: Callable[[int, int], AnyShape], count: Callable[[AnyShape], int]
) -> Iterator[tuple[int, int, AnyShape]]:
    """For every width that might do, the two depths around the size asked for."""
    # A layer has 13 W^2 parameters, and there are W / _ASPECT of them.
    middle = (_ASPECT * params / 13) ** (1 / 3)
    for width in range(step, step + 2 * int(middle), step):
        low, high = 1, max(2, width // 16)
        while high - low > 1:
            layers = (low + high) // 2
            low, high = (layers, high) if count(shape(width, layers)) <= params else (low, layers)
        for layers in (low, high):
            yield width, layers, shape(width, layers)
