"""What is trained: the model, its optimizer and where its patches come from, on the processes of a world.

`Learner.step` is the whole arithmetic of a step; the loop around it is `trainer.py`. Every process computes the loss
of its rows divided by the targets of all, so that gradients and figures simply add up.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.tensor import DTensor, distribute_tensor

from bltkit.checkpoint import (
    Bundle,
    TokenBundle,
    is_token_model,
    load_bundle,
    load_token_model,
    resolve_model,
    unreadable,
    write_bundle,
    write_token_model,
)
from bltkit.data import Batch, TokenBatch
from bltkit.model import Blt, BltConfig, BoundaryModel, CnnEntropy, EntropyModel, RoutedBlt, TokenLlama
from bltkit.model.cross import CrossAttention
from bltkit.model.embed import NgramEmbedding
from bltkit.model.layers import FeedForward, SelfAttention, Transformer
from bltkit.model.learned_boundaries import without_router
from bltkit.patches import Patches
from bltkit.tokens import Vocabulary
from bltkit.train.adapt import adapt, merged_state, shares_weights
from bltkit.train.config import ModelConfig, TrainConfig
from bltkit.train.ema import WeightAverage
from bltkit.train.loss_guard import GuardState, judge
from bltkit.train.objectives import LearnedBoundary, Losses
from bltkit.train.optim import build_optimizer
from bltkit.train.parallel import TABLES, World, distribute, materialize, named_weights, whole_weights
from bltkit.train.patcher import Patcher, count_text_patches
from bltkit.vocab import OFFSET

TrainedModel = Blt | EntropyModel | BoundaryModel | CnnEntropy | TokenLlama


@dataclass(frozen=True)
class StepFigures:
    """Of one step, all processes together."""

    nats: float
    text_nats: float
    targets: int
    text_bytes: int
    """Targets among them that are bytes of text."""
    seen_bytes: int
    """Bytes of text in the rows, also those that are no targets."""
    patches: int
    """Opened by bytes of text; of a token model, the tokens of text."""
    grad_norm: float
    skipped: bool
    """The guard did not let the update through."""
    parts: tuple[tuple[float, float], ...]
    """Of the objective's parts: nats, and the bytes that they belong to."""


class Counts(NamedTuple):
    """Of the rows of a step, all processes together; see `StepFigures`."""

    targets: int
    text_bytes: int
    seen_bytes: int

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "Counts":
        """Of this process's rows."""
        seen = sum(int((batch.ids >= OFFSET).sum()) for batch in batches)
        return cls(sum(batch.num_targets for batch in batches), sum(batch.text_bytes for batch in batches), seen)


class HeldOutFigures(NamedTuple):
    """Of held-out rows, all processes together."""

    nats: float
    """Of the bytes of text, each as the next byte."""
    num_bytes: int
    parts: tuple[tuple[float, float], ...]
    """See `StepFigures`."""


def build_model(config: ModelConfig) -> TrainedModel:
    """The uninitialised module that a `[model]` section describes."""
    builders: dict[str, Callable[[Any], TrainedModel]] = {
        "blt": Blt,
        "entropy": EntropyModel,
        "boundary": BoundaryModel,
        "cnn": CnnEntropy,
        "bpe": TokenLlama,
    }
    return builders[config.kind](config)


def build_trained(config: TrainConfig) -> TrainedModel:
    """What a run trains: the model of its config, together with what its objective learns beside it."""
    if isinstance(config.objective, LearnedBoundary):
        assert isinstance(config.model, BltConfig)
        return RoutedBlt(config.model, config.objective.router)
    return build_model(config.model)


