"""ByteLM: a model, what scores its text and the rule that cuts it, as one object. Python's side of the verbs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.checkpoint import Bundle, ScorerModule, load_bundle, resolve_model, save_bundle
from bltkit.checkpoint.patch_size import mean_patch_bytes
from bltkit.compute import device_of
from bltkit.config import parse
from bltkit.eval.noise import Noise, parse_noise
from bltkit.eval.place import Place
from bltkit.eval.runner import Evaluation, Settings
from bltkit.eval.runner import evaluate as run_evaluation
from bltkit.eval.score import Score, score
from bltkit.eval.subjects import Subject, open_subject
from bltkit.eval.tasks import Task, parse_tasks
from bltkit.generate import (
    Chunk,
    Finish,
    Request,
    Sampling,
    Session,
    Stats,
    Strategy,
    Utf8,
    generate,
    generate_rows,
    parse_strategy,
    strategy_of,
)
from bltkit.model import Blt, BoundaryModel
from bltkit.model.fastest import best_form, measure_forms
from bltkit.model.forms import LOSSLESS, parse_form, reform
from bltkit.patching import PatchingRule, ScoreKind, parse_rule, patch
from bltkit.patching.patched import PatchedText, patch_text
from bltkit.vocab import encode, to_bytes


@dataclass(frozen=True)
class Generation:
    """A finished continuation: its bytes (prompt and stop strings left out), why it ended, and what it cost."""

    data: bytes
    finish: Finish
    stats: Stats
    logprobs: tuple[float, ...] = ()
    """Natural logarithm of each byte's probability, where asked for."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Self:
        """All of a generation's chunks together."""
        finish, stats = chunks[-1].finish, chunks[-1].stats
        assert finish is not None and stats is not None
        logprobs = tuple(value for chunk in chunks for value in chunk.logprobs)
        return cls(b"".join(chunk.data for chunk in chunks), finish, stats, logprobs)

    @property
    def text(self) -> str:
        """The bytes as text; what is not UTF-8 shows as U+FFFD."""
        return self.data.decode("utf-8", "replace")


