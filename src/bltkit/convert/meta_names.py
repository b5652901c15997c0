"""Tensor names: Hugging Face's, which are those of our files, and Meta's.

Meta's entropy model has a file of its own with names without a prefix, and each hash table is a tensor of its own
where Hugging Face's format stacks them.
"""

from bltkit.checkpoint.names import OWN_PREFIX, SCORER_PREFIX

TABLES = "model.encoder_hash_tok_embedding.weight"
"""All hash tables, stacked along dim 0."""

_HEAD, _META_HEAD = "lm_head.weight", "local_decoder.output.weight"

_WORDS = {
    "self_attn": "attention",
    "mlp": "feed_forward",
    "gate_proj": "w1",
    "up_proj": "w3",
    "down_proj": "w2",
    "q_proj": "wq",
    "k_proj": "wk",
    "v_proj": "wv",
    "o_proj": "wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "tok_embeddings",
    "q_norm": "cross_attn_norm_q",
    "k_norm": "cross_attn_norm_kv",
    "lm_head": "output",
}
"""Words of a name between dots: Hugging Face's, and Meta's."""


def of_entropy_model(name: str) -> bool:
    """Does Hugging Face's tensor `name` lie in the file of Meta's entropy model?"""
    return name.startswith(SCORER_PREFIX)


def meta_names(name: str, num_tables: int) -> tuple[str, ...]:
    """Meta's tensors that Hugging Face's tensor `name` is a stack of, in order: one, but for the hash tables.

    Raises ValueError for a tensor that only our own format has.
    """
    if name.startswith((OWN_PREFIX, SCORER_PREFIX + OWN_PREFIX)):
        raise ValueError(f"tensor {name} has no place in Meta's layouts; convert this model to 'ours' only")
    if name == TABLES:
        return tuple(f"encoder_hash_tok_embedding.{index}.weight" for index in range(num_tables))
    if name == _HEAD:
        return (_META_HEAD,)
    inner = name.removeprefix(SCORER_PREFIX) if of_entropy_model(name) else name.removeprefix("model.")
    return (".".join(_WORDS.get(word, word) for word in inner.split(".")),)
