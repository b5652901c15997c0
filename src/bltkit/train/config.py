"""The training run as one frozen value: what a TOML file with dotted overrides turns into."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from bltkit.config import Config, apply_overrides, load_toml, parse
from bltkit.cost.formulas.operations import cell_flops, forward_flops
from bltkit.data import DataConfig
from bltkit.model import BltConfig, BoundaryConfig, CnnConfig, EntropyConfig, TokenConfig
from bltkit.model.presets import expand_preset
from bltkit.patching import Rule, parse_rule
from bltkit.train.adapt import AdaptSection, continue_from
from bltkit.train.loss_guard import GuardSection
from bltkit.train.objectives import OBJECTIVES, BlockDiffusion, LearnedBoundary, NextByte, Objective
from bltkit.train.optim import OptimSection

ModelConfig = Annotated[
    BltConfig | EntropyConfig | BoundaryConfig | CnnConfig | TokenConfig, Field(discriminator="kind")
]


class PatchingSection(Config):
    """Where a BLT's patches come from."""

    model: str | None = None
    """Checkpoint of the entropy or boundary model that the rule listens to; not needed by rules that read none. By
    default that of `trainer.init`."""
    rule: Annotated[Rule, BeforeValidator(lambda rule: parse_rule(rule) if isinstance(rule, str) else rule)] | None = (
        None
    )
    """The rule, as a table or as `kind:field=value,...`; by default the one stored with `model`."""
    where: Literal["device", "workers"] = "device"
    """What runs the scorer on text that was not annotated: the training device, or the loader's workers."""


class TrainerSection(Config):
    """How long, on what, and what is reported."""

    max_steps: PositiveInt
    """Steps after which the run ends."""
    seed: NonNegativeInt = 0
    """Decides initial weights, the order of the rows, and all that objectives draw."""
    init: str | None = None
    """Checkpoint whose weights a new run starts from; its optimizer and position do not come along."""
    branch: str | None = None
    """Checkpoint of another run, RUN or RUN/step-XXXXXXXX, which this one goes on from with everything it held."""
    zero_outputs: bool = False
    """Begin with zeros in the projections that end every attention and feed-forward, so that each layer is the identity
    at first."""
    accumulate: PositiveInt = 1
    """Batches whose gradients make one step."""
    device: str = "auto"
    """`auto` takes a GPU where there is one; else a name of torch such as `cuda` or `cpu`."""
    threads: PositiveInt | None = None
    """Of torch on the CPU, in each process; results are the same bit for bit only with as many."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 on a GPU that has it and fp32 elsewhere: many CPUs compute bf16 far slower than fp32."""
    shard: PositiveInt | None = None
    """Processes that share one copy of the dense weights; all by default. Fewer keep a copy in each group (HSDP)."""
    checkpoint_activations: bool = False
    """Recompute each layer in the backward pass instead of keeping what it computed."""
    compile: bool = False
    """Compile each layer; pays on a GPU."""
    deterministic: bool = False
    """Refuse operations that may give other bits when run again."""
    log_every: PositiveInt = 10
    """Steps between rows of metrics.jsonl."""
    report: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go besides metrics.jsonl."""
    validate_every: NonNegativeInt = 0
    """Steps between validations; 0 validates at the end only."""
    validation_batches: PositiveInt = 16
    """Batches of a validation."""


class CheckpointSection(Config):
    """When a run is saved, and how much of it is kept."""

    every_seconds: PositiveFloat = 60.0
    """Seconds between checkpoints."""
    every_steps: PositiveInt | None = None
    """Steps between checkpoints, besides those by time."""
    keep: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_every: PositiveInt | None = None
    """Steps of which this is a divisor are kept besides: what branches start from."""
    background: bool = True
    """Write while training goes on."""
    export: Literal["always", "end"] = "always"
    """When the model is put together as a checkpoint that can be loaded; a run can be resumed without that."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the weights in that checkpoint; a run goes on from exact ones."""


_BLOCKS = BlockDiffusion.model_fields["kind"].default


