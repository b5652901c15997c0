"""The study `fast-decoding`: what drafting, verification and block diffusion gain in seconds, and what they cost.

For every model, text and temperature all settings continue the same prompts. A turn is kept in turns.jsonl as soon as
it is over, and an interrupted unit resumes after the last one; its rows follow from the turns (`decoding_rows.py`), one
for each setting.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, NonNegativeFloat, PositiveInt

from bltkit.study.fast_decoding.decoding_settings import AR, Setting, setting_of, settings_of
from bltkit.study.store import refuse_other_settings
from bltkit.study.study import Row, Study, StudyRun, Unit

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from bltkit.generate import Request
    from bltkit.study.fast_decoding.decoding_turns import DecodingSubject
    from bltkit.study.fast_decoding.passages import Passages
    from bltkit.study.report import Section

TURNS = "turns.jsonl"
HELDOUT = "heldout"
"""Last part of the name of a unit that scores a text's own continuations."""
WARM_UP = 16
"""Bytes of each setting's first generation in a unit, which is slow and not counted."""


class FastDecodingStudy(Study):
    """Speed, passes, gigabytes and quality of all ways of decoding, of models trained alike."""

    what: ClassVar[str] = "fast-decoding"
    title: ClassVar[str] = "Fast decoding"

    models: dict[str, str] = Field(
        min_length=1,
        description="Models that are compared, each under a name (repeatable).",
        examples=["plain=bltkit:tiny"],
        json_schema_extra={"option": "--model", "metavar": "NAME=MODEL"},
    )
    texts: dict[str, str] = Field(
        min_length=1,
        description="Files or folders, each under a name (repeatable); one whose name begins with code is Python.",
        examples=["prose=book.txt"],
        json_schema_extra={"option": "--text", "metavar": "NAME=FILE"},
    )
    prompts: PositiveInt = Field(default=32, description="Prompts from each text, evenly spread.")
    prompt_bytes: PositiveInt = Field(default=200, description="Bytes of a prompt.")
    max_bytes: PositiveInt = Field(default=256, description="Maximum number of bytes of a continuation.")
    temperatures: tuple[NonNegativeFloat, ...] = Field(
        default=(0.0, 0.8),
        min_length=1,
        description="0 is greedy (repeatable).",
        json_schema_extra={"option": "--temperature"},
    )
    seed: int = Field(default=0, description="Seed of the prompts and their continuations.")
    seeds: PositiveInt = Field(default=1, description="Sampled continuations of each prompt.")
    grid: str = Field(default="small", description="Settings: small, full, or ar alone.")
    settings: tuple[str, ...] = Field(
        default=(),
        description="A further setting, such as diffusion:alpha=0.6 (repeatable); `list` shows them.",
        json_schema_extra={"option": "--setting", "lists": "strategies"},
    )
    heldout_bytes: PositiveInt = Field(default=65_536, description="Bytes of each text's own continuations, to score.")

    @classmethod
    def smoke(cls) -> Self:
        """See `Study`: three settings of the package's model for blocks, on the standard library."""
        return cls(
            models={"tiny-d": "bltkit:tiny-d"},
            texts={"code": "stdlib"},
            prompts=2,
            prompt_bytes=100,
            max_bytes=16,
            temperatures=(0.8,),
            grid=AR,
            settings=("speculative:draft=8", "diffusion:steps=1"),
            heldout_bytes=500,
        )

    @cached_property
    def decoding_settings(self) -> tuple[Setting, ...]:
        """All settings of the plan, `ar` first."""
        return settings_of(self.grid, self.settings)

    @cached_property
    def subjects(self) -> "Mapping[str, DecodingSubject]":
        """The loaded models, by name."""
        from bltkit.study.fast_decoding.decoding_turns import load_subject

        return {name: load_subject(name, source, self.decoding_settings) for name, source in self.models.items()}

    @cached_property
    def passages(self) -> "Mapping[str, Passages]":
        """Prompts of each text, by name."""
        from bltkit.study.fast_decoding.passages import passages_of, read_text

        return {
            name: passages_of(
                name,
                read_text(name, source),
                self.prompts,
                prompt_bytes=self.prompt_bytes,
                room=self.max_bytes,
                rest_bytes=max(1, self.heldout_bytes // self.prompts),
                seed=self.seed,
            )
            for name, source in self.texts.items()
        }

    def units(self) -> Sequence[Unit]:
        """See `Study`: for each model and text its own continuations, then each temperature."""
        settings = {f"conditions.{name}": value for name, value in self._sizes.items()}
        return [Unit(name, settings=settings) for name in self._places]

    def prepare(self, run: StudyRun) -> None:
        """See `Study`. Raises ValueError for what cannot be loaded, for texts without enough prompts, for a setting
        that suits no model, and where `out` holds rows of the same names that were measured otherwise.
        """
        passages, subjects, total = self.passages, self.subjects, len(self.decoding_settings)
        for subject in subjects.values():
            if subject.left_out:
                why, count = next(iter(subject.left_out.values())), len(subject.left_out)
                run.say(f"model {subject.name!r} goes without {count} of {total} settings ({why})")
        for name in (setting_of(setting).name for setting in self.settings):
            faults = [subject.left_out.get(name) for subject in subjects.values()]
            if all(faults):
                raise ValueError(f"setting {name!r} suits none of the models: {faults[0]}")
        for row in run.rows():
            if row["model"] in subjects and row["text"] in passages:
                conditions = self._conditions(row["model"], row["text"], run)
                measured = {f"conditions.{name}": conditions[name] for name in ("threads", "weights", "passages")}
                refuse_other_settings([row], measured, run.out, f"model {row['model']!r} on text {row['text']!r}")

    def unit_of(self, row: Row) -> str:
        """See `Study`."""
        part = HELDOUT if row["kind"] == "heldout" else f"{row['temperature']:g}"
        return f"{row['model']}:{row['text']}:{part}"

    def is_done(self, unit: Unit, rows: Sequence[Row]) -> bool:
        """See `Study`: every setting that suits the model has its row."""
        model, _, temperature = self._places[unit.name]
        return bool(rows) if temperature is None else bool(rows) and not self._missing(unit, self.subjects[model], rows)

    def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
        """See `Study`: `ar` is measured beside every setting that has no row yet, and keeps the row that it has."""
        from bltkit.study.fast_decoding.decoding_rows import setting_rows

        model, text_name, temperature = self._places[unit.name]
        subject, text = self.subjects[model], self.passages[text_name]
        names = {"text": text_name, **subject.about, "conditions": self._conditions(model, text_name, run)}
        if temperature is None:
            row = subject.heldout(text)
            if row is not None:
                yield {"kind": "heldout"} | row | names
            return
        missing = self._missing(unit, subject, run.rows())
        turns = self._turns(unit, [s for s in subject.settings if s.name == AR or s in missing], run)
        for row in setting_rows(text, turns, missing):
            yield {"kind": "setting", "temperature": temperature} | row | names

    def sections(self, frame: "pd.DataFrame") -> "Sequence[Section]":
        """See `Study`."""
        from bltkit.study.fast_decoding.fast_decoding_report import sections

        return sections(frame)

    def figures(self, frame: "pd.DataFrame") -> "Mapping[str, Figure]":
        """See `Study`."""
        from bltkit.study.fast_decoding.fast_decoding_report import figures

        return figures(frame)

    @property
    def _places(self) -> Mapping[str, tuple[str, str, float | None]]:
        """Model, text and temperature of each unit, by its name; None for the text's own continuations."""
        return {
            f"{model}:{text}:{HELDOUT if temperature is None else f'{temperature:g}'}": (model, text, temperature)
            for model in self.models
            for text in self.texts
            for temperature in (None, *self.temperatures)
        }

    @property
    def _sizes(self) -> Row:
        """Fields of the plan that all rows of a model and text share."""
        return self.model_dump(include={"prompts", "prompt_bytes", "max_bytes", "seed", "seeds", "heldout_bytes"})

    def _missing(self, unit: Unit, subject: "DecodingSubject", rows: Sequence[Row]) -> list[Setting]:
        measured = {row["setting"] for row in rows if self.unit_of(row) == unit.name}
        return [setting for setting in subject.settings if setting.name not in measured]

    def _turns(self, unit: Unit, settings: Sequence[Setting], run: StudyRun) -> list[Row]:
        """Every turn of a unit; those that `turns.jsonl` does not hold are taken, and each is kept there."""
        from bltkit.files.json_lines import append_lines, read_lines

        model, text, temperature = self._places[unit.name]
        assert temperature is not None
        subject, passages = self.subjects[model], self.passages[text].passages
        key = {"model": model, "text": text, "temperature": temperature}
        key["conditions"] = self._conditions(model, text, run)
        names = [setting.name for setting in settings]
        turns = {
            (line["prompt"], line["seed"]): line
            for line in read_lines(run.out / TURNS)
            if key.items() <= line.items() and set(names) <= line["made"].keys()
        }
        # Greedy continuations are all the same, so there is one of each prompt.
        seeds = range(self.seed, self.seed + self.prompts * (self.seeds if temperature > 0 else 1))
        wanted = [((seed - self.seed) % self.prompts, seed) for seed in seeds]
        warm = False
        for number, (prompt, seed) in enumerate(wanted):
            if (prompt, seed) not in turns:
                if not warm:
                    subject.turn(passages[prompt].prompt, settings, self._request(temperature, seed, WARM_UP))
                    warm = True
                order = [settings[(number + step) % len(settings)] for step in range(len(settings))]
                made = subject.turn(passages[prompt].prompt, order, self._request(temperature, seed, self.max_bytes))
                turns[prompt, seed] = key | {"settings": names, "prompt": prompt, "seed": seed, "made": made}
                append_lines(run.out / TURNS, [turns[prompt, seed]])
            run.progress((number + 1) / len(wanted))
        return [turns[place] for place in wanted]

    def _request(self, temperature: float, seed: int, max_bytes: int) -> "Request":
        from bltkit.generate import Request, Sampling

        return Request(Sampling(temperature=temperature, seed=seed), min(self.max_bytes, max_bytes))

    def _conditions(self, model: str, text: str, run: StudyRun) -> Row:
        """Values that must be the same in all rows of a model and text."""
        measured = {"weights": self.subjects[model].weights, "passages": self.passages[text].digest}
        return self._sizes | {"threads": run.stamp["threads"]} | measured
