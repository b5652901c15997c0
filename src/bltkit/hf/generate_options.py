"""Options of the engine's `generate`, checked before anything is computed: each is honoured or refused by name."""

from collections.abc import Callable, Mapping
from typing import Any

from bltkit.generate import Autoregressive, Speculative, Strategy, parse_strategy, typed
from bltkit.native import BACKENDS

ARGUMENTS = {
    "input_ids",
    "attention_mask",
    "tokenizer",
    "use_model_defaults",
    "trust_remote_code",
}
"""Further arguments of transformers' `generate` that are passed on to it."""

_OFF: Mapping[str, Callable[[Any], bool]] = {
    "num_beams": lambda value: value == 1,
    "num_beam_groups": lambda value: value == 1,
    "diversity_penalty": lambda value: value == 0,
    "constraints": lambda value: not value,
    "force_words_ids": lambda value: not value,
    "penalty_alpha": lambda value: value == 0,
    "dola_layers": lambda value: False,
    "prompt_lookup_num_tokens": lambda value: False,
    "guidance_scale": lambda value: value == 1,
    "cache_implementation": lambda value: False,
    "token_healing": lambda value: not value,
    "output_attentions": lambda value: not value,
    "output_hidden_states": lambda value: not value,
    "compile_config": lambda value: False,
    "assistant_early_exit": lambda value: False,
    "is_assistant": lambda value: not value,
}
"""Fields of a GenerationConfig that the engine does not have, and when they ask for nothing; None always does."""


def check_options(options: Mapping[str, Any], *configs: Any) -> None:
    """Raise ValueError for what the engine cannot do, by name.

    options: keyword arguments of the call. configs: GenerationConfigs that hold where the call says nothing, the first
    one before the next.
    """
    from transformers import GenerationConfig

    fields = set(GenerationConfig().to_dict()) | set(_OFF) | {"max_length"}
    for name, value in options.items():
        if name not in fields | ARGUMENTS and value is not None and value is not False:
            raise ValueError(
                f"{name} is not supported by bltkit's generate; leave it out, or call transformers' own generate with "
                "use_cache=False"
            )
    for name, is_off in _OFF.items():
        values = [options.get(name), *(getattr(config, name, None) for config in configs)]
        value = next((value for value in values if value is not None), None)
        if value is not None and not is_off(value):
            raise ValueError(
                f"{name} = {value!r:.60} is not supported by bltkit's generate, which does greedy search and sampling; "
                "leave it out, or call transformers' own generate with use_cache=False"
            )


def strategy_of(value: Any) -> Autoregressive | Speculative:
    """The decoding strategy of this name. Raises ValueError for another than `ar` and `speculative`."""
    strategy = parse_strategy(value) if isinstance(value, str) else typed("strategy", value, str | Strategy)
    if not isinstance(strategy, Autoregressive | Speculative):
        raise ValueError(
            f"strategy = {strategy.kind!r}: generate takes 'ar' and 'speculative'; bltkit.load(...).generate has others"
        )
    return strategy


def check_backend(value: Any) -> None:
    """Raise ValueError for a backend that does not exist."""
    if value not in BACKENDS:
        raise ValueError(f"backend = {value!r}: must be {' or '.join(map(repr, BACKENDS))}")
