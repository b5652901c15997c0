"""Verbs that look at a text: `patch`, `score`."""

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from bltkit.cli.terminal import (
    Device,
    DeviceMapOption,
    File,
    Json,
    Model,
    ScorerWeights,
    Text,
    Threads,
    Weights,
    lists,
    print_json,
    print_rich,
    print_text,
    progress_bar,
    read_text,
    run_on,
    say_placement,
)

LONG_BYTES = 2**17
"""A text that takes a while, during which a terminal shows that something happens."""
PIECE_BYTES = 2**16
"""Bytes of a file that are read at once where only lengths are counted."""


def patch(
    text: Text = None,
    file: File = None,
    model: Model = "bltkit:tiny",
    rule: Annotated[
        str | None,
        typer.Option(
            callback=lists("rules"),
            is_eager=True,
            help="KIND or KIND:FIELD=VALUE,... instead of the model's rule; `list` shows all.",
        ),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All schemes of the paper under one another.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Only count: a table and a histogram of patch lengths, of any long text.")
    ] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show all of a long text, not its beginning.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also write a picture: F.png, F.svg or F.html.")] = None,
    weights: Weights = None,
    scorer_weights: ScorerWeights = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show how a text is cut into patches, with the entropy of every byte."""
    if stats:
        if compare or plot or show_all:
            raise ValueError("--stats shows figures only: leave --compare, --plot and --all out")
        place = run_on(model, device, threads, "rows")
        loading = {"device": place, "weights": weights, "scorer_weights": scorer_weights}
        _count_lengths(text, file, model, rule, loading, as_json)
        return
    data = read_text(text, file)
    place = run_on(model, device, threads, "rows")
    from bltkit.api import ByteLM
    from bltkit.views.ansi import MAX_LINES, render
    from bltkit.views.compare import compare_bundle

    lm = ByteLM.load(model, device=place, weights=weights, scorer_weights=scorer_weights)
    lm = lm if rule is None else lm.with_patching(rule)
    with progress_bar("patching") if len(data) > LONG_BYTES else contextlib.nullcontext() as progress:
        if progress is not None:
            progress.stage(f"{len(data):,} bytes (--stats only counts)")
        shown = compare_bundle(data, lm.bundle) if compare else lm.patches(data)
    if plot:
        from bltkit.views.pictures import write_picture

        write_picture(shown, plot)
    if as_json:
        print_json(shown.to_json())
    else:
        print_rich(render(shown, None if show_all else MAX_LINES))


def _count_lengths(
    text: str | None, file: Path | None, model: str, rule: str | None, loading: dict[str, Any], as_json: bool
) -> None:
    """`blt patch --stats`: a file is read in pieces, so that its size does not matter."""
    from bltkit.api import ByteLM
    from bltkit.views.patch_lengths import lengths_of, measure_lengths

    with contextlib.ExitStack() as stack:
        if file is not None and text is None and file.is_file():
            opened = stack.enter_context(file.open("rb"))
            size = file.stat().st_size or None
            pieces: Iterable[bytes] = iter(lambda: opened.read(PIECE_BYTES), b"")
        else:
            data = read_text(text, file)
            size, pieces = len(data), [data]
        lm = ByteLM.load(model, **loading)
        lm = lm if rule is None else lm.with_patching(rule)
        if lm.rule is None:
            raise ValueError("this model has no patching rule; run `blt calibrate` on it, or give one (--rule)")
        if lm.rule.streams:
            progress = stack.enter_context(progress_bar("patching"))
            result = measure_lengths(pieces, lm.rule, lm.scorer, progress=lambda done: progress(done, size))
        else:
            result = lengths_of(lm.patches(b"".join(pieces)).lengths, lm.rule)
    if as_json:
        print_json(result.to_json())
    else:
        print_text(result.summary(unicode=(sys.stdout.encoding or "").lower().startswith("utf")))


def score(
    text: Text = None,
    file: File = None,
    model: Model = "bltkit:tiny",
    context: Annotated[int | None, typer.Option(help="Bytes in a window; default: the model's training row.")] = None,
    stride: Annotated[int | None, typer.Option(help="Bytes between windows; default: half a window.")] = None,
    weights: Weights = None,
    scorer_weights: ScorerWeights = None,
    device: Device = "auto",
    device_map: DeviceMapOption = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Bits per byte of a text under a model."""
    data = read_text(text, file)
    place = run_on(model, device, threads, "rows", device_map)
    from bltkit.api import ByteLM

    with progress_bar("scoring", "bytes") as progress:
        lm = ByteLM.load(model, device=place, device_map=device_map, weights=weights, scorer_weights=scorer_weights)
        say_placement(device_map, lm)
        result = lm.score(data, context=context, stride=stride, progress=progress)
    if as_json:
        print_json(result.to_json())
    else:
        patches = "" if result.mean_patch_bytes is None else f", {result.mean_patch_bytes:.2f} bytes per patch"
        print_text(f"{result.bits_per_byte:.4f} bits per byte over {result.num_bytes} bytes{patches}")