class TrainConfig(Config):
    """A training run. `model` may name a `preset` and change single fields of it; left out, it is `trainer.init`'s."""

    # `preset` is gone when the union is validated; the schema names it for the suggestions of error messages.
    model: Annotated[ModelConfig, Field(json_schema_extra={"properties": {"preset": {"type": "string"}}})]
    """Shape of the model that is trained."""
    patching: PatchingSection = PatchingSection()
    """Where a BLT's patches come from."""
    objective: Objective = NextByte()
    """What is learned."""
    data: DataConfig = DataConfig()
    """What is read and how it becomes rows."""
    optim: OptimSection = OptimSection()
    """AdamW and its schedule."""
    trainer: TrainerSection
    """How long, on what, and what is reported."""
    guard: GuardSection = GuardSection()
    """What counts as a loss spike, and what then happens."""
    adapt: AdaptSection = AdaptSection()
    """What is trained, where that is not all of the model."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When a run is saved, and how much of it is kept."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = continue_from(data)
        section = data.get("model")
        if not isinstance(section, Mapping) or not isinstance(section.get("kind", ""), str):
            return data
        expanded = expand_preset(section)
        objective = data.get("objective")
        if section.get("kind") == "blt" and isinstance(objective, Mapping) and objective.get("kind") == _BLOCKS:
            expanded["diffusion_block"] = objective.get("block", BlockDiffusion.model_fields["block"].default)
        given = {"objective": {"kind": "next-token"}} if section.get("kind") == "bpe" else {}
        return {**given, **data, "model": expanded}

    def train_flops(self, text_bytes: float, patch_bytes: float | None = None) -> float:
        """Operations that training on so much text takes: three forward passes, the model's own exact count.

        patch_bytes: mean bytes of a patch, or of a token model's token; by default what the rule alone decides; of no
            meaning for other models. Raises ValueError where it is needed and neither says it.
        """
        if patch_bytes is None and self.model.kind in ("blt", "bpe"):
            patch_bytes = None if self.patching.rule is None else self.patching.rule.mean_patch_bytes
            if patch_bytes is None:
                raise ValueError("patch_bytes: neither given nor decided by patching.rule; say how long units are")
        patch_bytes = 1.0 if patch_bytes is None else patch_bytes
        length = self.data.row_bytes
        forward = forward_flops(self.model, patch_bytes, length)
        if isinstance(self.model, BltConfig):
            forward += cell_flops(self.model, length) * self.objective.cells / patch_bytes
        forward += self._router_flops(length)
        return 3 * text_bytes * forward

    def _router_flops(self, length: int) -> float:
        """Of a learned boundary: once more than three times, for the borders themselves."""
        if not isinstance(self.objective, LearnedBoundary):
            return 0.0
        return 4 / 3 * forward_flops(self.objective.router, 1.0, length)

    @model_validator(mode="after")
    def _check_fit(self) -> Self:
        if self.model.kind not in self.objective.models:
            fitting = [kind for kind, objective in OBJECTIVES.items() if self.model.kind in objective.models]
            raise ValueError(
                f"model.kind = {self.model.kind!r} does not go with objective.kind = {self.objective.kind!r}, which "
                f"trains {' or '.join(self.objective.models)}; use {' or '.join(map(repr, fitting))}"
            )
        learned = isinstance(self.objective, LearnedBoundary)
        if learned:
            self._check_learned()
        if self.model.kind == "blt" and self.patching.model is None and self.patching.rule is None and not learned:
            raise ValueError("a BLT needs patching.model (an entropy model's checkpoint) or patching.rule")
        if self.patching.where == "workers" and not self.data.workers:
            raise ValueError('patching.where = "workers", but there are none: set data.workers, or leave it out')
        if self.trainer.init is not None and self.trainer.branch is not None:
            raise ValueError("trainer.init takes weights and trainer.branch takes everything; give one of them")
        if self.trainer.zero_outputs and self.trainer.init is not None:
            raise ValueError("trainer.zero_outputs begins a new model, trainer.init an old one; give one of them")
        if self.adapt.lora is not None and self.trainer.init is None:
            raise ValueError("adapt.lora adapts a model that was trained: set trainer.init")
        if self.adapt.lora is not None and self.model.kind != "blt":
            raise ValueError(f"adapt.lora: a model of kind {self.model.kind!r} has no global transformer to adapt")
        return self

    def _check_learned(self) -> None:
        if self.patching != PatchingSection():
            raise ValueError(
                "objective.kind = 'learned-boundary' makes the patches itself; leave [patching] out (the threshold and "
                "the longest patch are objective.threshold and objective.max_patch_bytes)"
            )
        if self.adapt.lora is not None:
            raise ValueError("adapt.lora: a router is trained whole; leave it out with 'learned-boundary'")


def read_config(
    config: TrainConfig | str | Path,
    overrides: Sequence[str] = (),
    device: str | None = None,
    threads: int | None = None,
) -> TrainConfig:
    """The config of a run: a value or a TOML file, with overrides `section.key=value` on top.

    device, threads: in place of `trainer.device` and `trainer.threads`. Raises ValueError, which names the key.
    """
    changes = list(overrides)
    changes += [] if device is None else [f'trainer.device="{device}"']
    changes += [] if threads is None else [f"trainer.threads={threads}"]
    if not isinstance(config, TrainConfig):
        return parse(TrainConfig, load_toml(config, changes), str(config))
    if not changes:
        return config
    plain = config.model_dump(mode="json", exclude_none=True)
    return parse(TrainConfig, apply_overrides(plain, changes), "the config")
