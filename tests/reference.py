"""The slow, obvious Byte Latent Transformer: the executable specification that every fast path must equal.

float64 numpy, one row at a time, every attention a dense boolean mask of "who sees whom". Nothing here is
shared with the package, so that a mistake cannot hide in both. `weights` maps the checkpoint's tensor names
(Hugging Face layout) to arrays, `config` is that layout's config.json as a plain dict. Sources: "BLT" =
arXiv 2412.09871, and the released weights, whose quirks are: the residual around cross-attention counts
twice, the hash sum is not normalised and wraps in int64, RoPE turns neighbouring pairs, and short n-grams
are padded with id 0.

Letters: T bytes (ids), P patches, k latent vectors per patch, h local width, H global width, V = 260.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Weights = Mapping[str, Any]
Config = Mapping[str, Any]
Linear = Callable[[str, Array], Array]

PAD, BOS, MASK, NEWLINE = 0, 1, 3, 10 + 4
PRIMES = (
    1000000007, 5915587277, 1500450271, 3267000013, 5754853343, 4093082899,
    9576890767, 3628273133, 2860486313, 5463458053, 3367900313,
)  # fmt: skip


class View:
    """The tensors below one name prefix, as float64; `view("q_proj", x)` is a bias-free linear map."""

    def __init__(self, weights: Weights, prefix: str = "") -> None:
        self.weights, self.prefix = weights, prefix

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self.weights[f"{self.prefix}{name}.weight"], dtype=np.float64)

    def __call__(self, name: str, x: Array) -> Array:
        return x @ self[name].T

    def sub(self, prefix: str) -> "View":
        return View(self.weights, f"{self.prefix}{prefix}.")


# ------------------------------------------------------------ who sees whom


def documents_of(ids: Sequence[int], separate: bool) -> list[int]:
    """The document number of every id: a new one at every BOS, if documents are kept `separate`."""
    number, out = 0, []
    for c in ids:
        number += int(separate and c == BOS)
        out.append(number)
    return out


def causal_mask(groups: Sequence[int], window: int | None) -> Mask:
    """[T, T]: t sees u <= t of its own group, at most `window` of them, itself included."""
    size = len(groups)
    mask = np.zeros((size, size), dtype=bool)
    for t in range(size):
        for u in range(t + 1):
            mask[t, u] = groups[u] == groups[t] and (window is None or t - u < window)
    return mask


# ------------------------------------------------------------ shared blocks


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    return np.asarray(gain * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps))


def silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def log_softmax(x: Array) -> Array:
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def rope(x: Array, heads: int, theta: float) -> Array:
    """Turns the pairs (0,1), (2,3), ... of every head of row t by t * theta^(-2i/d)."""
    rows, width = x.shape
    d = width // heads
    out = np.empty_like(x)
    for t in range(rows):
        for head in range(heads):
            for i in range(d // 2):
                angle = t * theta ** (-2 * i / d)
                a, b = head * d + 2 * i, head * d + 2 * i + 1
                out[t, a] = x[t, a] * math.cos(angle) - x[t, b] * math.sin(angle)
                out[t, b] = x[t, b] * math.cos(angle) + x[t, a] * math.sin(angle)
    return out


def attention(q: Array, k: Array, v: Array, mask: Mask, heads: int, kv_heads: int) -> Array:
    """q [Q, heads d], k and v [K, kv_heads d], mask [Q, K] (true = seen) -> [Q, heads d]."""
    d = q.shape[1] // heads
    out = np.zeros_like(q)
    for head in range(heads):
        mine = slice(head * d, (head + 1) * d)
        group = head // (heads // kv_heads)
        theirs = slice(group * d, (group + 1) * d)
        for row in range(len(q)):
            seen = np.flatnonzero(mask[row])
            scores = k[seen, theirs] @ q[row, mine] / math.sqrt(d)
            out[row, mine] = np.exp(log_softmax(scores)) @ v[seen, theirs]
    return out


def heads_of(config: Config) -> tuple[int, int]:
    heads = config["num_attention_heads"]
    return heads, config.get("num_key_value_heads") or heads


def transformer_layer(w: View, config: Config, x: Array, mask: Mask, theta: float) -> Array:
    """One pre-norm layer: attention with RoPE on the row index, then a gated feed-forward."""
    heads, kv_heads = heads_of(config)
    eps = config.get("rms_norm_eps", 1e-5)
    theta = (config.get("rope_parameters") or config).get("rope_theta", theta)
    n = rms_norm(x, w["input_layernorm"], eps)
    q = rope(w("self_attn.q_proj", n), heads, theta)
    k = rope(w("self_attn.k_proj", n), kv_heads, theta)
    x = x + w("self_attn.o_proj", attention(q, k, w("self_attn.v_proj", n), mask, heads, kv_heads))
    m = rms_norm(x, w["post_attention_layernorm"], eps)
    return x + w("mlp.down_proj", silu(w("mlp.gate_proj", m)) * w("mlp.up_proj", m))


def transformer(w: View, config: Config, x: Array, mask: Mask, theta: float = 500000.0) -> Array:
    for i in range(config["num_hidden_layers"]):
        x = transformer_layer(w.sub(f"layers.{i}"), config, x, mask, theta)
    return x


def cross_attention(w: View, config: Config, q: Array, kv: Array, mask: Mask) -> Array:
    """One step. The block's own residual and its caller's make 2 q + X(q, kv), not q + X(q, kv)."""
    heads, kv_heads = heads_of(config)
    eps = config.get("rms_norm_eps", 1e-5)
    nq, nkv = rms_norm(q, w["q_norm"], eps), rms_norm(kv, w["k_norm"], eps)
    x = attention(w("q_proj", nq), w("k_proj", nkv), w("v_proj", nkv), mask, heads, kv_heads)
    return 2 * q + w("o_proj", x)


# ------------------------------------------------------------ entropies and patches


def entropies(
    weights: Weights, config: Config, ids: Sequence[int], *, documents: bool = False, newlines: bool = False
) -> Array:
    """Entropy in nats [T] of the prediction of id t+1, over all ids. `newlines`: forget at each newline."""
    w, c = View(weights).sub("model.patcher"), config["patcher_config"]
    mask = causal_mask(documents_of(ids, documents), c.get("sliding_window", 512))
    for u in range(len(ids)):
        if newlines and ids[u] == NEWLINE:
            mask[u:, :u] = False
    x = transformer(w, c, w["embed_tokens"][list(ids)], mask, theta=10000.0)
    logp = log_softmax(w("lm_head", rms_norm(x, w["norm"], c.get("rms_norm_eps", 1e-5))))
    return np.asarray(-(np.exp(logp) * logp).sum(axis=-1))


def starts_of(
    ids: Sequence[int],
    entropy: Array,
    threshold: float,
    *,
    documents: bool = False,
    max_patch_bytes: int | None = None,
) -> list[bool]:
    """Whether byte q opens a patch, q = 0..T (T is the byte not yet seen): the global threshold rule.

    BOS is a patch of its own, so q = 0 and q = 1 always do; with `documents` also every other BOS and the
    byte after it.
    """
    size = len(ids)
    starts: list[bool] = []
    last = 0
    for q in range(size + 1):
        forced = q <= 1 or (documents and (ids[q - 1] == BOS or (q < size and ids[q] == BOS)))
        hard = q >= 2 and bool(entropy[q - 1] > threshold)
        full = max_patch_bytes is not None and q - last >= max_patch_bytes
        starts.append(forced or hard or full)
        if starts[-1]:
            last = q
    return starts


def starts_from_lengths(lengths: Sequence[int], num_ids: int) -> list[bool]:
    """Starts [T+1] from patch lengths. Any entry beyond the T ids says that id T opens a patch."""
    starts = [False] * (num_ids + 1)
    at = 0
    for length in lengths:
        starts[at] = True
        at += length
        if at > num_ids:
            break
    return starts


def patch_of(starts: Sequence[bool]) -> list[int]:
    """For q = 0..T: the patch that q lies in."""
    out: list[int] = []
    for q in range(len(starts)):
        out.append((out[-1] if out else -1) + int(starts[q]))
    return out


# ------------------------------------------------------------ embeddings


def hash_bucket(window: Sequence[int], prime: int, buckets: int) -> int:
    """Polynomial hash of an n-gram of ids, oldest first, in int64 that wraps, then floor modulo."""
    raw: int = sum(c * prime**i for i, c in enumerate(window))
    wrapped = (raw + 2**63) % 2**64 - 2**63
    return wrapped % buckets


def ngram_sizes(config: Config) -> Sequence[int]:
    """None at all only in a layout of ours: in Hugging Face's an empty list means the released models' sizes."""
    sizes: Sequence[int] = config.get("encoder_hash_byte_group_size") or ()
    return sizes if sizes or "bltkit" in config else (3, 4, 5, 6, 7, 8)


def hash_ids(config: Config, ids: Sequence[int], *, documents: bool = False) -> list[list[int]]:
    """Bucket of every position, one list [T] per table: functions outside, n-gram sizes inside."""
    docs = documents_of(ids, documents)
    tables = []
    for function in range(config.get("encoder_hash_byte_group_nb_functions", 1)):
        for n in ngram_sizes(config):
            row = []
            for t in range(len(ids)):
                reach = range(t - n + 1, t + 1)
                window = [ids[u] if u >= 0 and docs[u] == docs[t] else 0 for u in reach]
                prime = PRIMES[function % len(PRIMES)]
                row.append(hash_bucket(window, prime, config.get("encoder_hash_byte_group_vocab", 500002)))
            tables.append(row)
    return tables


def embed(weights: Weights, config: Config, ids: Sequence[int], *, documents: bool = False) -> Array:
    """Byte embedding plus the plain sum of its n-gram embeddings [T, h]; one matrix stacks the tables."""
    w = View(weights).sub("model")
    buckets = config.get("encoder_hash_byte_group_vocab", 500002)
    x = w["local_encoder.embed_tokens"][list(ids)]
    for number, row in enumerate(hash_ids(config, ids, documents=documents)):
        for t, bucket in enumerate(row):
            x[t] += w["encoder_hash_tok_embedding"][number * buckets + bucket]
    return x


# ------------------------------------------------------------ the model


def pool(w: View, x: Array, owner: Sequence[int], num_patches: int, k: int, own: Config) -> Array:
    """[P k, h]: the maximum over a patch's bytes, projected to the patch's k queries.

    own: what Hugging Face's layout cannot say: the mean in the maximum's place, or the last bytes side by side, zeros
    in front of a patch that has fewer.
    """
    rows = []
    for j in range(num_patches):
        members = [x[t] for t in range(len(x)) if owner[t] == j]
        if own.get("pooling", "max") == "max":
            best = np.max(members, axis=0)
        elif own["pooling"] == "mean":
            best = sum(members, np.zeros(x.shape[1])) / len(members)
        else:
            missing = max(0, own["pooled_bytes"] - len(members))
            best = np.concatenate([np.zeros(x.shape[1])] * missing + members[-own["pooled_bytes"] :])
        rows.append((w["patch_embedding_projection"] @ best).reshape(k, -1))
    return np.concatenate(rows)


def forward(
    weights: Weights, config: Config, ids: Sequence[int], starts: Sequence[bool], *, documents: bool = False
) -> dict[str, Array]:
    """Everything the model computes for one row of ids [T] cut into patches by `starts` [T+1].

    Returns `embeds` [T,h], `enc_hidden` [T,h], `enc_patches` [P k, h], `global_out` [P,H], `dec_hidden`
    [T,h] (after the final norm) and `logits` [T,V] (row t predicts id t+1). `documents` keeps attention and
    n-grams within a document.
    """
    size = len(ids)
    assert len(starts) == size + 1 and starts[0] and starts[1], "BOS must be a patch of its own"
    w = View(weights).sub("model")
    enc, dec, glob = config["encoder_config"], config["decoder_config"], config["global_config"]
    k = config["cross_attn_k"]
    assert k == enc["cross_attn_k"] == dec["cross_attn_k"], "the config stores k three times"
    docs = documents_of(ids, documents)
    mask = causal_mask(docs, config.get("local_attention_window_len", 512))
    patch = patch_of(starts)
    owner = patch[:size]  # the patch a byte is pooled into
    latest = [patch[t + 1] - 1 for t in range(size)]  # the last patch that is complete once byte t is known
    num_patches = owner[-1] + 1

    x = embeds = embed(weights, config, ids, documents=documents)
    we = w.sub("local_encoder")
    sees_own_bytes = np.array([[owner[t] == row // k for t in range(size)] for row in range(num_patches * k)])
    every_layer, layers = enc.get("cross_attn_all_layers", False), enc["num_hidden_layers"]
    own = config.get("bltkit", {})
    z: Array | None = None
    for i in range(max(1, layers)):  # without layers what is pooled are the embeddings
        if layers:
            x = transformer_layer(we.sub(f"layers.{i}"), enc, x, mask, 500000.0)
        if (every_layer and own.get("encoder_cross_attn", True)) or i >= layers - 1:
            # Pooled once, after the first layer that feeds it; later layers refine the same queries.
            z = pool(we, x, owner, num_patches, k, own) if z is None else z
            if own.get("encoder_cross_attn", True):
                block = we.sub(f"cross_attn_layers.{i if every_layer else 0}")
                z = cross_attention(block, enc, z, x, sees_own_bytes)
    assert z is not None
    enc_hidden = x

    g = z.reshape(num_patches, -1)
    if g.shape[1] != glob["hidden_size"]:
        g = w("global_transformer.token_embedding_projection", g)
    first_byte = [owner.index(j) for j in range(num_patches)]
    o = transformer(w.sub("global_transformer"), glob, g, causal_mask([docs[t] for t in first_byte], None))

    y = decode(w.sub("local_decoder"), dec, enc_hidden, o, latest, mask, added=not own.get("decoder_cross_attn", True))
    return {
        "embeds": embeds,
        "enc_hidden": enc_hidden,
        "enc_patches": z,
        "global_out": o,
        "dec_hidden": y,
        "logits": View(weights)("lm_head", y),
    }


def decode(
    w: View, config: Config, y: Array, o: Array, latent_of: Sequence[int], mask: Mask, *, added: bool = False
) -> Array:
    """Rows y [T, h] of which row t reads latent `latent_of[t]` of o [P, H] -> after the final norm [T, h].

    added: no cross-attention; the latent, projected, is added to the row before the first layer.
    """
    k = 1 if added else config["cross_attn_k"]
    kv = w("patch_embedding_projection", o).reshape(len(o) * k, -1)
    sees_latest = np.array([[row // k == latent for row in range(len(o) * k)] for latent in latent_of])
    for i in range(config["num_hidden_layers"]):
        if added and i == 0:
            y = y + np.array([kv[latent] for latent in latent_of])
        if not added and (i == 0 or config.get("cross_attn_all_layers", True)):
            y = cross_attention(w.sub(f"cross_attn_layers.{i}"), config, y, kv, sees_latest)
        y = transformer_layer(w.sub(f"layers.{i}"), config, y, mask, 500000.0)
    return rms_norm(y, w["norm"], config.get("rms_norm_eps", 1e-5))


def block_logits(
    weights: Weights,
    config: Config,
    ids: Sequence[int],
    starts: Sequence[bool],
    first: int,
    cells: Sequence[int],
    *,
    documents: bool = False,
    read: int | None = None,
    open_patch: bool = False,
) -> Array:
    """[S, V] of a block whose `cells` (a byte's id, MASK, or PAD behind the end) begin at position `first` of the row.

    As at inference: the decoder reads the clean bytes in front of the block, then the block. Every cell sees all
    of the block but PAD, the clean bytes within the window of its own position, and the latent that is complete.
    read: bytes read so far, of which a window's cache keeps the last but what the next one would not see.
    open_patch: the latent is that of the patch in front of the block, as if it ended there.
    """
    size = first if open_patch else len(ids)
    found = forward(weights, config, ids[:size], starts[: size + 1], documents=documents)
    w = View(weights).sub("model")
    patch, docs = patch_of(starts), documents_of(ids, documents)
    window = config.get("local_attention_window_len", 512)
    size = first + len(cells)
    mask = np.zeros((size, size), dtype=bool)
    mask[:first, :first] = causal_mask(docs[:first], window)
    for row in range(first, size):
        for u in range(first):
            kept = window is None or max(row, read or row) - u < window
            mask[row, u] = docs[u] == docs[first] and kept
        for u in range(first, size):
            mask[row, u] = cells[u - first] != 0 or u == row
    latent_of = [patch[t + 1] - 1 for t in range(first)] + [patch[first - int(open_patch)] - int(not open_patch)] * len(
        cells
    )
    rows = np.concatenate((found["enc_hidden"][:first], w["local_encoder.embed_tokens"][list(cells)]))
    added = not config.get("bltkit", {}).get("decoder_cross_attn", True)
    y = decode(
        w.sub("local_decoder"), config["decoder_config"], rows, found["global_out"], latent_of, mask, added=added
    )
    return View(weights)("lm_head", y)[first:]


def unmask(
    logits_of: Callable[[Sequence[int]], Array],
    pick: Callable[[Array, int], int],
    cells: Sequence[int],
    *,
    alpha: float | None = None,
    gamma: float | None = None,
    steps: int | None = None,
    ends: Sequence[int] = (),
) -> tuple[list[int], int]:
    """Fills in the MASKs of a block: the cells, and the passes it took.

    pick: the id of a cell, from its logits. A pass writes the cells whose largest probability is above alpha, or the
    surest up to gamma nats in all, one at least; the last of `steps` passes, or the only one, all that are left; with
    neither alpha nor gamma the surest are written in equal shares. Behind a written one of `ends` nothing is.
    """
    row, passes = list(cells), 0
    known = [c != MASK for c in cells]
    while True:
        end = next((c for c in range(len(row)) if not known[c] and row[c] in ends), len(row))
        masked = [c for c in range(end) if row[c] == MASK]
        if not masked:
            return row, passes
        logits = np.array(logits_of(row))
        logits[:, [PAD, BOS, MASK]] = -np.inf
        largest, entropy = {}, {}
        for c in masked:
            logp = log_softmax(logits[c])
            largest[c] = float(np.exp(logp.max()))
            entropy[c] = -sum(float(np.exp(v) * v) for v in logp if v > -np.inf)
        # Cells that see the same (all MASK, no clean byte in the window) are equally sure: the first goes first.
        surest = sorted(masked, key=lambda c: -round(largest[c], 6))
        if (alpha is None and gamma is None and steps is None) or (steps is not None and passes >= steps - 1):
            written = masked
        elif alpha is not None:
            written = [c for c in masked if largest[c] > alpha] or surest[:1]
        elif gamma is not None:
            calm = sorted(masked, key=lambda c: round(entropy[c], 6))
            written = [c for n, c in enumerate(calm) if n == 0 or sum(entropy[d] for d in calm[: n + 1]) <= gamma]
        else:
            assert steps is not None
            written = surest[: math.ceil(len(masked) / (steps - passes))]
        for c in written:
            row[c] = pick(logits[c], c)
        passes += 1


def run(weights: Weights, config: Config, ids: Sequence[int], *, documents: bool = False) -> Array:
    """What a checkpoint computes for one row: entropies, patches at its threshold, logits [T, V]."""
    entropy = entropies(weights, config, ids, documents=documents)
    limit = config.get("max_patch_length")
    threshold = config["patching_threshold"]
    starts = starts_of(ids, entropy, threshold, documents=documents, max_patch_bytes=limit)
    return forward(weights, config, ids, starts, documents=documents)["logits"]


def next_byte_loss(logits: Array, ids: Sequence[int]) -> float:
    """Mean cross-entropy in nats of ids 1..T-1 given the logits of the positions before them."""
    logp = log_softmax(logits)
    return -sum(float(logp[t, ids[t + 1]]) for t in range(len(ids) - 1)) / (len(ids) - 1)
