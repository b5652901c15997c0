"""The study `efficiency`: measured time beside counted operations, for patches of several sizes and for tokens.

A unit is one preset, phase and context: all systems take their turn in every round, and so does the machine itself,
whose rates make the prediction. Without the extra `study` it measures; reports need pandas.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr

from bltkit.study.efficiency.phases import PHASES, Phase
from bltkit.study.study import Row, Study, StudyRun, Unit

if TYPE_CHECKING:
    import pandas as pd

    from bltkit.study.efficiency.predicted_cost import System
    from bltkit.study.efficiency.systems import Runner
    from bltkit.study.report import Section
    from bltkit.views.figures import Figure


class EfficiencyStudy(Study):
    """Operations, predicted and measured time of patches of several sizes and of tokens, in turn."""

    what: ClassVar[str] = "efficiency"
    title: ClassVar[str] = "Efficiency: operations, bytes and the clock"

    shapes: tuple[str, ...] = Field(
        ("69m",),
        min_length=1,
        description="A BLT's preset (repeatable).",
        json_schema_extra={"option": "--preset"},
    )
    patch_bytes: tuple[PositiveFloat, ...] = Field(
        (4.0, 6.0, 8.0), min_length=1, description="Bytes of every patch, exactly (repeatable)."
    )
    entropy: str | None = Field(
        None, description="Preset of an entropy model: each patch size is measured once more with it at work."
    )
    vocab_size: PositiveInt = Field(32_000, description="Vocabulary of the token model.")
    bytes_per_token: PositiveFloat = Field(4.4, description="Bytes of text that a token stands for.")
    contexts: tuple[PositiveInt, ...] = Field(
        (512, 2048),
        min_length=1,
        description="Bytes of a row, and before the decoded bytes (repeatable).",
        json_schema_extra={"option": "--context"},
    )
    phases: tuple[Phase, ...] = Field(
        PHASES,
        min_length=1,
        description="prefill, decode, train (repeatable).",
        json_schema_extra={"option": "--phase"},
    )
    num_bytes: PositiveInt = Field(
        48, description="Bytes decoded in a run: a multiple of the patch sizes, so that whole patches close."
    )
    repeats: PositiveInt = Field(5, description="Rounds.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    threads: PositiveInt = Field(1, description="Threads of the CPU.")

    _held: "tuple[tuple[System, ...], list[Runner]]" = PrivateAttr(((), []))
    """The systems measured last, and the same with their weights: units of a preset follow one another."""

    @classmethod
    def smoke(cls) -> Self:
        fields = {
            "shapes": ("tiny",),
            "vocab_size": 512,
            "contexts": (48,),
            "phases": ("prefill", "decode"),
            "num_bytes": 24,
            "repeats": 2,
            "device": "cpu",
        }
        return cls.model_validate(fields)

    def units(self) -> Sequence[Unit]:
        for shape in self.shapes:
            self.systems(shape)
        return [
            Unit(f"{shape}:{phase}:{context}")
            for shape in self.shapes
            # Training last: a learner's moments are held from then on.
            for phase in PHASES
            if phase in self.phases
            for context in self.contexts
        ]

    def unit_of(self, row: Row) -> str:
        return f"{row['preset']}:{row['phase']}:{row['context']}"

    def is_done(self, unit: Unit, rows: Sequence[Row]) -> bool:
        return {row["system"] for row in rows}.issuperset(
            system.name for system in self.systems(unit.name.partition(":")[0])
        )

    def prepare(self, run: StudyRun) -> None:
        conditions = self.conditions(run)
        for row in run.rows():
            for field, value in conditions.items():
                if row["conditions"].get(field) != value:
                    raise ValueError(
                        f"{run.out} has rows with {field} = {row['conditions'].get(field)}, now it is {value}; "
                        "choose another --out"
                    )

    def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
        from bltkit.study.efficiency.efficiency_timing import timed_rows
        from bltkit.study.efficiency.systems import runners_of

        shape, phase, context = unit.name.split(":")
        systems = self.systems(shape)
        if self._held[0] != systems:
            self._held = (), []  # the weights of one preset are freed before the next ones are made
            self._held = systems, runners_of(systems, self._device())
        asked: Any = phase
        rows = timed_rows(self._held[1], asked, int(context), self.num_bytes, self.repeats, run.progress)
        for row in rows:
            run.say(
                f"{phase} {shape} at {context}, {row['system']}: {row['bytes_per_second']:,.1f} bytes/s, "
                f"{row['measured_to_predicted']:.2f} times the predicted time"
            )
            yield {"preset": shape, **row, "conditions": self.conditions(run), "machine": self._machine()}

    def sections(self, frame: "pd.DataFrame") -> "Sequence[Section]":
        from bltkit.study.efficiency.efficiency_tables import sections

        return sections(frame)

    def figures(self, frame: "pd.DataFrame") -> "Mapping[str, Figure]":
        from bltkit.study.efficiency.efficiency_tables import figure

        return {"efficiency": figure(frame)}

    def summary(self, frame: "pd.DataFrame") -> Mapping[str, Any]:
        from bltkit.study.efficiency.efficiency_tables import fits_of

        return {"fits": fits_of(frame).drop(columns="residuals").to_dict("records")}

    def systems(self, shape: str) -> "tuple[System, ...]":
        """The systems that are compared with one another. Raises ValueError for an unknown preset, and bad sizes."""
        from bltkit.model import blt_preset, entropy_preset
        from bltkit.study.efficiency.predicted_cost import systems_of

        sizes = tuple(dict.fromkeys(self.patch_bytes))
        config = blt_preset(shape)
        bad_size = next((size for size in sizes if not 1 <= size <= self.num_bytes), None)
        if bad_size is not None:
            raise ValueError(
                f"patch_bytes = {bad_size:g} must lie between 1 and num_bytes = {self.num_bytes}, so that patches close"
            )
        if not 1 <= self.bytes_per_token <= min(self.contexts):
            raise ValueError(f"bytes_per_token = {self.bytes_per_token:g} must lie between 1 and the shortest context")
        if min(self.contexts) < max(sizes):
            raise ValueError(f"contexts: {min(self.contexts)} bytes hold no patch of {max(sizes):g}; give longer ones")
        scorer = None if self.entropy is None else entropy_preset(self.entropy)
        return systems_of(config, sizes, self.vocab_size, self.bytes_per_token, scorer, self.entropy or "")

    def conditions(self, run: StudyRun) -> dict[str, Any]:
        """Conditions that all rows of a directory share."""
        from bltkit.study.efficiency.predicted_cost import ELEMENT

        machine = self._machine()
        return {
            "num_bytes": self.num_bytes,
            "threads": run.stamp["threads"],
            "machine": machine.get("gpu", machine.get("cpu")),
            "element_bytes": ELEMENT,
        }

    def _device(self) -> Any:
        from bltkit.compute import device_of

        return device_of(self.device, "--device")

    def _machine(self) -> dict[str, Any]:
        from bltkit.bench.record import machine

        return machine(self._device())
