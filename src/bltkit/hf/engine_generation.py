"""`generate` by the engine, for models of transformers' library: its preparation, and our loop in place of its own."""

from functools import partial
from typing import Any

from bltkit.generate import Session
from bltkit.hf.decoding import decode
from bltkit.hf.generate_options import check_backend, check_options, strategy_of


class EngineGeneration:
    """A mixin in front of a `GenerationMixin`: `generate` with cached state at every level."""

    def engine_session(self, backend: str, rows: int) -> Session:
        """A session of `rows` empty rows, run by `backend`."""
        raise NotImplementedError

    @property
    def engine_defaults(self) -> tuple[Any, str]:
        """Strategy and backend of a call that names none."""
        return "ar", "eager"

    def generate(
        self,
        inputs: Any = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        streamer: Any = None,
        strategy: Any = None,
        backend: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue prompts; arguments, results and their meaning are those of transformers' `generate`.

        Greedy search and sampling, with every processor, criterion, streamer and field of GenerationConfig that those
        have. Each row is continued as its prompt alone would be by `generate(use_cache=False)`, whatever padding
        stands to its left or right.

        inputs (or input_ids): [B, T] ids, on any device. strategy: `ar`; `speculative` (BLT-S) gives the same ids by
        drafts of the local model. A processor must then be a function of its arguments: it is called for one row at a
        time and also for drafts that are rejected. backend: what runs a step, `eager`, `native` or `auto`
        (`native/`). Both default to what the model was given.

        Raises ValueError with the option's name for what the engine does not do (beams, assistants, constraints,
        guidance, another cache), and for ids, masks and models that cannot be computed with.
        """
        default_strategy, default_backend = self.engine_defaults
        chosen = strategy_of(default_strategy if strategy is None else strategy)
        runs = default_backend if backend is None else backend
        check_backend(runs)
        check_options(kwargs, generation_config, self.generation_config)  # type: ignore[attr-defined]
        if prefix_allowed_tokens_fn is not None and chosen.kind == "speculative":
            raise ValueError(
                "prefix_allowed_tokens_fn needs the row's number, which strategy 'speculative' does not hand to "
                "processors; use strategy='ar'"
            )

        def loop(
            model: Any,
            input_ids: Any,
            logits_processor: Any = None,
            stopping_criteria: Any = None,
            generation_config: Any = None,
            **model_inputs: Any,
        ) -> Any:
            # Were the mask a parameter of its own, transformers would take it for an option of this loop.
            return decode(
                partial(self.engine_session, runs),
                chosen,
                input_ids,
                model_inputs.get("attention_mask"),
                logits_processor,
                stopping_criteria,
                generation_config,
                streamer,
            )

        ids, mask = kwargs.get("input_ids", inputs), kwargs.get("attention_mask")
        if ids is not None and mask is not None and ids.shape != mask.shape:
            shapes = f"{list(mask.shape)}, input_ids {list(ids.shape)}"
            raise ValueError(f"attention_mask has shape {shapes}; the two must agree")
        kwargs["use_cache"] = False  # transformers would prepare a cache that nobody reads
        return super().generate(  # type: ignore[misc]
            inputs,
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            streamer=streamer,
            custom_generate=loop,
            **kwargs,
        )