class ByteLM:
    """A byte language model that is ready to use.

    model: the BLT, or None where only an entropy model was loaded (it patches and scores, but does not generate).
    scorer: what gives every byte a score (an entropy model), or None for rules that read none.
    rule: which bytes open a patch. record: how the model was trained.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        verify: bool = False,
    ) -> Self:
        """Load MODEL: a checkpoint directory (ours or Hugging Face's), `bltkit:NAME` or `hf:OWNER/NAME`.

        dtype: of the weights in memory, fp32 by default. device: also "auto", the first of CUDA, MPS and the CPU that
        is there. verify: compare every file with its sha256 in bltkit.json, which reads the weights whole; without it
        their sizes alone are compared (`blt check` compares everything).
        Raises ValueError with the remedy if the model cannot be loaded, or there is no such device.
        """
        return cls(load_bundle(resolve_model(str(model)), dtype=dtype, device=device_of(device), verify=verify))

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

    def save(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint; `directory` must not exist. Raises ValueError where it does, OSError on a full disk."""
        save_bundle(directory, self.bundle, dtype=dtype)

    def with_patching(self, rule: PatchingRule | str) -> "ByteLM":
        """The same model under another rule, given as a value or as `kind:field=value,...`.

        Raises ValueError for a rule that reads scores which this model does not give.
        """
        parsed = parse_rule(rule) if isinstance(rule, str) else rule
        if parsed.scores not in (None, self._score_kind()):
            given = "none" if self.scorer is None else f"{self._score_kind()} scores"
            raise ValueError(f"rule {parsed.kind!r} reads {parsed.scores} scores, but this model gives {given}")
        return ByteLM(replace(self.bundle, rule=parsed))

    def with_weights(self, form: str) -> "ByteLM":
        """The same model with its large matrices in another run-time form, for inference (`model/forms.py`).

        `packed` holds the very same numbers in another layout; fp16, bf16 and int8 round them. `auto` measures the
        forms that round nothing on this machine, about a second's work, and takes the faster.
        Raises ValueError for a form unknown or without kernels here, and for weights not in fp32.
        """
        model = self._needed_model()
        if form == "auto":
            patch_bytes, _ = mean_patch_bytes(self.bundle) or (4.5, "assumed")
            chosen = best_form(measure_forms(model, self.scorer, LOSSLESS, patch_bytes=patch_bytes))
        else:
            chosen = parse_form(form)
        scorer = None if self.scorer is None else reform(self.scorer, chosen)
        return ByteLM(replace(self.bundle, model=reform(model, chosen), scorer=scorer))

    def patches(self, text: str | bytes) -> PatchedText:
        """How `text` is cut into patches, with the scores that decided it."""
        scorer = self.scorer
        if scorer is None:
            return patch_text(to_bytes(text), self._needed_rule())
        device = next(scorer.parameters()).device
        return patch_text(
            to_bytes(text),
            self._needed_rule(),
            lambda ids: scorer.scores(ids.to(device)),
            score_kind=self._score_kind(),
        )

    def generate(self, prompt: str | bytes = b"", **options: Any) -> Generation:
        """Continue `prompt`; options as for `stream`."""
        return self.samples(prompt, 1, **options)[0]

    def samples(self, prompt: str | bytes = b"", num: int = 4, *, seed: int = 0, **options: Any) -> list[Generation]:
        """`num` continuations of one prompt, which is read once; sample i is that of `seed` + i.

        Options as for `stream`. The passes in their stats are shared: those made while a sample ran.
        """
        if num < 1:
            raise ValueError(f"num = {num} must be at least 1")
        requests = []
        for i in range(num):
            request, strategy = self._request(prompt, seed=seed + i, **options)
            requests.append(request)
        strategy.check(self._needed_model())
        session = self.session(prompt)
        chunks: list[list[Chunk]] = [[] for _ in requests]
        for row, chunk in generate_rows(session if num == 1 else session.select([0] * num), requests, strategy):
            chunks[row].append(chunk)
        return [Generation.of(own) for own in chunks]

    def stream(self, prompt: str | bytes = b"", **options: Any) -> Iterator[Chunk]:
        """Continue `prompt`, handing out bytes as they become certain; the last chunk has `finish` and `stats`.

        max_bytes: 256.
        strategy: `ar`; `speculative` (BLT-S), which gives the same bytes and works on every model; and for models that
            were trained for blocks `verified` (BLT-DV), the same bytes again, and `diffusion` (BLT-D), whose bytes are
            its own. Or a `Strategy` value, with all of its fields, in place of the options here.
        draft: bytes drafted a round; of `diffusion` and `verified` the size of a block. By default adaptive, or as
            many as the model was trained for.
        alpha: a pass over a block writes every byte more probable than this (`diffusion`: 0.7 by default). gamma: in
            its place, the surest bytes whose entropies sum to at most so many nats. steps: at most so many passes a
            block; `verified` makes one by default. align_border: blocks begin where the open patch does.
        temperature: 0.8, 0 is greedy; top_k, top_p, min_p, repetition_penalty, repetition_window as in `Sampling`.
        seed: 0; a sample depends on it and the prompt alone.
        stop: strings that end the text and are not part of it.
        valid_utf8: make only valid UTF-8. logprobs: hand out the log-probability of every byte.

        Raises ValueError for options unknown or out of range.
        """
        request, strategy = self._request(prompt, **options)
        strategy.check(self._needed_model())
        yield from generate(self.session(prompt), request, strategy)

    def _request(
        self,
        prompt: str | bytes,
        *,
        max_bytes: int = 256,
        strategy: str | Strategy = "ar",
        draft: int | None = None,
        alpha: float | None = None,
        gamma: float | None = None,
        steps: int | None = None,
        align_border: bool = False,
        stop: str | bytes | Sequence[str | bytes] = (),
        valid_utf8: bool = False,
        logprobs: bool = False,
        **sampling: Any,
    ) -> tuple[Request, Strategy]:
        strings = [stop] if isinstance(stop, str | bytes) else stop
        request = Request(
            sampling=parse(Sampling, sampling, "sampling"),
            max_bytes=max_bytes,
            stop=tuple(to_bytes(one) for one in strings),
            constraint=Utf8.behind(to_bytes(prompt)) if valid_utf8 else None,
            logprobs=logprobs,
        )
        fields = {"draft": draft, "alpha": alpha, "gamma": gamma, "steps": steps, "align_border": align_border or None}
        if isinstance(strategy, str):
            return request, strategy_of(strategy, **fields)
        if given := [name for name, value in fields.items() if value is not None]:
            raise ValueError(f"{given[0]} = {fields[given[0]]}: the strategy is given as a value; set the field there")
        return request, strategy

    def session(self, prompt: str | bytes = b"") -> Session:
        """The cached state behind BOS and `prompt`, for decoding of one's own."""
        session = Session.start(self._needed_model(), self.scorer, self._needed_rule())
        return session.extend(encode(prompt))

    def score(
        self,
        text: str | bytes,
        *,
        context: int | None = None,
        stride: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Score:
        """Bits per byte of `text`: windows of `context` bytes (default: the training row), each byte scored once."""
        return score(self.bundle, text, context=context, stride=stride, progress=progress)

    @torch.no_grad()
    def logits(self, ids: Int64[Tensor, " T"] | Sequence[int]) -> Float[Tensor, "T V"]:
        """Raw logits for the id after each of `ids` (BOS is the caller's to put in front), without any cache."""
        model, rule = self._needed_model(), self._needed_rule()
        row = torch.as_tensor(ids, dtype=torch.long, device=model.embed.bytes.weight.device)[None]
        if row.shape[1] == 0:
            raise ValueError("ids are empty; a row has at least BOS (id 1)")
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


def evaluate(
    model: str | Subject,
    tasks: str | Sequence[str | Task],
    *,
    data: str | Path | Sequence[str | Path] = (),
    limit: int | None = None,
    noise: str | Noise | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    context: int | None = None,
    strategy: str | None = None,
    allow_code_execution: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a model on benchmarks; `blt eval` in Python.

    model: as users name it (`token:DIR` is a Hugging Face token model), or a `Subject`. tasks: `hellaswag,cute:spell`,
    or a sequence of names and `Task` values. data: directories of the tasks' files; without, the hub's data sets.

    Raises ValueError for what is unknown, missing or malformed, before anything is asked.
    """
    if isinstance(model, str):
        model = open_subject(model, context=context, strategy=None if strategy is None else parse_strategy(strategy))
    elif context is not None or strategy is not None:
        raise ValueError("context and strategy are fields of the subject that is given; set them there")
    chosen: list[Task] = []
    for one in [tasks] if isinstance(tasks, str) else tasks:
        chosen += parse_tasks([one]) if isinstance(one, str) else [one]
    return run_evaluation(
        model,
        chosen,
        Place.of([data] if isinstance(data, str | Path) else data),
        settings=Settings(limit, parse_noise(noise) if isinstance(noise, str) else noise, seed=seed),
        out=None if out is None else Path(out),
        resume=resume,
        execute=allow_code_execution,
        progress=progress,
    )


def load(
    model: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu", verify: bool = False
) -> ByteLM:
    """`ByteLM.load`."""
    return ByteLM.load(model, dtype=dtype, device=device, verify=verify)
