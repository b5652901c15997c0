"""The model type `bltkit` of lm-evaluation-harness: its tasks, asked of a BLT (or a token model) of ours.

    python -m bltkit.eval.harness --model_args pretrained=bltkit:tiny --tasks arc_easy,lambada_openai --limit 50
    python -m bltkit.eval.harness --model_args pretrained=DIR,context=4096 --tasks mine --include_path TASKS

These are the arguments of `lm_eval`, behind `--model bltkit`. The harness (0.4) knows no model types of other packages
until somebody registers them, so `lm_eval --model bltkit` by itself cannot work. In Python:

    register()
    lm_eval.simple_evaluate("bltkit", "pretrained=bltkit:tiny", tasks=[...])

Texts go to the model as UTF-8 bytes. What the harness counts in tokens, `max_gen_toks`, is taken as `bytes_per_token`
bytes each. Its word and byte perplexities need no change: they divide by the text's own words and bytes.
"""

import logging
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from bltkit.config import nearest
from bltkit.eval.requests import Coded, Compression, Continuation, Request, Scored, Written, likelihood
from bltkit.eval.subjects import Subject, open_subject
from bltkit.eval.subjects.subject import window_of
from bltkit.generate import parse_strategy
from bltkit.terminal.progress import Progress
from bltkit.terminal.streams import say
from bltkit.vocab import to_bytes

