"""The study `fast-decoding`: what block diffusion, drafting and verification gain in seconds, and what they cost.

For every model, text and temperature all ways of decoding continue the same prompts, in turn prompt by prompt and in
an order that rotates, so that a machine that changes its pace does so for all of them. A turn is kept in turns.jsonl as
soon as it is over, and a study that was broken off goes on behind the last one; rows.jsonl has what follows from
the turns (`decoding_rows.py`), one row for each way of decoding.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt

from bltkit.bench import repeated_share
from bltkit.checkpoint import Bundle, load_bundle, resolve_model, scorer_hash
from bltkit.config import Config
from bltkit.eval.score import byte_scores, window_shape
from bltkit.files.json_lines import append_lines, read_lines
from bltkit.generate import Request, Sampling, SequenceBatch, Session, Stats
from bltkit.study.fast_decoding.decoding_rows import MadeText, Turn, TurnGroup, heldout_row, setting_rows
from bltkit.study.fast_decoding.decoding_settings import AR, Setting, setting_of, settings_of
from bltkit.study.fast_decoding.passages import Passages, passages_of, read_text
from bltkit.study.fast_decoding.quality import nats_of
from bltkit.study.row_file import ROWS
from bltkit.vocab import encode

TURNS = "turns.jsonl"
WARM_UP = 16
"""Bytes of each way's first generation in a group, which is slow and not counted."""

Row = dict[str, Any]


