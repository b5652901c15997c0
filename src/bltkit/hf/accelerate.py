"""`bltkit.accelerate`: a loaded `BltForCausalLM` of transformers with bltkit's `generate`, on the same weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import BltForCausalLM

from bltkit.checkpoint import build_modules
from bltkit.checkpoint.hf_config import read_config
from bltkit.generate import Session
from bltkit.hf.engine_generation import EngineGeneration
from bltkit.hf.generate_options import check_backend, strategy_of
from bltkit.hf.shared_weights import bindings
from bltkit.native import FollowingCopy


class AttachedEngine:
    """A `Blt`, its entropy model and rule, on the weights of a `BltForCausalLM`."""

    def __init__(self, theirs: Any, strategy: Any, backend: str) -> None:
        """Raises ValueError for a model that the engine cannot run."""
        self.theirs, self.defaults = theirs, (strategy, backend)
        self.config: dict[str, Any] = {}
        self._native = FollowingCopy()
        self.refresh()

    def refresh(self) -> None:
        """Follow what happened to the model since: another threshold, device, dtype or parameter.

        Raises ValueError for a model that the engine cannot run any more.
        """
        config = self.theirs.config.to_dict()
        if config != self.config:
            self._describe(config)
        modules = dict(self.theirs.named_modules())
        for binding in self.bindings:
            binding.refresh(modules)

    def session(self, backend: str, rows: int) -> Session:
        """A session of `rows` empty rows, run by `backend`."""
        self.refresh()
        return Session.start(*self._native.modules(backend, self.model, self.scorer), self.rule, rows)

    def _describe(self, config: dict[str, Any]) -> None:
        path = Path("model.config")
        described = read_config(config, path)
        if described.scorer is None:
            raise ValueError(
                "model.config: patch_in_forward is false, so there is no entropy model to place patches by"
            )
        if described.rule.max_patch_bytes is not None:
            raise ValueError(
                f"model.config: max_patch_length is {described.rule.max_patch_bytes}; transformers cuts the last patch "
                "of a growing text elsewhere than in a longer one, which no cached state can follow; set it to None"
            )
        tables = described.model.ngrams.num_tables * described.model.ngrams.buckets
        layers = sum(1 for _ in self.theirs.modules())
        model, scorer = build_modules(path, described.model, described.scorer, num_tensors=layers, table_rows=tables)
        assert model is not None and scorer is not None
        self.bindings = bindings(model, scorer, described.encoder_cross)
        self.model, self.scorer, self.rule, self.config = model.eval(), scorer.eval(), described.rule, config


class AcceleratedBlt(EngineGeneration, BltForCausalLM):  # type: ignore[misc]
    """A `BltForCausalLM` that shares all attributes with another one and decodes by bltkit."""

    __slots__ = ("_engine",)
    _engine: AttachedEngine

    def engine_session(self, backend: str, rows: int) -> Session:
        """See `EngineGeneration`."""
        return self._engine.session(backend, rows)

    @property
    def engine_defaults(self) -> tuple[Any, str]:
        """See `EngineGeneration`."""
        return self._engine.defaults

    def __reduce__(self) -> Any:
        """Copies and pickles accelerate a copy of the model, since both have to share weights again."""
        return accelerate, (self._engine.theirs, *self._engine.defaults)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()


# What transformers writes into config.json and looks up when a pipeline is made.
AcceleratedBlt.__name__ = AcceleratedBlt.__qualname__ = BltForCausalLM.__name__


def accelerate(model: Any, strategy: Any = "ar", backend: str = "eager") -> Any:
    """The same model with bltkit's `generate`: cached at every level, its cost per byte nearly independent of context.

    model: a loaded `transformers.BltForCausalLM` of any device and dtype; an accelerated one is returned as it is.
        What is returned has the same parameters, modules and attributes, and is a `BltForCausalLM`: forward, training,
        `to`, `save_pretrained` and pipelines work as before. `model.generate` itself stays transformers'.
    strategy: of calls that name none: `ar`, or `speculative`, which gives the same ids by drafts. backend: of calls
        that name none: `eager`; `native` or `auto` run steps as compiled code, with a copy of the weights of its own.

    In eager mode no weight is copied for good: matrices that bltkit multiplies at once are joined, one after another,
    and the model's parameters become views of their rows. What training changes in them is seen by the next `generate`.

    Raises ValueError with one line for another class of model, one on the meta device, quantised, sharded or with
    unmerged adapters, one without a threshold, and for an unknown strategy or backend.
    """
    strategy_of(strategy)
    check_backend(backend)
    if isinstance(model, EngineGeneration):
        return model
    if not isinstance(model, BltForCausalLM):
        hint = "; load the checkpoint by BltForCausalLM.from_pretrained" if isinstance(model, str | Path) else ""
        raise ValueError(f"model is a {type(model).__module__}.{type(model).__name__}; expected a BltForCausalLM{hint}")
    if (
        getattr(model, "hf_quantizer", None) is not None
        or getattr(model.config, "quantization_config", None) is not None
    ):
        raise ValueError("model is quantised by transformers; load it without quantization_config")
    devices = sorted({str(weight.device) for weight in model.parameters()})
    if len(devices) > 1:
        raise ValueError(f"model lies on {' and '.join(devices)}; move it to one device")
    accelerated = AcceleratedBlt.__new__(AcceleratedBlt)
    object.__setattr__(accelerated, "__dict__", model.__dict__)
    with torch.inference_mode(False):
        object.__setattr__(accelerated, "_engine", AttachedEngine(model, strategy, backend))
    return accelerated
