"""The shapes of the models as frozen configs. Field names are ours; `checkpoint` maps them to Hugging Face's."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from bltkit.config import Config

NGRAM_PRIMES = (
    1000000007,
    5915587277,
    1500450271,
    3267000013,
    5754853343,
    4093082899,
    9576890767,
    3628273133,
    2860486313,
    5463458053,
    3367900313,
)
"""One prime per hash function; function f uses entry f mod 11."""


def default_ffn_width(width: int) -> int:
    """SwiGLU's two thirds of 4 x width, rounded up to a multiple of 256 as in the released models."""
    return 256 * -(-(8 * width // 3) // 256)


class StackConfig(Config):
    """A stack of pre-norm transformer layers with interleaved RoPE and SwiGLU."""

    width: PositiveInt
    """Width of the residual stream; an even multiple of `heads`."""
    layers: NonNegativeInt
    """None at all only in a BLT's encoder, which then pools the embeddings themselves."""
    heads: PositiveInt
    """Query heads of attention."""
    kv_heads: PositiveInt | None = None
    """Key/value heads for grouped-query attention; as many as `heads` when absent."""
    ffn_width: PositiveInt | None = None
    """Inner width of SwiGLU; `default_ffn_width` when absent."""
    window: PositiveInt | None = None
    """A query sees this many keys, itself included; all earlier ones when absent."""
    rope_theta: PositiveFloat = 500000.0
    """Base of the rotary positions."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the mean square in RMSNorm."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def ffn(self) -> int:
        """Inner width of SwiGLU."""
        return self.ffn_width or default_ffn_width(self.width)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads} (RoPE turns pairs)")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads {self.heads}")
        return self


class ByteTransformerConfig(StackConfig):
    """A small causal byte transformer that reads the text before it is cut."""

    layers: PositiveInt
    window: PositiveInt | None = 512
    rope_theta: PositiveFloat = 10000.0
    document_masks: bool = True
    """Attention stays within a document."""
    reset_at_newline: bool = False
    """The context is reset at every newline (BLT 4.4: against entropy drift in structured text)."""
    max_positions: PositiveInt = 8192
    """Told to Hugging Face's config; nothing here enforces it."""


class EntropyConfig(ByteTransformerConfig):
    """The entropy model: predicts the next byte, and its uncertainty places the patches (BLT 2.3)."""

    kind: Literal["entropy"] = "entropy"


class BoundaryConfig(ByteTransformerConfig):
    """One logit per byte, "a BPE token ends after this byte" (rule `bpe`)."""

    kind: Literal["boundary"] = "boundary"


class CnnConfig(Config):
    """A convolutional byte model that sees `context` bytes; its entropies fit in a table."""

    kind: Literal["cnn"] = "cnn"
    width: PositiveInt = 128
    """Width of the byte embedding."""
    context: Annotated[int, Field(ge=1, le=2)] = 2
    """Bytes that a prediction sees."""


class TrainedTokenizer(Config):
    """A byte-level BPE of `vocab_size` tokens, trained on the run's own training documents."""

    kind: Literal["trained"] = "trained"
    sample_bytes: PositiveInt = 16_000_000
    """Text that it is trained on: whole documents in an order of their contents' hashes, the last one cut."""


class SavedTokenizer(Config):
    """A byte-level BPE that is there already: a tokenizer.json, or the directory that holds one."""

    kind: Literal["saved"] = "saved"
    path: str
    """A tokenizer.json, or the directory that holds one."""


Tokenizer = Annotated[
    Annotated[TrainedTokenizer | SavedTokenizer, Field(discriminator="kind")],
    BeforeValidator(lambda value: {"kind": "saved", "path": value} if isinstance(value, str) else value),
]
"""How a token model gets its tokens; a path in place of a table is that of a saved one."""


class TokenShape(StackConfig):
    """A decoder-only transformer over tokens: embedding, layers as ours, final norm, head."""

    vocab_size: PositiveInt
    tied: bool = False
    """The head is the embedding table."""


class TokenConfig(TokenShape):
    """A token model of Llama's shape, trained on the same rows of bytes as the others: the baseline (BLT 4.1)."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: PositiveInt = 4096
    """Rows of the embedding and of the head: the tokens, BOS, EOS and padding among them, or more."""
    tokenizer: Tokenizer = TrainedTokenizer()
    """A run that goes on from a checkpoint (`--resume`, `trainer.branch`, `trainer.init`) keeps that one's."""
    document_masks: bool = True
    """Attention stays within a document. Hugging Face's model is shown one document a row, where it does anyway."""
    max_positions: PositiveInt = 8192
    """Tokens; told to Hugging Face's config, and nothing here enforces it. Evaluation shows no more bytes at once."""

    @model_validator(mode="after")
    def _check_llama(self) -> Self:
        if self.window is not None:
            raise ValueError(f"window = {self.window}: a Llama's attention has none; leave it out")
        return self


class NgramConfig(Config):
    """Hash n-gram embeddings (BLT 3.2.1)."""

    sizes: tuple[PositiveInt, ...] = (3, 4, 5, 6, 7, 8)
    """Bytes of an n-gram; none of them: bytes are embedded alone, and there are no tables."""
    buckets: PositiveInt = 500002
    """Rows per (function, size) table."""
    functions: PositiveInt = 1
    """Hash functions, each with tables of its own."""

    @property
    def num_tables(self) -> int:
        """One table per hash function and n-gram size."""
        return self.functions * len(self.sizes)


class Quirks(Config):
    """What the released weights need and the paper does not say; all of it lives here and in `model.embed`.

    Two further ones have no switch, since nothing is gained by another choice: RoPE turns neighbouring pairs
    (interleaved), and the n-gram hash wraps in signed 64-bit arithmetic.
    """

    doubled_residual: bool = True
    """Cross-attention adds its query twice: q <- 2 q + X(q, kv)."""
    averaged_ngrams: bool = False
    """The paper divides the embedding by the number of n-gram tables + 1; the released models do not."""


class BltConfig(Config):
    """A Byte Latent Transformer: local encoder, global latent transformer, local decoder (BLT 3)."""

    kind: Literal["blt"] = "blt"
    encoder: StackConfig
    """The local encoder: bytes to patches."""
    latent: StackConfig
    """The global transformer over patches."""
    decoder: StackConfig
    """The local decoder: patches to bytes; as wide as the encoder."""
    cross_attn_k: PositiveInt = 2
    """Latent vectors of local width per patch."""
    ngrams: NgramConfig = NgramConfig()
    """Hash n-gram embeddings beside the bytes'."""
    pooling: Literal["max", "mean", "last"] = "max"
    """What a patch's vectors are a projection of, before its bytes are attended to: the maximum or the mean of its
    byte states, or the states of its last `pooled_bytes` bytes side by side."""
    pooled_bytes: PositiveInt = 1
    """With pooling `last`, of a patch that has fewer bytes zeros stand in front. As many as a patch's bytes: what
    MegaByte does with patches of one size; 1: SpaceByte."""
    encoder_cross_attn: bool = True
    """Off: a patch's vectors stay what `pooling` makes of its bytes."""
    encoder_cross_attn_all_layers: bool = False
    """Cross-attend after every encoder layer, pooling once after the first; else after the last only."""
    decoder_cross_attn: bool = True
    """Off: the latent that a byte may see, projected to the local width, is added to its state at the beginning."""
    decoder_cross_attn_all_layers: bool = True
    """Cross-attend before every decoder layer; else before the first only."""
    document_masks: bool = True
    """Attention and n-gram windows stay within a document. Off for weights in plain Hugging Face layout."""
    decoder_input: Literal["encoder", "embedding"] = "encoder"
    """What the decoder begins with: the encoder's byte states, and rows of the encoder's byte table for the bytes of a
    block; or, for all, rows of a table of its own, as Fast BLT 3 describes it."""
    diffusion_block: PositiveInt | None = None
    """Bytes of a block that the decoder was trained to fill in at once (BLT-D); None: it knows the next byte only."""
    quirks: Quirks = Quirks()
    """What the released weights need and the paper does not say."""
    max_positions: PositiveInt = 24576
    """Bytes; told to Hugging Face's config, and nothing here enforces it."""
    max_patch_positions: PositiveInt = 4096
    """Patches; told to Hugging Face's config, and nothing here enforces it."""

    @property
    def num_encoder_cross(self) -> int:
        """Cross-attention blocks of the encoder."""
        if not self.encoder_cross_attn:
            return 0
        return self.encoder.layers if self.encoder_cross_attn_all_layers else 1

    @property
    def num_decoder_cross(self) -> int:
        """Cross-attention blocks of the decoder."""
        if not self.decoder_cross_attn:
            return 0
        return self.decoder.layers if self.decoder_cross_attn_all_layers else 1

    @property
    def patch_width(self) -> int:
        """Width of a patch's k vectors side by side."""
        return self.cross_attn_k * self.encoder.width

    @property
    def pooled_width(self) -> int:
        """Width of what a patch's vectors are a projection of."""
        return self.pooled_bytes * self.encoder.width

    @property
    def read_width(self) -> int:
        """Width of what the decoder makes of a latent: k vectors to attend to, or one to add."""
        return self.patch_width if self.decoder_cross_attn else self.decoder.width

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.encoder.width != self.decoder.width:
            raise ValueError(
                f"encoder.width {self.encoder.width} and decoder.width {self.decoder.width} must be equal: "
                "the decoder continues the encoder's byte stream"
            )
        for name, stack in (("latent", self.latent), ("decoder", self.decoder)):
            if not stack.layers:
                raise ValueError(f"{name}.layers = 0: only the encoder can do without layers; use 1 or more")
        if self.encoder_cross_attn_all_layers and not (self.encoder_cross_attn and self.encoder.layers):
            raise ValueError(
                "encoder_cross_attn_all_layers = true needs encoder_cross_attn = true and encoder.layers of 1 or more"
            )
        if self.pooled_bytes > 1 and self.pooling != "last":
            raise ValueError(
                f"pooled_bytes = {self.pooled_bytes} is of pooling = 'last', but pooling = {self.pooling!r}; "
                "leave it out"
            )
        return self
