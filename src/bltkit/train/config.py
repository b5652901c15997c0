"""The training run as one frozen value: what a TOML file with dotted overrides turns into."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from bltkit.config import Config
from bltkit.data import DataConfig
from bltkit.model import BltConfig, BoundaryConfig, CnnConfig, EntropyConfig
from bltkit.model.presets import expand_preset
from bltkit.patching import Rule, parse_rule
from bltkit.train.objective import NextByte, Objective, TokenBoundary

ModelConfig = Annotated[BltConfig | EntropyConfig | BoundaryConfig | CnnConfig, Field(discriminator="kind")]


class PatchingSection(Config):
    """Where a BLT's patches come from."""

    model: str | None = None
    """Checkpoint of the entropy or boundary model that the rule listens to; not needed by rules that read none."""
    rule: Annotated[Rule, BeforeValidator(lambda rule: parse_rule(rule) if isinstance(rule, str) else rule)] | None = (
        None
    )
    """The rule, as a table or as `kind:field=value,...`; by default the one stored with `model`."""


class OptimSection(Config):
    """AdamW with linear warm-up and cosine decay (BLT 4.7, spec 8)."""

    lr: PositiveFloat = 4e-4
    betas: tuple[NonNegativeFloat, NonNegativeFloat] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    clip: PositiveFloat = 1.0
    """Largest 2-norm of the gradient of a whole step."""
    warmup_steps: NonNegativeInt = 100
    min_lr_ratio: NonNegativeFloat = 0.01
    schedule_steps: PositiveInt | None = None
    """Length of the cosine; by default the first run's trainer.max_steps, which then stays with the checkpoint."""


class TrainerSection(Config):
    """How long, on what, and what is reported."""

    max_steps: PositiveInt
    seed: NonNegativeInt = 0
    init: str | None = None
    """Checkpoint whose weights a new run starts from; its optimizer and position do not come along."""
    accumulate: PositiveInt = 1
    """Batches whose gradients make one step."""
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 on a GPU that has it and fp32 elsewhere: many CPUs compute bf16 far slower than fp32."""
    log_every: PositiveInt = 10
    validate_every: NonNegativeInt = 0
    """Steps between validations; 0 validates at the end only."""
    validation_batches: PositiveInt = 16


class CheckpointSection(Config):
    """When a run is saved, and how much of it is kept."""

    every_seconds: PositiveFloat = 60.0
    every_steps: PositiveInt | None = None
    keep: PositiveInt = 2
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the weights in the checkpoint; a run goes on from exact ones, which bf16 keeps with the optimizer's state."""


class TrainConfig(Config):
    """A training run. `model` may name a `preset` and change single fields of it."""

    # `preset` is gone when the union is validated; the schema names it for the suggestions of error messages.
    model: Annotated[ModelConfig, Field(json_schema_extra={"properties": {"preset": {"type": "string"}}})]
    patching: PatchingSection = PatchingSection()
    objective: Objective = NextByte()
    data: DataConfig = DataConfig()
    optim: OptimSection = OptimSection()
    trainer: TrainerSection
    checkpoint: CheckpointSection = CheckpointSection()

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, data: Any) -> Any:
        section = data.get("model") if isinstance(data, Mapping) else None
        if not isinstance(section, Mapping) or not isinstance(section.get("kind", ""), str):
            return data
        return {**data, "model": expand_preset(section)}

    @model_validator(mode="after")
    def _check_fit(self) -> "TrainConfig":
        if self.model.kind == "blt" and self.patching.model is None and self.patching.rule is None:
            raise ValueError("a BLT needs patching.model (an entropy model's checkpoint) or patching.rule")
        if (self.model.kind == "boundary") != isinstance(self.objective, TokenBoundary):
            raise ValueError(
                f"model.kind = {self.model.kind!r} does not go with objective.kind = {self.objective.kind!r}: "
                "a boundary model is trained with 'token-boundary', every other with 'next-byte'"
            )
        return self
