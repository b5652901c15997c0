"""Tiny random models of `transformers`, the oracle of the parity tests: configurations, weights, logits.

`shapes()` draws the corners that matter: k, one to three layers everywhere, grouped heads, windows shorter
than the text or none, one or two hash functions, with and without the projections, an entropy model of its
own shape. Encoder cross-attention stands after the last layer only: with more layers than one,
cross-attention in each is the one place where this oracle re-pools and so computes another model than the
released one (`tests/reference.py` follows the latter).
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import recipe, reference

MIN_GAP = 1e-3  # nats on either side of the threshold: far above fp32 rounding, so no boundary hangs on it


@dataclass(frozen=True)
class Stack:
    """Width, layers and heads of one of the four transformers."""

    width: int = 16
    layers: int = 1
    heads: int = 2
    kv_heads: int = 2
    ffn: int = 24

    def keys(self) -> dict[str, Any]:
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.ffn,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
        }


@dataclass(frozen=True)
class Shape:
    """A tiny model, but for its weights and threshold."""

    k: int = 2
    encoder: Stack = field(default_factory=Stack)
    decoder: Stack = field(default_factory=Stack)
    latent: Stack = field(default_factory=lambda: Stack(width=32))
    patcher: Stack = field(default_factory=Stack)
    window: int | None = 8
    patcher_window: int | None = 6
    hash_functions: int = 1
    hash_vocab: int = 61
    group_sizes: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    encoder_every_layer: bool = False

    def describe(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """A model (its weights are `recipe.tensors(seed, ...)`) and a row of ids, BOS in front."""

    shape: Shape
    seed: int
    ids: tuple[int, ...]


@st.composite
def stacks(draw: st.DrawFn, widths: tuple[int, ...] = (8, 16, 24, 32)) -> Stack:
    """One transformer; heads of an even width (RoPE turns pairs), kv heads dividing the heads."""
    width = draw(st.sampled_from(widths))
    heads = draw(st.sampled_from([n for n in (1, 2, 4) if width % (2 * n) == 0]))
    kv_heads = draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0]))
    ffn = draw(st.sampled_from([8, 20, 40]))
    return Stack(width=width, layers=draw(st.integers(1, 3)), heads=heads, kv_heads=kv_heads, ffn=ffn)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """A tiny model.

    Encoder and decoder share their width (the byte stream runs through both), nothing else.
    """
    k = draw(st.integers(1, 4))
    width = draw(st.sampled_from([8, 16, 24]))
    windows = st.one_of(st.none(), st.integers(4, 16))
    return Shape(
        k=k,
        encoder=draw(stacks((width,))),
        decoder=draw(stacks((width,))),
        # k times the local width needs no projection into the latent model; the other widths do.
        latent=draw(stacks(draw(st.sampled_from([(k * width,), (16, 32)])))),
        patcher=draw(stacks()),
        window=draw(windows),
        patcher_window=draw(windows),
        hash_functions=draw(st.integers(1, 2)),
        hash_vocab=draw(st.integers(5, 97)),
        group_sizes=draw(st.sampled_from([(3, 4, 5, 6, 7, 8), (3,), (2, 5)])),
    )


@st.composite
def rows(draw: st.DrawFn, lengths: tuple[int, ...] = (20, 33, 48, 41, 27, 9, 1, 0)) -> tuple[int, ...]:
    """BOS and random bytes.

    Lengths are drawn from a list, as drawn lists are mostly too short to fill a window.
    """
    length, seed = draw(st.sampled_from(lengths)), draw(st.integers(0, 2**16))
    # The small alphabet makes n-grams and neighbours recur.
    alphabet = draw(st.sampled_from((bytes(range(256)), b"ab \n", b"a")))
    chosen = np.random.RandomState(seed).randint(len(alphabet), size=length)
    return (1, *(alphabet[i] + 4 for i in chosen))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A tiny model and a row for it."""
    return Case(shape=draw(shapes()), seed=draw(st.integers(0, 2**16)), ids=draw(rows()))


def config_of(shape: Shape, threshold: float = 4.0) -> Any:
    """The shape as a `BltConfig`.

    k is stored three times, and the feed-forward widths are always written out.
    """
    from transformers import BltConfig

    local = {"vocab_size": 260, "cross_attn_k": shape.k, "hidden_size_global": shape.latent.width}
    return BltConfig(
        vocab_size=260,
        max_position_embeddings=256,
        patch_in_forward=True,
        patch_size=4,
        patching_mode="entropy",
        patching_threshold=threshold,
        max_patch_length=None,
        local_attention_window_len=shape.window,
        cross_attn_k=shape.k,
        encoder_hash_byte_group_size=list(shape.group_sizes),
        encoder_hash_byte_group_vocab=shape.hash_vocab,
        encoder_hash_byte_group_nb_functions=shape.hash_functions,
        patcher_config={**shape.patcher.keys(), "vocab_size": 260, "sliding_window": shape.patcher_window},
        encoder_config={**local, **shape.encoder.keys(), "cross_attn_all_layers": shape.encoder_every_layer},
        decoder_config={**local, **shape.decoder.keys(), "cross_attn_all_layers": True},
        global_config=shape.latent.keys(),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )


