"""ByteLM: a model, what scores its text and the rule that cuts it, as one object. Python's side of the verbs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.checkpoint import Bundle, DeviceMap, ScorerModule, resolve_model, save_bundle, warn_unreadable
from bltkit.compute import device_of, threads_used
from bltkit.cost.formulas.parameters import count_parameters
from bltkit.eval.score import Score, score
from bltkit.generate import (
    Chunk,
    Generation,
    Options,
    Prompt,
    Request,
    SequenceBatch,
    Session,
    at_least_one,
    generate,
    generate_rows,
    parse_options,
    prompt_bytes,
    several_prompts,
    spelled_out,
    text_of,
    typed,
)
from bltkit.generate.autotune import best_form, measure_forms
from bltkit.generate.open_bundle import open_bundle
from bltkit.model import Blt, BoundaryModel
from bltkit.model.quantize import LOSSLESS, FormedLinear, parse_form, reform
from bltkit.native import on_backend
from bltkit.patching import PatchingRule, ScoreKind, parse_rule, patch
from bltkit.patching.patched import PatchedText, patch_text
from bltkit.vocab import VOCAB_SIZE, encode, to_bytes

BATCH_SIZE = 16
"""Prompts side by side. On one CPU core 8 gave 4.2 times the throughput of one, 16 5.8 times, 32 6.7 times."""


class ByteLM:
    """A byte language model that is ready to use.

    model: the BLT, or None where only an entropy model was loaded (it patches and scores, but does not generate).
    scorer: what gives every byte a score (an entropy model), or None for rules that read none.
    rule: which bytes open a patch. record: how the model was trained.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def __repr__(self) -> str:
        """Size, rule, device, dtype or weight form, and threads."""
        named = {"BLT": self.model, f"{self._score_kind()} model": self.scorer}
        modules = {name: module for name, module in named.items() if module is not None}
        sizes = [f"{name} of {count_parameters(module):,} parameters" for name, module in modules.items()]
        inner = [layer for module in modules.values() for layer in module.modules()]
        formed = {layer.form for layer in inner if isinstance(layer, FormedLinear)}
        weights = [weight for module in modules.values() for weight in module.parameters()]
        dtypes = sorted(formed) + sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})
        devices = list(dict.fromkeys(str(weight.device) for weight in weights))
        threads = f", {threads_used()}" if "cpu" in devices else ""
        where = f"{'+'.join(dtypes)} on {'+'.join(devices)}"
        return f"ByteLM({' and '.join(sizes)}, rule {self.rule or 'none'}, {where}{threads})"

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        verify: bool = False,
        weights: str | None = None,
        scorer_weights: str | None = None,
        device_map: str | Path | DeviceMap | None = None,
    ) -> Self:
        """Load MODEL: a checkpoint directory (ours or Hugging Face's), `bltkit:NAME` or `hf:OWNER/NAME[@REVISION]`.

        dtype: of the weights in memory, fp32 by default. device: also "auto", the first of CUDA, MPS and the CPU that
        is there. verify: compare every file with its sha256 in bltkit.json, which reads the weights whole; without it
        their sizes alone are compared. weights, scorer_weights: forms of the large matrices (see `open_bundle`).
        device_map: devices of a model's parts in place of `device`: "auto" fills GPUs and then the CPU, n-gram tables
        stay on the CPU; or "layers=0-11:cuda:0,12-24:cpu", a JSON file, or a `DeviceMap`.
        Raises ValueError with the remedy if the model cannot be loaded, or there is no such device.
        """
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype = {dtype!r}: must be a torch.dtype, such as torch.bfloat16")
        if device_map is not None and str(device) != "cpu":
            raise ValueError(f"device = {device} beside device_map; give one of them")
        options: dict[str, Any] = {"verify": verify, "weights": weights, "scorer_weights": scorer_weights}
        options["device_map"] = None if device_map is None else DeviceMap.parse(device_map)
        return cls(open_bundle(resolve_model(str(model)), dtype=dtype, device=device_of(device), **options))

    @property
    def model(self) -> Blt | None:
        """The BLT."""
        return self.bundle.model

    @property
    def scorer(self) -> ScorerModule | None:
        """The entropy (or boundary) model."""
        return self.bundle.scorer

    @property
    def rule(self) -> PatchingRule | None:
        """The patching rule."""
        return self.bundle.rule

    @property
    def record(self) -> dict[str, Any]:
        """The training record."""
        return self.bundle.record

    def save(self, directory: str | Path, *, dtype: torch.dtype | None = None, weights: str | None = None) -> None:
        """Write a checkpoint, as `save_bundle` does; `directory` must not exist. Raises ValueError, OSError."""
        save_bundle(directory, self.bundle, dtype=dtype, weights=weights)
        warn_unreadable(directory, self.bundle, weights)

    def with_patching(self, rule: PatchingRule | str) -> "ByteLM":
        """The same model under another rule, given as a value or as `kind:field=value,...`.
        Raises ValueError for a rule that reads scores which this model does not give.
        """
        typed("rule", rule, str | PatchingRule)
        parsed = parse_rule(rule) if isinstance(rule, str) else rule
        if parsed.scores not in (None, self._score_kind()):
            given = "none" if self.scorer is None else f"{self._score_kind()} scores"
            raise ValueError(f"rule {parsed.kind!r} reads {parsed.scores} scores, but this model gives {given}")
        return ByteLM(replace(self.bundle, rule=parsed))

    def with_weights(self, form: str, scorer: str | None = None) -> "ByteLM":
        """The same model with its large matrices in another run-time form, for inference (`model/quantize.py`).

        form: `packed` holds the very same numbers; fp16, bf16, int8 and int4 round them; `auto` is the faster of those
        that round nothing. scorer: the scorer's; None: as `form` where that rounds nothing, else as it is.
        Raises ValueError for a form unknown or without kernels here, and for weights not in fp32.
        """
        model, size = self._needed_model(), (self.bundle.mean_patch_bytes or (4.5,))[0]
        auto = typed("form", form, str) == "auto"
        chosen = best_form(measure_forms(model, self.scorer, LOSSLESS, patch_bytes=size)) if auto else parse_form(form)
        scorer_form = parse_form(scorer) if scorer is not None else chosen if chosen in LOSSLESS else "fp32"
        reformed = None if self.scorer is None else reform(self.scorer, scorer_form)
        return ByteLM(replace(self.bundle, model=reform(model, chosen), scorer=reformed))

    def with_backend(self, backend: str) -> "ByteLM":
        """The same model with steps run as `native.on_backend` says, which raises ValueError; after `with_weights`."""
        model, scorer = on_backend(typed("backend", backend, str), self.model, self.scorer)
        return ByteLM(replace(self.bundle, model=model, scorer=scorer))

    def patches(self, text: str | bytes) -> PatchedText:
        """How `text` is cut into patches, with the scores that decided it."""
        data, rule = to_bytes(text), self._needed_rule()
        if (scorer := self.scorer) is None:
            return patch_text(data, rule)
        device = next(scorer.parameters()).device
        return patch_text(data, rule, lambda ids: scorer.scores(ids.to(device)), score_kind=self._score_kind())

    @spelled_out
    def generate(self, prompt: str | bytes = b"", **options: Unpack[Options]) -> Generation:
        """Continue `prompt`; options as for `stream`, where `help(lm.stream)` explains them."""
        return Generation.of(list(self.stream(prompt, **options)))

    @spelled_out
    def samples(self, prompt: str | bytes = b"", num: int = 4, **options: Unpack[Options]) -> list[Generation]:
        """`num` continuations of one prompt, which is read once; sample i is that of `seed` + i.

        Options as for `stream`. The passes in their stats are shared. Raises ValueError for fewer than one.
        """
        at_least_one("num", num)
        first = self._request(prompt, options)
        requests = [replace(first, sampling=first.sampling.replace(seed=first.sampling.seed + i)) for i in range(num)]
        session = self.session(prompt)
        chunks: list[list[Chunk]] = [[] for _ in requests]
        for row, chunk in generate_rows(session if num == 1 else session.select([0] * num), requests):
            chunks[row].append(chunk)
        return [Generation.of(row_chunks) for row_chunks in chunks]

    @spelled_out
    def generate_many(
        self, prompts: Iterable[str | bytes | Prompt], *, batch_size: int = BATCH_SIZE, **options: Unpack[Options]
    ) -> list[Generation]:
        """Continue several prompts side by side; the results have the prompts' order.

        As `generate_iter`, but all prompts are checked before the first one is read.
        """
        several = list(several_prompts(prompts))
        for prompt in several:
            self._request(prompt, options)
        results = sorted(self.generate_iter(several, batch_size=batch_size, **options), key=lambda item: item[0])
        return [result for _, result in results]

    @spelled_out
    def generate_iter(
        self, prompts: Iterable[str | bytes | Prompt], *, batch_size: int = BATCH_SIZE, **options: Unpack[Options]
    ) -> Iterator[tuple[int, Generation]]:
        """Continue several prompts side by side, yielding (index, result) as each one finishes.

        A prompt's bytes are those of `generate` with the same options and seed: they depend neither on the other
        prompts nor on `batch_size`. That holds exactly in float64; in fp32 a batch rounds otherwise than a single
        row, so an id may differ where two are equally probable but for rounding.

        prompts: texts, bytes, or `Prompt` values with options of their own; read as rows become free, so an endless
            iterator is fine and memory is bounded by `batch_size` prompts.
        batch_size: number of prompts side by side.
        seed: the same for every prompt, unless a `Prompt` says otherwise.

        Other options as for `stream`. The passes in the stats are shared: those made while a prompt's row ran.
        Raises ValueError for bad options at once, for a bad prompt when it is reached.
        """
        at_least_one("batch_size", batch_size)
        self._request(b"", options)
        self._needed_rule()
        return self._continued(iter(several_prompts(prompts)), SequenceBatch(), batch_size, options)

    def _continued(
        self, prompts: Iterator[str | bytes | Prompt], batch: SequenceBatch, batch_size: int, options: Options
    ) -> Iterator[tuple[int, Generation]]:
        """Rows that finish are replaced by waiting prompts. A row's key in the batch is its prompt's index."""
        chunks: dict[int, list[Chunk]] = {}
        while True:
            for prompt in islice(prompts, batch_size - len(batch.rows)):
                request = self._request(prompt, options)
                batch = batch.admit(self.session(text_of(prompt)), [request])
            if not batch.rows:
                return
            batch, new = batch.step()
            for key, chunk in new:
                chunks.setdefault(key, []).append(chunk)
                if chunk.finish is not None:
                    yield key, Generation.of(chunks.pop(key))

    @spelled_out
    def stream(self, prompt: str | bytes = b"", **options: Unpack[Options]) -> Iterator[Chunk]:
        """Continue `prompt`, handing out bytes as they become certain; the last chunk has `finish` and `stats`.

        max_bytes: maximum number of bytes to generate; 256.
        strategy: `ar`; `speculative` (BLT-S), which gives the same bytes and works on every model; and for models that
            were trained for blocks `verified` (BLT-DV), the same bytes again, and `diffusion` (BLT-D), whose bytes are
            its own. `auto` chooses among the exact ones round by round. The papers' names are accepted (`blt-s`,
            `blt-dv`, `blt-d`). Or a `Strategy` value, with all of its fields, in place of the options here.
        draft: bytes drafted a round; of `diffusion` and `verified` the size of a block. By default adaptive, or as
            many as the model was trained for.
        alpha: a pass over a block writes every byte more probable than this (`diffusion`: 0.7 by default). gamma: in
            its place, the surest bytes whose entropies sum to at most so many nats. steps: at most so many passes a
            block; `verified` makes one by default. align_border: blocks begin where the open patch does.
        temperature: 0.8, 0 is greedy; top_k, top_p, min_p, repetition_penalty, repetition_window as in `Sampling`.
        seed: 0; a sample depends on it and the prompt alone.
        logit_bias: what is added to the logits of ids (a byte's value + 4; 2 is EOS), -100 to 100.
        stop: strings that end the text and are not part of it.
        valid_utf8: make only valid UTF-8. logprobs: hand out log-probabilities; top_logprobs: also of the k best ids.
        Raises ValueError for options unknown, of the wrong type or out of range, before the first pass.
        """
        request = self._request(prompt, options)
        return generate(self.session(prompt), request)

    def _request(self, prompt: str | bytes | Prompt, options: Options) -> Request:
        overrides: Options = prompt.options if isinstance(prompt, Prompt) else {}
        request = parse_options(prompt_bytes(text_of(prompt)), {**options, **overrides})
        request.strategy.check(self._needed_model())
        return request

    def session(self, prompt: str | bytes = b"") -> Session:
        """The cached state behind BOS and `prompt`, for decoding of one's own."""
        session = Session.start(self._needed_model(), self.scorer, self._needed_rule())
        return session.extend(encode(prompt_bytes(prompt)))

    def score(
        self,
        text: str | bytes,
        *,
        context: int | None = None,
        stride: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Score:
        """Bits per byte of `text`: windows of `context` bytes (default: the training row), each byte scored once."""
        typed("context", context, int | None)
        typed("stride", stride, int | None)
        return score(self.bundle, text, context=context, stride=stride, progress=progress)

    @torch.no_grad()
    def logits(self, ids: Int64[Tensor, " T"] | Sequence[int]) -> Float[Tensor, "T V"]:
        """Raw logits for the id after each of `ids` (BOS is the caller's to put in front), without any cache."""
        model, rule = self._needed_model(), self._needed_rule()
        if isinstance(ids, str | bytes):
            raise ValueError("ids are text; `bltkit.vocab.encode` makes ids of it")
        row = torch.as_tensor(ids, dtype=torch.long, device=model.embed.bytes.weight.device)[None]
        if row.shape[1] == 0:
            raise ValueError("ids are empty; a row has at least BOS (id 1)")
        if not 0 <= int(row.min()) <= int(row.max()) < VOCAB_SIZE:
            raise ValueError(f"ids run from {int(row.min())} to {int(row.max())}; they must be in 0..{VOCAB_SIZE - 1}")
        scores = None if rule.scores is None or self.scorer is None else self.scorer.scores(row)
        patches = patch(rule, row, scores, documents=model.config.document_masks)
        return model(row, patches)[0]

    def _score_kind(self) -> ScoreKind | None:
        if self.scorer is None:
            return None
        return "boundary" if isinstance(self.scorer, BoundaryModel) else "entropy"

    def _needed_rule(self) -> PatchingRule:
        if self.rule is None:
            raise ValueError("this model has no patching rule; run `blt calibrate` on it, or give one (--rule)")
        return self.rule

    def _needed_model(self) -> Blt:
        if self.model is None:
            raise ValueError("this checkpoint holds no BLT, only a model that places patches; name a BLT's checkpoint")
        return self.model


load = ByteLM.load
"""Load a checkpoint directory, `bltkit:NAME` or `hf:OWNER/NAME[@REVISION]`; options and errors as for `ByteLM.load`."""