class FastDecodingPlan(Config):
    """What is measured of each model and text."""

    prompts: PositiveInt = 32
    prompt_bytes: PositiveInt = 200
    max_bytes: PositiveInt = 256
    """Of a continuation; EOS may come before."""
    temperatures: tuple[NonNegativeFloat, ...] = Field(default=(0.0, 0.8), min_length=1)
    seed: int = 0
    """Of the choice of prompts; continuation s of prompt i has seed `seed` + s * prompts + i."""
    seeds: PositiveInt = 1
    """Continuations of each prompt. Greedy ones are all the same, so there is one."""
    grid: str = "small"
    settings: tuple[str, ...] = ()
    """Further ones, such as `diffusion:alpha=0.6`."""
    heldout_bytes: PositiveInt = 65_536
    """Of each text, the prompts' own continuations: how well the model predicts them."""

    @property
    def rest_bytes(self) -> int:
        """Of a prompt's own continuation."""
        return max(1, self.heldout_bytes // self.prompts)


@dataclass(frozen=True)
class _Subject:
    """A model that is studied."""

    name: str
    source: str
    bundle: Bundle
    settings: tuple[Setting, ...]
    left_out: Mapping[str, str]
    """Settings that are not for it, and why."""
    weights: str
    """Hash of all weights, the scorer's too."""

    @property
    def about(self) -> dict[str, Any]:
        """What a row says of it."""
        assert self.bundle.model is not None
        config, record = self.bundle.model.config, self.bundle.record
        trained = record.get("config", {})
        return {
            "model": self.name,
            "source": self.source,
            "block": config.diffusion_block,
            "decoder_input": config.decoder_input,
            "objective": trained.get("objective"),
            "steps": record.get("steps"),
            "bytes_seen": record.get("bytes_seen"),
            "weights": self.weights,
        }

    def session(self, prompt: bytes) -> Session:
        """Behind BOS and a prompt."""
        model, rule = self.bundle.model, self.bundle.rule
        assert model is not None and rule is not None
        return Session.start(model, self.bundle.scorer, rule).extend(encode(prompt))


def run(
    plan: FastDecodingPlan,
    models: Mapping[str, str],
    texts: Mapping[str, str],
    out: Path,
    circumstances: Mapping[str, Any],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measure what `out` does not hold yet; returns all of its rows.

    models, texts: name -> where it is (a MODEL; a data source or folder).
    circumstances: commit, machine, threads and command, kept in each row.

    Raises ValueError for what cannot be loaded, texts without enough prompts, an unknown grid or setting, and where
    `out` holds rows of the same names that were measured otherwise.
    """
    settings = settings_of(plan.grid, plan.settings)
    passages = [_passages(plan, name, source) for name, source in texts.items()]
    subjects = [_subject(name, source, settings) for name, source in models.items()]
    for subject in subjects:
        if subject.left_out:
            why, count = next(iter(subject.left_out.values())), len(subject.left_out)
            say(f"model {subject.name!r} goes without {count} of {len(settings)} settings ({why})")
    for name in map(_name_of, plan.settings):
        if all(name in subject.left_out for subject in subjects):
            raise ValueError(f"setting {name!r} suits none of the models: {subjects[0].left_out[name]}")
    out.mkdir(parents=True, exist_ok=True)
    study = _FastDecodingStudy(plan, out, circumstances)
    work = [
        _Part(subject, text, temperature)
        for subject in subjects
        for text in passages
        for temperature in dict.fromkeys(plan.temperatures)
    ]
    for part in work:
        study.check(part)
    total = sum(study.num_turns(part) for part in work)
    done = 0
    progress(done, total)
    for part in work:
        study.score_heldout(part)
        for _ in study.measure(part):
            done += 1
            progress(done, total)
    return read_lines(out / ROWS)


@dataclass(frozen=True)
class _Part:
    """One model on one text at one temperature: what is measured side by side."""

    subject: _Subject
    text: Passages
    temperature: float

    @property
    def names(self) -> dict[str, Any]:
        """What its rows share."""
        return {"model": self.subject.name, "text": self.text.name, "temperature": self.temperature}


class _FastDecodingStudy:
    """What a directory holds, and what comes to it."""

    def __init__(self, plan: FastDecodingPlan, out: Path, circumstances: Mapping[str, Any]) -> None:
        self.plan, self.out, self.circumstances = plan, out, circumstances
        self.rows = read_lines(out / ROWS)

    def check(self, part: _Part) -> None:
        """Raises ValueError where rows of these names are there that were measured otherwise."""
        now = self._conditions(part)
        for row in self.rows:
            if (row["model"], row["text"]) != (part.subject.name, part.text.name):
                continue
            for field, value in now.items():
                if row["conditions"].get(field) != value:
                    raise ValueError(
                        f"{self.out / ROWS} has rows of model {row['model']!r} on text {row['text']!r} with {field} = "
                        f"{row['conditions'].get(field)}, now it is {value}; choose another --out, or other names"
                    )

    def num_turns(self, part: _Part) -> int:
        """Turns of a part that are still to be made, or to be counted."""
        return len(self._turns(part)) if self._missing(part) else 0

    def score_heldout(self, part: _Part) -> None:
        """Unless it is there: how well the model predicts what the text itself says behind the prompts."""
        known = [row for row in self.rows if row["kind"] == "heldout"]
        if any((row["model"], row["text"]) == (part.subject.name, part.text.name) for row in known):
            return
        passages = [passage for passage in part.text.passages if passage.rest]
        if passages:
            bundle = part.subject.bundle
            shape = window_shape(bundle.record, None, None)
            nats = [
                sum(byte_scores(bundle, passage.prompt + passage.rest, *shape).nats.tolist()[len(passage.prompt) :])
                for passage in passages
            ]
            names = {"what": "fast-decoding", "kind": "heldout", "model": part.subject.name, "text": part.text.name}
            self._add([names | heldout_row(nats, [len(one.rest) for one in passages]) | self._stamp(part)])

    def measure(self, part: _Part) -> Iterator[None]:
        """Every missing setting of a part, `ar` beside them; yields after each turn."""
        missing = self._missing(part)
        if not missing:
            return
        sides = [setting for setting in part.subject.settings if setting.name == AR or setting in missing]
        turns = self._kept(part, sides)
        warm = False
        for number, (prompt, seed) in enumerate(self._turns(part)):
            if (prompt, seed) not in turns:
                if not warm:
                    self._turn(part, sides, prompt, self._request(part, seed, WARM_UP))
                    warm = True
                order = [sides[(number + step) % len(sides)] for step in range(len(sides))]
                turn = self._turn(part, order, prompt, self._request(part, seed))
                line = self._key(part, sides) | {"prompt": prompt, "seed": seed} | turn.to_json()
                append_lines(self.out / TURNS, [line])
                turns[prompt, seed] = turn
            yield
        group = TurnGroup(part.text, [turns[key] for key in self._turns(part)], [key[0] for key in self._turns(part)])
        made = setting_rows(group, missing, repeated_share)
        common = {"what": "fast-decoding", "kind": "setting", **part.names}
        self._add([common | row | self._stamp(part) for row in made])

    def _turn(self, part: _Part, order: Sequence[Setting], prompt: int, request: Request) -> Turn:
        """All settings continue one prompt, which is read once and not timed."""
        session = part.subject.session(part.text.passages[prompt].prompt)
        made = {}
        for setting in order:
            data, stats, rounds = _continue(session.fork(), setting, request)
            made[setting.name] = MadeText.of(data, stats, rounds, nats_of(session, data))
        return Turn(made)

    def _request(self, part: _Part, seed: int, at_most: int | None = None) -> Request:
        max_bytes = min(self.plan.max_bytes, at_most or self.plan.max_bytes)
        return Request(Sampling(temperature=part.temperature, seed=seed), max_bytes)

    def _turns(self, part: _Part) -> list[tuple[int, int]]:
        """Prompt and seed of each; greedy decoding needs no second seed."""
        times = self.plan.seeds if part.temperature > 0 else 1
        count, first = self.plan.prompts, self.plan.seed
        return [(prompt, first + time * count + prompt) for time in range(times) for prompt in range(count)]

    def _missing(self, part: _Part) -> list[Setting]:
        known = {row["setting"] for row in self.rows if row["kind"] == "setting" and part.names.items() <= row.items()}
        return [setting for setting in part.subject.settings if setting.name not in known]

    def _kept(self, part: _Part, sides: Sequence[Setting]) -> dict[tuple[int, int], Turn]:
        """Turns of the same sides that a study before this one made."""
        key = self._key(part, sides)
        lines = [line for line in read_lines(self.out / TURNS) if key.items() <= line.items()]
        return {(line["prompt"], line["seed"]): Turn.of_json(line) for line in lines}

    def _key(self, part: _Part, sides: Sequence[Setting]) -> dict[str, Any]:
        return part.names | {"settings": [side.name for side in sides], "conditions": self._conditions(part)}

    def _conditions(self, part: _Part) -> dict[str, Any]:
        """What must be the same in all rows of a model and text."""
        plan = self.plan
        return {
            "prompts": plan.prompts,
            "prompt_bytes": plan.prompt_bytes,
            "max_bytes": plan.max_bytes,
            "seed": plan.seed,
            "seeds": plan.seeds,
            "threads": self.circumstances["threads"],
            "heldout_bytes": plan.heldout_bytes,
            "weights": part.subject.weights,
            "passages": part.text.digest,
        }

    def _stamp(self, part: _Part) -> dict[str, Any]:
        return {**part.subject.about, "conditions": self._conditions(part), **self.circumstances}

    def _add(self, rows: Sequence[Row]) -> None:
        append_lines(self.out / ROWS, rows)
        self.rows += rows


def _continue(session: Session, setting: Setting, request: Request) -> tuple[bytes, Stats, int]:
    """What one way of decoding makes, what it cost, and its rounds (the first choice is none)."""
    batch, data, rounds = SequenceBatch().admit(session, [replace(request, strategy=setting.strategy)]), b"", -1
    stats: Stats | None = None
    while batch.rows:
        batch, chunks = batch.step()
        rounds += 1
        for _, chunk in chunks:
            data, stats = data + chunk.data, chunk.stats
    assert stats is not None
    return data, stats, rounds


def _name_of(setting: str) -> str:
    return setting_of(setting).name


def _passages(plan: FastDecodingPlan, name: str, source: str) -> Passages:
    return passages_of(
        name,
        read_text(name, source),
        plan.prompts,
        prompt_bytes=plan.prompt_bytes,
        room=plan.max_bytes,
        rest_bytes=plan.rest_bytes,
        seed=plan.seed,
    )


def _subject(name: str, source: str, settings: Sequence[Setting]) -> _Subject:
    bundle = load_bundle(resolve_model(source))
    if bundle.model is None or bundle.rule is None:
        raise ValueError(f"model {name!r} ({source}) holds no BLT with a patching rule; name a BLT's checkpoint")
    bundle.model.eval()
    faults = {setting.name: setting.fault(bundle.model) for setting in settings}
    own = tuple(setting for setting in settings if faults[setting.name] is None)
    left_out = {setting: fault for setting, fault in faults.items() if fault is not None}
    return _Subject(name, source, bundle, own, left_out, _hash(bundle))


@torch.no_grad()
def _hash(bundle: Bundle) -> str:
    assert bundle.model is not None
    state = hashlib.sha256(f"{bundle.model.config.model_dump_json(exclude_defaults=True)}{bundle.rule}".encode())
    if bundle.scorer is not None:
        state.update(scorer_hash(bundle.scorer).encode())
    for name, weight in sorted(bundle.model.state_dict().items()):
        state.update(name.encode())
        state.update(memoryview(weight.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B"))
    return state.hexdigest()[:16]
