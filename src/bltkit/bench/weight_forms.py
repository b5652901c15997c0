"""What other forms of the weights gain and what they cost: the products of one byte, and bits per byte, beside fp32's.

Who measures bits per byte is handed in: the evaluation stands beside the benchmarks, not below them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bltkit.bench.bench_subject import PATCH_BYTES, BenchSubject
from bltkit.bench.record import commit, machine
from bltkit.bench.timing import MAX_REPEATS, Progress, check_batch, silent, threads_of
from bltkit.checkpoint import ScorerModule
from bltkit.generate.autotune import measure_forms
from bltkit.model import Blt
from bltkit.model.quantize import WeightForm, available_forms, reform, weight_bytes
from bltkit.vocab import encode

BitsPerByte = Callable[[Blt, ScorerModule, bytes], float]
"""(model, what places its patches, text) -> bits per byte of the text."""


@dataclass(frozen=True)
class WeightsRow:
    """One form of a model's weights, the entropy model's among them."""

    what: str
    preset: str
    """Preset or model."""
    form: WeightForm
    batch: int
    """Rows of every product."""
    threads: int
    microseconds_per_byte: float
    """All matrix products of one decoded byte; attention, norms and dispatch around them not counted."""
    speedup: float
    """fp32's time / this one's, measured in turn."""
    weight_gb: float
    """All weights in memory, tables included, in GB (1e9 bytes)."""
    text_bytes: int
    bits_per_byte: float
    moved_borders: float
    """Share of the borders in fp32 that the form, which rounds entropies, does not set in the same place."""
    added_bits_per_byte: float
    """What the form costs: more than in fp32 by so much. Rounded entropies place some patches elsewhere, too."""
    commit: str | None
    machine: Mapping[str, Any]
    command: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.what} {self.preset} in {self.form}: products {self.microseconds_per_byte:,.0f} us a byte "
            f"({self.speedup:.2f} x fp32), {self.weight_gb:.3f} GB, {self.bits_per_byte:.4f} bits per byte "
            f"({self.added_bits_per_byte:+.5f}), {self.moved_borders:.2%} of borders moved"
        )


def weights(
    subject: BenchSubject,
    text: bytes,
    bits_per_byte: BitsPerByte,
    *,
    forms: Sequence[WeightForm] | None = None,
    batch: int = 1,
    repeats: int = 9,
    threads: int | None = None,
    command: str = "",
    progress: Progress = silent,
) -> list[WeightsRow]:
    """A row for each form, fp32 first. forms: by default all that the device has kernels for.

    Raises ValueError for bad numbers and forms, and for a model that is not in fp32.
    """
    check_batch(batch)
    if not 1 <= repeats <= MAX_REPEATS:
        raise ValueError(f"repeats = {repeats} must be from 1 to {MAX_REPEATS:,}; by default it is 9")
    model, scorer = subject.model, subject.scorer
    asked = dict.fromkeys(("fp32", *(forms or available_forms(subject.device))))
    rows: list[WeightsRow] = []
    with threads_of(threads) as count:
        progress("products in all forms")
        patch_bytes = subject.rule.mean_patch_bytes or PATCH_BYTES
        times = measure_forms(model, scorer, tuple(asked), rows=batch, patch_bytes=patch_bytes, repeats=repeats)
        ids, borders = encode(text)[None].to(subject.device), None
        for form in times:
            formed, formed_scorer = reform(model, form), reform(scorer, form)
            found = bits_per_byte(formed, formed_scorer, text)
            starts = replace(subject, model=formed, scorer=formed_scorer).patches(ids).starts
            borders = starts if borders is None else borders
            row = WeightsRow(
                what="weights",
                preset=subject.name,
                form=form,
                batch=batch,
                threads=count,
                microseconds_per_byte=times[form],
                speedup=times["fp32"] / times[form],
                weight_gb=(weight_bytes(formed) + weight_bytes(formed_scorer)) / 1e9,
                text_bytes=len(text),
                bits_per_byte=found,
                moved_borders=float((borders & ~starts).sum() / borders.sum()),
                added_bits_per_byte=found - (rows[0].bits_per_byte if rows else found),
                commit=commit(),
                machine=machine(subject.device),
                command=command,
            )
            progress(row.summary())
            rows.append(row)
    return rows
