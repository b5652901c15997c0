"""Our own model types in transformers' library: patched by their own rule, trained by its Trainer, saved as ours."""

from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from bltkit.checkpoint import Bundle, ScorerModule
from bltkit.checkpoint.bundle import MAX_SHARD_BYTES
from bltkit.checkpoint.manifest import Manifest, build_scorer
from bltkit.checkpoint.names import SCORER_PREFIX, TensorPart, blt_parts, scorer_parts
from bltkit.generate import Session
from bltkit.hf import files
from bltkit.hf.config import BltkitConfig, BltkitEntropyConfig, checkpoint_directory, described_in
from bltkit.hf.engine_generation import EngineGeneration
from bltkit.model import Blt, EntropyModel, EntropyTable
from bltkit.native import FollowingCopy
from bltkit.patching import patch
from bltkit.vocab import NEVER_EMITTED, VOCAB_SIZE

GENERATION = "generation_config.json"


class BltkitPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """Base of our types: loading, saving, and rows without padding."""

    config_class = BltkitConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: Any, bundle: Bundle | None = None) -> None:
        """bundle: the modules; random ones of the config's shape when absent."""
        super().__init__(config)
        self.manifest = config.manifest
        bundle = self._random() if bundle is None else bundle
        self.blt, self.scorer = bundle.model, bundle.scorer
        self.register_load_state_dict_pre_hook(_join_parts)
        self.post_init()
        if self.can_generate():
            self.generation_config = self._plain_generation()

    def _random(self) -> Bundle:
        manifest = self.manifest
        model = None if manifest.model is None else Blt(manifest.model).reset_parameters()
        scorer = None if manifest.scorer is None else build_scorer(manifest.scorer)
        if scorer is not None and not isinstance(scorer, EntropyTable):
            scorer.reset_parameters()
        return Bundle(model, scorer, manifest.rule, manifest.record)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: `reset_parameters` has initialised them, or a checkpoint has."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint of bltkit; see `files.load` for the arguments.

        Weights are checked as `bltkit.load` checks them. Raises ValueError with one line.
        """
        config, info = kwargs.pop("config", None), kwargs.pop("output_loading_info", False)
        own = {key: kwargs.pop(key) for key in list(kwargs) if hasattr(config, key) and key != "dtype"}
        bundle = files.load(pretrained_model_name_or_path, kwargs)
        directory = checkpoint_directory(pretrained_model_name_or_path)
        if not isinstance(config, BltkitConfig):
            config = cls.config_class.from_pretrained(str(directory))
        elif not config.description:
            config.description = described_in(directory)
        for key, value in own.items():
            setattr(config, key, value)
        model = cls(config, bundle)
        config.dtype = model.dtype
        if (directory / GENERATION).exists() and model.can_generate():
            model.generation_config = GenerationConfig.from_pretrained(str(directory))
        model.eval()
        report: dict[str, Any] = {f"{kind}_keys": set() for kind in ("missing", "unexpected", "mismatched")}
        return (model, report | {"error_msgs": []}) if info else model

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = MAX_SHARD_BYTES,
        **kwargs: Any,
    ) -> None:
        """Write a checkpoint that `bltkit.load` reads, into a new directory or one that exists.

        Raises ValueError for weights that are not the model's own, unmerged adapters, and options that are not
        supported; OSError if writing fails.
        """
        for key, value in {"push_to_hub": push_to_hub, **kwargs}.items():
            if value and key not in ("safe_serialization", "token", "save_original_format"):
                raise ValueError(f"{key} = {value!r:.60} is not supported for a model of type bltkit; leave it out")
        if not is_main_process:
            return
        self._refuse_changed(state_dict)
        record = self.manifest.record
        files.save(save_directory, Bundle(self.blt, self.scorer, self.manifest.rule, record), max_shard_size)
        if self.can_generate() and self.generation_config.to_diff_dict() != self._plain_generation().to_diff_dict():
            self.generation_config.save_pretrained(save_directory)

    def _plain_generation(self) -> Any:
        """What a model generates by where nothing else is said: ids that are no text are never chosen."""
        plain = GenerationConfig.from_model_config(self.config)
        plain.suppress_tokens = list(NEVER_EMITTED)
        return plain

    def _refuse_changed(self, state_dict: dict[str, Tensor] | None) -> None:
        state = self.state_dict()
        with torch.device("meta"):
            expected = type(self)(self.config).state_dict()
        if state.keys() != expected.keys():
            name = sorted(state.keys() ^ expected.keys())[0]
            raise ValueError(f"{name} is no tensor of this model's own; merge adapters first (peft: merge_and_unload)")
        for name, tensor in (state_dict or {}).items():
            if name not in state or tensor.data_ptr() != state[name].data_ptr():
                raise ValueError(f"state_dict: {name} is not the model's own tensor; load it into the model first")

    def get_input_embeddings(self) -> nn.Module:
        """The byte embedding."""
        module: Any = self.scorer if self.blt is None else self.blt.embed
        return cast(nn.Module, module.embed if self.blt is None else module.bytes)

    def get_output_embeddings(self) -> nn.Module | None:
        """The head."""
        module: Any = self.scorer if self.blt is None else self.blt.decoder
        return cast(nn.Module, module.head)

    def outputs(self, input_ids: Any, attention_mask: Tensor | None, kwargs: dict[str, Any]) -> Float[Tensor, "B T V"]:
        """What the model computes of every id [B, T]; zeros at padding, which may lie anywhere in a row.

        Raises ValueError for ids outside the vocabulary and for inputs of a cache or of embeddings.
        """
        for name in ("past_key_values", "inputs_embeds"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is not supported by a model of type {self.config.model_type}; give input_ids")
        if input_ids is None:
            raise ValueError("input_ids are missing; give ids [batch, length], a byte's value + 4 behind BOS (1)")
        if not 0 <= int(input_ids.min()) <= int(input_ids.max()) < VOCAB_SIZE:
            raise ValueError(
                f"input_ids must be in 0..{VOCAB_SIZE - 1}, a byte's value + 4; take the checkpoint's tokenizer"
            )
        if attention_mask is None or bool((attention_mask != 0).all()):
            return self._compute(input_ids, None)
        real = attention_mask.to(input_ids.device) != 0
        order = (~real).to(torch.uint8).argsort(stable=True)
        packed = self._compute(input_ids.gather(1, order), real.sum(1))
        values = packed.masked_fill(~real.gather(1, order)[..., None], 0)
        return torch.zeros_like(values).scatter(1, order[..., None].expand_as(values), values)

    def _compute(self, ids: Int64[Tensor, "B T"], num_bytes: Int64[Tensor, " B"] | None) -> Float[Tensor, "B T V"]:
        """num_bytes: real ids of each row, which stand in front."""
        raise NotImplementedError


class _WithRule(BltkitPreTrainedModel):
    """A BLT, its scorer and its rule. The scorer only places patches: it is frozen."""

    blt: Blt
    scorer: ScorerModule | None

    def __init__(self, config: Any, bundle: Bundle | None = None) -> None:
        super().__init__(config, bundle)
        if self.scorer is not None:
            self.scorer.requires_grad_(False)

    def _compute(self, ids: Int64[Tensor, "B T"], num_bytes: Int64[Tensor, " B"] | None) -> Float[Tensor, "B T V"]:
        rule = self._rule()
        with torch.no_grad():
            scores = None if rule.scores is None or self.scorer is None else self.scorer.scores(ids)
        patches = patch(rule, ids, scores, num_bytes, documents=self.blt.config.document_masks)
        return self.blt(ids, patches)

    def _rule(self) -> Any:
        if self.manifest.rule is None:
            raise ValueError("the model has no patching rule; run `blt calibrate` on its checkpoint")
        return self.manifest.rule


class CausalForward(BltkitPreTrainedModel):
    """The `forward` of causal language models: logits and, with labels, their loss."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        logits_to_keep: Any = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """labels: as in transformers, not shifted, -100 where nothing is learned. Returns a `CausalLMOutput`."""
        logits = self.outputs(input_ids, attention_mask, kwargs)
        loss = None
        if labels is not None:
            options = {key: kwargs[key] for key in ("num_items_in_batch", "shift_labels") if key in kwargs}
            loss = self.loss_function(logits, labels, VOCAB_SIZE, **options)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        logits = logits[:, kept if isinstance(logits_to_keep, int) else logits_to_keep]
        output = CausalLMOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output


class BltkitForCausalLM(EngineGeneration, CausalForward, _WithRule, GenerationMixin):  # type: ignore[misc]
    """A BLT of any rule and shape: ids [B, T] -> logits [B, T, 260], loss where there are labels, cached `generate`."""

    def __init__(self, config: Any, bundle: Bundle | None = None) -> None:
        super().__init__(config, bundle)
        self._native = FollowingCopy()

    def engine_session(self, backend: str, rows: int) -> Session:
        """See `EngineGeneration`."""
        return Session.start(*self._native.modules(backend, self.blt, self.scorer), self._rule(), rows)


class BltkitModel(_WithRule):
    """A BLT without its head: ids [B, T] -> the decoder's normalised states [B, T, D]."""

    def __init__(self, config: Any, bundle: Bundle | None = None) -> None:
        super().__init__(config, bundle)
        self.blt.decoder.head = nn.Identity()  # type: ignore[assignment]

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, return_dict: bool | None = None, **kwargs: Any
    ) -> Any:
        """Returns a `BaseModelOutput`."""
        output = BaseModelOutput(last_hidden_state=self.outputs(input_ids, attention_mask, kwargs))
        return output.to_tuple() if return_dict is False else output

    def get_output_embeddings(self) -> None:
        """There is none."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: a checkpoint needs the head."""
        raise ValueError("BltkitModel has no head, which a checkpoint needs; load and save BltkitForCausalLM")