class Learner:
    """A model that learns; `config` says how."""

    def __init__(self, config: TrainConfig, world: World, patcher: Patcher, *, goes_on: bool = False) -> None:
        """Initial weights of the run's seed, or those of `trainer.init`. Raises ValueError where these do not fit.

        goes_on: the weights of a checkpoint will take their place, so that `trainer.init` need not be there any more.
        """
        self.config, self.world = config, world
        self._init = None if goes_on else config.trainer.init
        self.autocast = _autocast(config.trainer.precision, world.device)
        self.model = self._build()
        self.patcher = patcher.of(self.model)
        sharded = {TABLES} & named_weights(self.model).keys() if world.size > 1 else set()
        self.optimizer = build_optimizer(config.optim, self.model, sharded_by_rows=sharded)
        decay = config.optim.ema
        self.average = None if decay is None else WeightAverage(self.optimizer.weights, decay)
        self.guard = GuardState()

    def _build(self) -> TrainedModel:
        config, world = self.config, self.world
        generator = torch.Generator().manual_seed(config.trainer.seed)
        # Adapters change names and draw numbers of their own: such a model is made whole, and then shared out.
        whole = world.size == 1 or config.adapt.lora is not None
        with torch.device("cpu" if whole else "meta"):
            model = build_trained(config)
        if isinstance(model, RoutedBlt) and world.size > 1:
            raise ValueError("objective.kind = 'learned-boundary' trains on one process; start it without torchrun")
        if isinstance(model, Blt) and isinstance(model.embed, NgramEmbedding):
            model.embed.sparse_gradients = config.optim.tables == "rows"
        if whole:
            model.reset_parameters(generator)
            self._zero_outputs(model)
            self._take_initial(model)
        adapt(model, config.adapt, config.trainer.seed)
        self._prepare(model)
        if world.size == 1:
            return model.to(world.device)
        distribute(model, world, self._gathered_dtype())
        if whole:
            return model.to(world.device)  # the tables, which FSDP left where they were
        materialize(model, world.device, generator)
        self._zero_outputs(model)
        self._take_initial(model)
        return model

    @torch.no_grad()
    def _zero_outputs(self, model: TrainedModel) -> None:
        """Begin with every layer as the identity, where the config asks for it."""
        if not self.config.trainer.zero_outputs:
            return
        outputs = [module.out for module in model.modules() if isinstance(module, SelfAttention | CrossAttention)]
        outputs += [module.down for module in model.modules() if isinstance(module, FeedForward)]
        if not outputs:
            raise ValueError(
                f"trainer.zero_outputs: a model of kind {self.config.model.kind!r} has neither attention nor "
                "feed-forwards; leave it out"
            )
        for output in outputs:
            output.weight.zero_()

    def _take_initial(self, model: TrainedModel) -> None:
        if self._init is not None:
            take_weights(model, self._init, self.world)

    def _prepare(self, model: nn.Module) -> None:
        """What is put on the layers: recomputing them in the backward pass, and compiling them."""
        trainer = self.config.trainer
        for stack in [module for module in model.modules() if isinstance(module, Transformer)]:
            for index, layer in enumerate(stack.layers):
                if trainer.checkpoint_activations:
                    layer = checkpoint_wrapper(layer)
                    stack.layers[index] = layer
                if trainer.compile:
                    layer.compile()

    def _gathered_dtype(self) -> torch.dtype | None:
        return None if self.autocast is contextlib.nullcontext else torch.bfloat16

    def step(self, batches: Sequence[Batch], step: int, schedule_steps: int, counts: Counts) -> StepFigures:
        """One update from the gradients of `batches`, this process's rows.

        step: updates before this one. counts: of all processes' rows. Raises FloatingPointError where the guard stops.
        """
        sums = torch.zeros(3 + 2 * len(self.config.objective.parts), device=self.world.device)
        self.model.train()
        for batch in batches:
            losses, patches = self.loss(batch, step)
            (losses.total / max(1, counts.targets)).backward()
            self._merge_rows()
            parts = [value for part in losses.parts for value in part]
            sums += torch.stack([losses.total.detach(), losses.text, patches.to(sums), *parts])
        if self.world.size > 1:
            dist.all_reduce(sums)
        norm = self.optimizer.clip()
        # All of a step's figures at once: each look at the device waits for it.
        norm_value, nats, text_nats, num_patches, *more = torch.cat([norm.reshape(1).to(sums), sums]).tolist()
        loss_value = nats / max(1, counts.targets)
        self.guard = judge(self.config.guard, self.guard, step + 1, loss_value, norm_value, self.config.optim.lr)
        allowed = not self.guard.skips
        if allowed:
            self.optimizer.update(step, schedule_steps)
            if self.average is not None:
                self.average.update(step)
        else:
            self.optimizer.discard()
        pairs = tuple(zip(more[::2], more[1::2], strict=True))
        return StepFigures(nats, text_nats, *counts, int(num_patches), norm_value, not allowed, pairs)

    def _merge_rows(self) -> None:
        """Add up the tables' gradient row by row: over many batches it would hold every look-up of all of them."""
        if isinstance(self.model, Blt) and isinstance(self.model.embed, NgramEmbedding):
            gradient = self.model.embed.ngrams.grad
            if gradient is not None and gradient.is_sparse:
                self.model.embed.ngrams.grad = gradient.coalesce()

    def loss(self, batch: Batch, step: int = 0) -> tuple[Losses, Tensor]:
        """Loss sums of a batch, and the patches or tokens that hold its text (BOS's and EOS's own not counted)."""
        patches = self._patches(batch)
        batch = batch.to(self.world.device)
        seed = (self.config.trainer.seed * 1_000_003 + step) % 2**62
        with self.autocast():
            losses = self.config.objective.loss(self.model, batch, patches, seed)
        if isinstance(batch, TokenBatch):
            return losses, torch.tensor(batch.text_tokens)
        return losses, count_text_patches(batch.ids, patches)

    def _patches(self, batch: Batch) -> Patches | None:
        if not isinstance(self.model, Blt):
            return None
        return self.patcher.patches(batch, self.world.device, self.config.data.row_patches)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> HeldOutFigures:
        """What all processes' batches cost."""
        self.model.eval()
        sums, count = torch.zeros(1 + 2 * len(self.config.objective.parts), dtype=torch.float64), 0
        for batch in batches:
            losses, _ = self.loss(batch)
            parts = [value for part in losses.parts for value in part]
            sums += torch.stack([losses.text, *parts]).to(sums)
            count += batch.text_bytes
        num_bytes, nats, *more = self.world.sums([count, *sums.tolist()])
        return HeldOutFigures(nats, int(num_bytes), tuple(zip(more[::2], more[1::2], strict=True)))

    def exported(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the model has the weights that are exported: their moving average, where one is kept."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def weights(self) -> dict[str, Tensor]:
        """All weights to export on the CPU of the main process, adapters merged into what they adapt."""
        with self.exported():
            return merged_state(whole_weights(self.model, self.world), self.config.adapt.lora)

    def unreadable(self) -> str | None:
        """The part of a BLT that keeps transformers from loading what is exported, as a noun; None for other models."""
        with torch.device("meta"):
            model = build_trained(self.config)
        if not isinstance(model, Blt):
            return None
        patcher = self.patcher.of(model)
        return unreadable(Bundle(without_router(model), patcher.scorer, patcher.rule))

    def write(
        self,
        directory: Path,
        weights: dict[str, Tensor],
        vocabulary: Vocabulary | None,
        record: dict[str, Any],
        dtype: torch.dtype | None,
    ) -> None:
        """Write a checkpoint of `weights` into a directory. vocabulary: of a token model."""
        with torch.device("meta"):
            model = build_trained(self.config)
        model.load_state_dict(weights, assign=True)
        if isinstance(model, TokenLlama):
            assert vocabulary is not None
            write_token_model(directory, TokenBundle(model, vocabulary, record), dtype=dtype)
        elif isinstance(model, Blt):
            own = self.patcher.of(model)
            write_bundle(directory, Bundle(without_router(model), own.scorer, own.rule, record), dtype=dtype)
        else:
            write_bundle(directory, Bundle(None, model, None, record), dtype=dtype)


def take_weights(model: TrainedModel, checkpoint: str, world: World) -> None:
    """Copy the weights of a checkpoint, ours or Hugging Face's. Raises ValueError where the shapes differ."""
    directory = resolve_model(checkpoint)
    saved: nn.Module | None = None
    bundle = Bundle(None, None, None)
    if isinstance(model, TokenLlama) and is_token_model(directory):
        saved = load_token_model(directory, dtype=torch.float32).model
    elif not isinstance(model, TokenLlama):
        bundle = load_bundle(directory, dtype=torch.float32)
        saved = bundle.model if isinstance(model, Blt) else bundle.scorer
    shape = getattr(saved, "config", None)  # not the class: FSDP gives a model one of its own
    if saved is None or shape is None or shape.kind != model.config.kind:
        raise ValueError(f"trainer.init = {checkpoint!r} holds no model of kind {model.config.kind!r}")
    if not shares_weights(model.config, shape):
        raise ValueError(
            f"trainer.init = {checkpoint!r} holds a model of another shape than the config; "
            "leave [model] out to take its shape"
        )
    source = saved.state_dict()
    if isinstance(model, RoutedBlt):
        source |= router_weights(model, bundle.scorer, checkpoint)
    with torch.no_grad():
        for name, weight in named_weights(model).items():
            place(weight, source[name], world)


def router_weights(model: RoutedBlt, scorer: object, checkpoint: str) -> dict[str, Tensor]:
    """Of a checkpoint's boundary model, by their names in `model`. Raises ValueError where there is none like it."""
    if not isinstance(scorer, BoundaryModel) or scorer.config != model.router.config:
        raise ValueError(
            f"trainer.init = {checkpoint!r} holds no router of the shape of objective.router; take a model that was "
            "trained with 'learned-boundary', and its router's shape"
        )
    return {f"router.{name}": weight for name, weight in scorer.state_dict().items()}


def place(weight: nn.Parameter, whole: Tensor, world: World) -> None:
    """Copy what this process holds of a weight."""
    if isinstance(weight, DTensor):
        own = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.to_local().copy_(own.to_local())
    elif world.rows is not None and weight.shape[0] != whole.shape[0]:
        rows = world.rows.own(whole.shape[0])
        weight.copy_(whole[rows.start : rows.stop])
    else:
        weight.copy_(whole)


def _autocast(precision: str, device: torch.device) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "bf16" or (precision == "auto" and capable):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext
