"""Measurements of `blt bench`, from options to rows, and how rows are shown and stored."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bltkit.cli.terminal import print_json, print_text, read_file, say

if TYPE_CHECKING:
    from bltkit.bench import BenchRow, BenchSubject, ServingRow
    from bltkit.bench.weight_forms import WeightsRow

Source = tuple[str | None, str | None, str]
"""Preset and model, one of them or neither, and the device."""

SCORED_BYTES = 16_384
"""Of the benchmark text, where no file is given."""


def row_speeds(
    what: str,
    source: Source,
    contexts: Sequence[int],
    batches: Sequence[dict[str, int]],
    options: dict[str, Any],
) -> "Iterator[BenchRow]":
    """Measure `what` (prefill, train or patch): a row for each context and batch."""
    from bltkit import bench as benchmarks

    subject = _subject(source, [benchmarks.row(max(contexts))])
    for context in contexts:
        for batch in batches:
            yield getattr(benchmarks, what)(subject, context, **batch, **options)


def decoding_speeds(
    source: Source, contexts: Sequence[int], num_bytes: int | None, options: dict[str, Any]
) -> "Iterator[BenchRow]":
    """Measure decoding after each context."""
    from bltkit import bench as benchmarks

    size = benchmarks.NUM_BYTES if num_bytes is None else num_bytes
    rows = [benchmarks.decoding_rows(context, size) for context in contexts]
    return benchmarks.decode(_subject(source, rows), contexts, num_bytes=size, **options)


def continuation_speeds(
    source: Source,
    files: Sequence[Path],
    contexts: Sequence[int],
    strategies: Sequence[str],
    drafts: Sequence[str],
    options: dict[str, Any],
) -> "Iterator[BenchRow]":
    """Measure continuations of prompts out of files. Raises ValueError for an empty file."""
    from bltkit import bench as benchmarks

    several = benchmarks.strategies_of(strategies, _drafts(drafts))
    texts = [read_file(file) for file in files]
    for file, data in zip(files, texts, strict=True):
        if not data:
            raise ValueError(f"--file {file} is empty, there is nothing to continue; give a text")
    return benchmarks.generate(_subject(source, []), texts, contexts, strategies=several, **options)


def form_speeds(
    source: Source, files: Sequence[Path], batches: Sequence[int], options: dict[str, Any]
) -> "Iterator[WeightsRow]":
    """Measure each form of the weights, and score a text with it. Raises ValueError for an empty file."""
    from bltkit import bench as benchmarks
    from bltkit.checkpoint import Bundle, load_bundle, resolve_model
    from bltkit.eval.score import score

    texts = {file: read_file(file) for file in files}
    for file, data in texts.items():
        if not data:
            raise ValueError(f"--file {file} is empty, there is nothing to score; give a text, or leave --file out")
    text = b"".join(texts.values()) if texts else benchmarks.benchmark_text(SCORED_BYTES)
    subject = _subject(source, [benchmarks.row(SCORED_BYTES)])
    # Windows are as long as the model's training row, which its record says.
    record = {} if source[1] is None else load_bundle(resolve_model(source[1]), device="meta").record

    def bits_per_byte(model: Any, scorer: Any, data: bytes) -> float:
        return score(Bundle(model, scorer, subject.rule, record), data).bits_per_byte

    for batch in batches:
        yield from benchmarks.weights(subject, text, bits_per_byte, batch=batch, **options)


def server_speeds(
    source: Source, contexts: Sequence[int], forms: Sequence[str], options: dict[str, Any]
) -> "Iterator[ServingRow]":
    """Measure a server under load, for each context and form of the weights."""
    from bltkit import bench as benchmarks

    subject = _subject(source, [benchmarks.row(max(contexts))])
    for context in contexts:
        for form in forms:
            options |= {"context": context, "weights": form, "device": str(subject.device)}
            yield benchmarks.serving(subject, source[1], **options)


def report_speeds(
    measurements: "Iterable[BenchRow | WeightsRow | ServingRow]", out: Path | None, plot: Path | None, as_json: bool
) -> None:
    """Rows as they come: after an interruption the file holds what was measured."""
    from bltkit.bench import append_rows

    if out is not None:
        append_rows(out, [])  # a place that cannot be written to is found out first
    rows = []
    for row in measurements:
        rows.append(row)
        if out is not None:
            append_rows(out, [row])
        if not as_json:
            print_text(row.summary(), flush=True)
    if as_json:
        print_json(rows[0].to_json() if len(rows) == 1 else {"rows": [row.to_json() for row in rows]})
    if plot is not None:
        from bltkit.views.speed import write_speeds

        for place in write_speeds([row.to_json() for row in rows], plot):
            say(f"wrote {place}")


def set_options(**options: Any) -> dict[str, Any]:
    """Without those that are not: these have their defaults where they are used."""
    return {name: value for name, value in options.items() if value is not None}


def _subject(source: Source, rows: Sequence[Any]) -> "BenchSubject":
    """A preset is cut on the rows that are to be read."""
    from bltkit import bench as benchmarks
    from bltkit.checkpoint import load_bundle, resolve_model
    from bltkit.compute import device_of

    preset, model, device = source
    place = device_of(device, "--device")
    if place.type != "cpu":
        say(f"device: {place}")
    if model is not None:
        return benchmarks.subject_of(model, load_bundle(resolve_model(model), weights="fp32")).on(place)
    return benchmarks.preset_subject("69m" if preset is None else preset, *rows).on(place)


def repeat_limits(repeats: int | None, seconds: float | None) -> Any:
    """Limits of the runs of each side; None: the default."""
    from bltkit.bench import RepeatLimits

    return RepeatLimits(**set_options(repeats=repeats, seconds=seconds))


def _drafts(given: Sequence[str]) -> list[int | None]:
    for value in given:
        if value != "auto" and not (value.isdecimal() and int(value) > 0):
            raise ValueError(f"--draft {value}: a number of bytes from 1 on, or auto")
    return [None if value == "auto" else int(value) for value in given]