class BltkitEntropyForCausalLM(CausalForward):
    """An entropy model alone: ids [B, T] -> logits [B, T, 260] of the next byte. It does not generate."""

    config_class = BltkitEntropyConfig
    scorer: EntropyModel

    def _compute(self, ids: Int64[Tensor, "B T"], num_bytes: Int64[Tensor, " B"] | None) -> Float[Tensor, "B T V"]:
        return self.scorer(ids)


def _join_parts(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let a state that is named as in the checkpoint's files be loaded, too: their parts become our matrices."""
    names = {prefix + name for name in module.state_dict()}
    if all(name in names for name in state if name.startswith(prefix)):
        return
    for name, parts in _file_parts(module.manifest):
        sources = [prefix + part.name for part in parts]
        if prefix + name not in state and all(source in state for source in sources):
            values = [state.pop(source) for source in sources]
            state[prefix + name] = values[0] if len(values) == 1 else torch.cat(values)


def _file_parts(manifest: Manifest) -> list[tuple[str, tuple[TensorPart, ...]]]:
    """Every tensor of a model of this description: its name, and the file's tensors that it is made of."""
    with torch.device("meta"):
        blt = None if manifest.model is None else Blt(manifest.model)
        scorer = None if manifest.scorer is None else build_scorer(manifest.scorer)
    rows = []
    if blt is not None:
        rows += [(f"blt.{name}", blt_parts(name, x.shape)) for name, x in blt.state_dict().items()]
    if scorer is not None:
        of = "" if blt is None else SCORER_PREFIX
        rows += [(f"scorer.{name}", scorer_parts(name, x.shape, of)) for name, x in scorer.state_dict().items()]
    return rows
