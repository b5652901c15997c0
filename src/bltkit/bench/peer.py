"""The peers that decoding, reading and training are measured against: `transformers` models, a type for each kind.

`transformers`: its BLT with the subject's own weights, by way of a checkpoint directory. It answers `logits(ids)`, so
what is timed is checked first. `llama`: a Llama whose layers have the shape of the subject's global transformer, with
random weights of its own. It answers `start` and `step`, as whoever decodes with a token model does.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.bench.bench_subject import BenchSubject
from bltkit.checkpoint import Bundle, save_bundle

TOLERANCE = 1e-3
"""Of the largest logit: what fp32 sums in another order may differ by in a deep model."""

BYTES_PER_TOKEN = 4.4
"""Text that a token of a 32,000-word vocabulary stands for."""

VOCABULARY = 32_000


@dataclass(frozen=True)
class BltPeer:
    """`BltForCausalLM` in fp32, as `from_pretrained` gives it: the subject's weights."""

    name: str
    model: Any

    @torch.inference_mode()
    def logits(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """A full forward pass from bytes. Its cached one computes something else (docs/model.md 12)."""
        logits: Tensor = self.model(ids, use_cache=False).logits
        return logits


@dataclass(frozen=True)
class LlamaState:
    """What a Llama holds between two tokens. A step leaves the state given as it was."""

    cache: Any
    """`DynamicCache` of the tokens read."""
    token: Int64[Tensor, "R S"]
    """Chosen, not yet read: one a row, once the context has been read."""
    position: int
    """Tokens read."""


@dataclass(frozen=True)
class LlamaPeer:
    """`LlamaForCausalLM` with weights of its own: its speed can be compared, its answers cannot."""

    name: str
    model: Any

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def prompt(self, context_bytes: int, batch: int = 1) -> Int64[Tensor, "R T"]:
        """Random tokens, as many as stand for `context_bytes` bytes."""
        tokens = max(1, round(context_bytes / BYTES_PER_TOKEN))
        ids = torch.randint(VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(0))
        return ids.to(self.model.device)

    @torch.inference_mode()
    def start(self, context_bytes: int, batch: int = 1) -> LlamaState:
        """The state behind a context of `context_bytes` bytes in each of `batch` rows."""
        return self._read(LlamaState(_dynamic_cache(), self.prompt(context_bytes, batch), 0))

    @torch.inference_mode()
    def step(self, state: LlamaState) -> LlamaState:
        """Read the token chosen and choose the likeliest next one: `BYTES_PER_TOKEN` bytes a row."""
        return self._read(state)

    def _read(self, state: LlamaState) -> LlamaState:
        # The cache grows by making longer tensors in place of the old ones, so copies of its layers may share them.
        cache = copy.copy(state.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        output = self.model(state.token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        return replace(state, cache=cache, token=token, position=state.position + state.token.shape[1])


Peer = BltPeer | LlamaPeer


@contextmanager
def peer_of(name: str | None, subject: BenchSubject, dtype: torch.dtype = torch.float32) -> Iterator[Peer | None]:
    """The peer called `name` on the subject's device; None for no name. dtype: of the Llama's weights.

    Raises ValueError for an unknown peer, where it is not installed, where it cannot say what the model is, and for a
    BLT in another dtype than fp32.
    """
    if name is None:
        yield None
        return
    transformers = installed(name)
    with _OPENERS[name](transformers, subject, dtype) as peer:
        yield peer


def installed(name: str) -> Any:
    """The module `transformers`, for the peer called `name`. Raises ValueError for an unknown peer, or without it."""
    if name not in _OPENERS:
        raise ValueError(f"no peer {name!r}; known: {', '.join(PEERS)}")
    try:
        import transformers
    except ImportError:
        raise ValueError(f"peer {name!r} needs transformers: pip install 'bltkit[peer]'") from None
    return transformers


@contextmanager
def blt_peer_of(name: str | None, subject: BenchSubject) -> Iterator[BltPeer | None]:
    """`peer_of`, for what needs a peer with the same weights. Raises ValueError for another one as well."""
    if name == "llama":
        raise ValueError("peer 'llama' has other weights and only decodes; take 'transformers' here")
    with peer_of(name, subject) as peer:
        assert not isinstance(peer, LlamaPeer)
        yield peer


@contextmanager
def _blt(transformers: Any, subject: BenchSubject, dtype: torch.dtype) -> Iterator[BltPeer]:
    if dtype != torch.float32:
        # Rounded entropies cut other patches, so no answer of it could be checked.
        raise ValueError(f"peer dtype = {str(dtype).removeprefix('torch.')}: peer 'transformers' runs in float32 only")
    with tempfile.TemporaryDirectory() as folder:
        directory = f"{folder}/model"
        save_bundle(directory, Bundle(subject.model, subject.scorer, subject.rule))
        model = load_blt(directory, subject.name)
        yield BltPeer(f"transformers {transformers.__version__}", model.to(subject.device))


def load_blt(directory: str, name: str) -> Any:
    """`BltForCausalLM` in fp32 with the weights of a checkpoint directory. name: of the model, for errors.

    Raises ValueError for a model that it cannot be.
    """
    import transformers

    with _quiet(transformers):
        try:
            model, report = transformers.BltForCausalLM.from_pretrained(
                directory, output_loading_info=True, dtype=torch.float32
            )
        except Exception as error:  # a directory of model_type bltkit is refused in one of many ways
            raise ValueError(f"model {name!r} cannot be said in transformers' format: {error}") from None
    wrong = [kind for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[kind]]
    if wrong:
        raise ValueError(f"transformers does not take the weights of {name!r}: {report[wrong[0]]}")
    return model.eval()


@contextmanager
def _llama(transformers: Any, subject: BenchSubject, dtype: torch.dtype) -> Iterator[LlamaPeer]:
    stack = subject.model.config.latent
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=stack.width,
        intermediate_size=stack.ffn,
        num_hidden_layers=stack.layers,
        num_attention_heads=stack.heads,
        num_key_value_heads=stack.num_kv_heads,
        max_position_embeddings=subject.model.config.max_positions,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    name = f"llama (transformers {transformers.__version__})"
    yield LlamaPeer(name, model.eval().to(subject.device, dtype))


_Opener = Callable[[Any, BenchSubject, torch.dtype], AbstractContextManager[Peer]]
_OPENERS: dict[str, _Opener] = {"transformers": _blt, "llama": _llama}

PEERS = tuple(_OPENERS)


def _dynamic_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars meanwhile."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def compared(ours: Float[Tensor, "... V"], peer: Float[Tensor, "... V"]) -> float:
    """The largest difference. Raises RuntimeError where it is no rounding: such a benchmark would be worthless."""
    differences = (ours - peer).abs().flatten(0, -2).amax(-1)
    wrong = ~(differences <= TOLERANCE * peer.abs().max())  # NaN is wrong as well
    if wrong.any():
        worst, first = float(differences.max()), int(wrong.nonzero()[0])
        raise RuntimeError(f"ours and the peer disagree by up to {worst:.2g}, first in position {first}")
    return float(differences.max())