MODEL_TYPE = "bltkit"
BYTES_PER_TOKEN = 4
"""Of English text, and a little more, for the tokenizers that the harness' tasks were written with."""
MAX_GEN_TOKS = 256
"""The harness' own default."""
MAX_LENGTH = 10**9
"""Tokens of an answer: more is a mistake."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of one thing, the first given counts."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (None, 1),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "repetition_penalty": (None, 1),
    "num_beams": (None, 1),
}
"""Settings that a subject does not have, and values of them that change nothing."""
ONLY_SAMPLES = ("top_p", "top_k", "min_p")

SETTINGS = ("pretrained", "context", "batch_bytes", "strategy", "bytes_per_token", "seed", "device")
"""Of the model, in `--model_args`."""

_log = logging.getLogger(__name__)


class HarnessModel:
    """The three questions of the harness, put to a `Subject`; `model_class()` makes an LM of the harness of it.

    pretrained: MODEL as users name it (a directory, `bltkit:NAME`, `hf:OWNER/NAME`, `token:DIR`), or a subject.
    context: bytes that the model sees at once. batch_bytes: bytes (a token model: tokens) computed at once.
    strategy: a decoding strategy's name. bytes_per_token: see above. seed: of samples; where the harness repeats a
        request, the k-th draw has seed + k.
    Annotated as Any are those that the harness reads out of `--model_args`, where a number may come as text.
    batch_size, max_batch_size: accepted since the harness always gives them, and not used.

    Raises ValueError where there is no such model, and for settings that it does not have.
    """

    cache_hook: Any

    def __init__(
        self,
        pretrained: str | Subject,
        *,
        context: Any = None,
        batch_bytes: Any = None,
        strategy: Any = None,
        bytes_per_token: Any = BYTES_PER_TOKEN,
        seed: Any = 0,
        device: Any = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        for name in unknown:
            raise ValueError(f"there is no setting {name!r}{nearest(name, SETTINGS)}; known: {', '.join(SETTINGS)}")
        if not (_is_number(bytes_per_token) and 0 < bytes_per_token <= MAX_LENGTH):  # NaN is neither
            raise ValueError(
                f"bytes_per_token = {bytes_per_token!r}: must be above 0 and finite; {BYTES_PER_TOKEN} by default"
            )
        whole = {"context": context, "batch_bytes": batch_bytes, "seed": seed}
        for name, value in whole.items():
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"{name} = {value!r:.80}: give a whole number")
        texts = {"strategy": strategy, "device": device}
        for name, text in texts.items():
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{name} = {text!r:.80}: give a name")
        self.bytes_per_token = bytes_per_token
        self.seed = seed
        if isinstance(pretrained, str):
            # The harness' command asks for "cuda:0" where the user names no device.
            if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
                _log.info("device %s is not there: computing on the CPU", device)
                device = "cpu"
            chosen = None if strategy is None else parse_strategy(strategy)
            pretrained = open_subject(
                pretrained, context=context, strategy=chosen, batch=batch_bytes, device=device or "cpu"
            )
        self.subject: Subject = pretrained

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability, is it what greedy decoding gives) of (context, continuation) pairs, the space between them
        where they have it; an empty context is BOS alone."""
        pairs = [request.args for request in requests]
        asked = {at: likelihood(*pair) for at, pair in enumerate(pairs) if pair[1]}
        found = {at: (0.0, True) for at in range(len(pairs)) if at not in asked}
        for at, answer in self._answers(asked, "loglikelihood"):
            assert isinstance(answer, Scored)
            found[at] = (answer.logprob, answer.greedy)
            self.cache_hook.add_partial("loglikelihood", pairs[at], found[at])
        return [found[at] for at in range(len(pairs))]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probability of whole texts behind BOS, every byte scored once, in windows where they are longer."""
        texts = [request.args for request in requests]
        found: dict[int, float] = {}
        asked = {at: Compression(to_bytes(text)) for at, (text,) in enumerate(texts)}
        for at, answer in self._answers(asked, "loglikelihood_rolling"):
            assert isinstance(answer, Coded)
            found[at] = -answer.nats
            self.cache_hook.add_partial("loglikelihood_rolling", texts[at], found[at])
        return [found[at] for at in range(len(texts))]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What is written behind each context, up to the first of its `until` strings; see `generation_of`."""
        pairs = [request.args for request in requests]
        seen: Counter[str] = Counter()
        asked = {}
        for at, (context, settings) in enumerate(pairs):
            draw = repr((context, settings))
            asked[at] = generation_of(context, settings, self.bytes_per_token, self.seed + seen[draw])
            seen[draw] += 1
        found: dict[int, str] = {}
        for at, answer in self._answers(asked, "generate_until"):
            assert isinstance(answer, Written)
            found[at] = answer.text
            self.cache_hook.add_partial("generate_until", pairs[at], found[at])
        return [found[at] for at in range(len(pairs))]

    def get_model_info(self) -> dict[str, Any]:
        """Goes into the `config` of the harness' results."""
        return {
            "model_name": self.subject.name,
            "model_kind": self.subject.kind,
            "model_sha": self.subject.fingerprint,
            "bytes_per_token": self.bytes_per_token,
        }

    @property
    def tokenizer_name(self) -> str:
        """Names the form of the prompts in the harness' cache of requests: they are texts, without a template."""
        return f"{MODEL_TYPE}-text"

    def _answers(self, asked: Mapping[int, Request], what: str) -> Any:
        """(key, answer) of each request, with a progress bar where there is a terminal; a warning of cut contexts."""
        keys = list(asked)
        found = self.subject.answers(list(asked.values()))
        cut = 0
        with Progress(what, "requests") as progress:
            for number, (at, answer) in enumerate(found, 1):
                progress(number, len(keys))
                cut += not isinstance(answer, Coded) and answer.cut > 0
                yield keys[at], answer
        if cut:
            window = window_of(self.subject)
            sized = "" if window is None else f", the model is shown {window} at once"
            remedy = "; --model_args context=N shows more" if window is not None and window.unit == "bytes" else ""
            _log.warning("%s: %d of %d contexts lost their beginning%s%s", what, cut, len(keys), sized, remedy)