def model_of(shape: Shape, seed: int, threshold: float = 4.0) -> Any:
    """`BltForCausalLM` in fp32 with eager attention and the recipe's weights."""
    from transformers import BltForCausalLM

    model = BltForCausalLM(config_of(shape, threshold)).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(recipe.tensor(seed, name, tuple(parameter.shape))))
    return model


def build(case: Case) -> Any:
    """The case's model, its threshold in the middle of a wide gap between the row's entropies."""
    model = model_of(case.shape, case.seed)
    model.config.patching_threshold = threshold_in_gap(entropies(model, case.ids))
    return model


def threshold_in_gap(entropy: NDArray[np.float32]) -> float:
    """A float32 threshold in the widest gap of the middle half, so that the row has long patches and short
    ones.

    e_0 is left out, as no boundary reads it. Rows that repeat one id have no gap inside; there it lies
    outside.
    """
    values = np.sort(np.asarray(entropy, dtype=np.float64)[1:])
    if len(values) == 0:
        return 1.0
    quarter = len(values) // 4
    middle = values[quarter : len(values) - quarter]
    gaps = np.diff(middle)
    if len(gaps) == 0 or gaps.max() < 2 * MIN_GAP:
        return float(np.float32(values[0] - 0.5))
    j = int(np.argmax(gaps))
    return float(np.float32((middle[j] + middle[j + 1]) / 2))


@torch.no_grad()
def entropies(model: Any, ids: tuple[int, ...]) -> NDArray[np.float32]:
    """The oracle's entropies [T] in nats."""
    found = model.model.patcher(torch.tensor([ids]), patch_size=4, threshold=0.0)[0]
    return np.asarray(found[0].numpy())


@torch.no_grad()
def logits(model: Any, ids: tuple[int, ...], **extra: Any) -> NDArray[np.float32]:
    """The oracle's logits [T, 260] for one row, without its cache."""
    return np.asarray(model(torch.tensor([ids]), use_cache=False, **extra).logits[0].numpy())


def text_ids(text: str) -> tuple[int, ...]:
    """BOS and the text's bytes."""
    return (1, *(b + 4 for b in text.encode()))


def text_logits(model: Any, text: str) -> NDArray[np.float32]:
    return logits(model, text_ids(text))


def weights_of(model: Any) -> dict[str, NDArray[np.float32]]:
    """The model's tensors by their checkpoint names."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def save(model: Any, directory: Path) -> None:
    """Writes `config.json` and `model.safetensors`, as anyone would publish the model."""
    _no_progress_bars()
    model.save_pretrained(directory)


def spell_as_published(directory: Path) -> dict[str, Any]:
    """Rewrites a saved config.json as the converted checkpoints on the hub spell theirs, and returns it.

    `rope_theta` stands alone, `norm_eps` is there and not read, windows and heads of keys are left to their
    defaults: 512 bytes, and one for each query head (so the model must have no grouped heads).
    """
    path = directory / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    for number, stack in enumerate(("patcher_config", "encoder_config", "decoder_config", "global_config")):
        for key in ("rope_parameters", "sliding_window", "head_dim", "num_key_value_heads", "rms_norm_eps"):
            config[stack].pop(key, None)
        # Unlike any default, and unlike each other: a model that does not read them cannot pass.
        config[stack] |= {"rope_theta": 50.0 * (number + 1), "norm_eps": 0.1}
    for key in ("rope_parameters", "local_attention_window_len"):
        config.pop(key, None)
    path.write_text(json.dumps(config))
    return config


def load(directory: Path) -> Any:
    """Reads a published directory back, strictly: a tensor missing, left over or of another shape is an
    error.
    """
    from transformers import BltForCausalLM

    _no_progress_bars()
    model, report = BltForCausalLM.from_pretrained(directory, output_loading_info=True, attn_implementation="eager")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def _no_progress_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def rounding_error(model: Any, ids: tuple[int, ...]) -> float:
    """How far the oracle's own fp32 entropies and logits lie from the exact ones (tests/reference.py).

    About one tiny model in 400 is so badly conditioned that fp32 alone costs more than 1e-5: parity at 1e-5
    says nothing there, so the parity tests draw another.
    """
    weights, config = weights_of(model), model.config.to_dict()
    exact = reference.entropies(weights, config, ids)
    starts = reference.starts_of(ids, exact, config["patching_threshold"])
    exact_logits = reference.forward(weights, config, ids, starts)["logits"]
    return float(max(np.abs(exact - entropies(model, ids)).max(), np.abs(exact_logits - logits(model, ids)).max()))