def generation_of(context: str, settings: Any, bytes_per_token: float, seed: int) -> Continuation:
    """What the harness' generation settings ask for.

    `until`: a string or several. `max_gen_toks` (and its other names): 256 by default, `bytes_per_token` bytes each.
    `do_sample` False, or neither it nor a `temperature`: greedy. Otherwise at `temperature`, which is 1 by default.

    Raises ValueError for values of another kind, and for settings that would change the answer and that no subject has,
    such as `top_p`.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"generation settings {settings!r:.80}: give a mapping, such as {{'until': ['\\n']}}")
    rest = dict(settings)
    stop = _stop_strings(rest.pop("until", None))
    lengths = [(name, value) for name in LENGTHS if (value := rest.pop(name, None)) is not None]
    tokens = _length(*lengths[0]) if lengths else MAX_GEN_TOKS
    heat = _temperature(rest.pop("do_sample", None), rest.pop("temperature", None))
    for name, value in rest.items():
        if name not in NEUTRAL:
            _log.warning("generation setting %s = %r is not known here and changes nothing", name, value)
        elif value not in NEUTRAL[name] and (heat > 0 or name not in ONLY_SAMPLES):
            raise ValueError(f"generation setting {name} = {value!r}: not supported; take one of {NEUTRAL[name][1:]}")
    return Continuation(
        to_bytes(context),
        max(1, round(tokens * bytes_per_token)),
        tuple(map(to_bytes, stop)),
        heat,
        seed,
    )


def _stop_strings(until: Any) -> list[str]:
    """Empty strings are left out: they stand in front of every byte, and no task means that."""
    several = [] if until is None else [until] if isinstance(until, str) else until
    if not isinstance(several, list | tuple) or not all(isinstance(one, str) for one in several):
        raise ValueError(f"generation setting until = {until!r:.80}: give a string, or a list of strings")
    return [one for one in several if one]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _length(name: str, value: Any) -> int:
    whole = _is_number(value) and value == value // 1
    if not whole or not 1 <= value <= MAX_LENGTH:
        raise ValueError(f"generation setting {name} = {value!r:.80}: give a whole number from 1 to {MAX_LENGTH:,}")
    return int(value)


def _temperature(sample: Any, temperature: Any) -> float:
    """Of the engine, where 0 is greedy."""
    if temperature is not None and not (_is_number(temperature) and 0 <= temperature < math.inf):
        raise ValueError(f"generation setting temperature = {temperature!r:.80}: give a number from 0 on")
    if sample is not None and sample not in (0, 1):
        raise ValueError(f"generation setting do_sample = {sample!r:.80}: give true or false")
    if not (temperature if sample is None else sample):
        return 0.0
    return 1.0 if temperature is None else float(temperature)


@cache
def model_class() -> type:
    """`HarnessModel` as an LM of the harness. Raises ValueError where the harness is not installed."""
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise ValueError("lm-evaluation-harness is not installed: pip install 'bltkit[harness]'") from None

    class BltkitLM(HarnessModel, LM):  # type: ignore[misc]
        __doc__ = HarnessModel.__doc__

    return BltkitLM


def register() -> None:
    """Makes the model type `bltkit` known to the harness, in this process; once or several times.

    Raises ValueError where the harness is not installed.
    """
    kind = model_class()
    import lm_eval.models  # noqa: F401  the registry fills itself only while it is empty
    from lm_eval.api.registry import model_registry

    if MODEL_TYPE not in model_registry:
        model_registry.register(MODEL_TYPE, target=kind)


def main(arguments: Sequence[str] | None = None) -> None:
    """`lm_eval` with these arguments (of the command line by default), and `--model bltkit` where they name none."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        command = given.pop(0) if given and given[0] in ("run", "ls", "validate") else "run"
        named = any(word.split("=")[0] in ("--model", "-M", "--config", "-C") for word in given)
        model = [] if command != "run" or named else ["--model", MODEL_TYPE]
        sys.argv = ["lm_eval", command, *model, *given]
        cli_evaluate()
    except ValueError as error:
        say(f"error: {error}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
