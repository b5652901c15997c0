"""Verbs that look at a text: `patch`, `score`."""

from pathlib import Path
from typing import Annotated

import typer

from bltkit.cli.terminal import (
    Device,
    File,
    Json,
    Model,
    Text,
    Threads,
    print_json,
    print_rich,
    print_text,
    progress_bar,
    read_text,
    run_on,
)


def patch(
    text: Text = None,
    file: File = None,
    model: Model = "bltkit:tiny",
    rule: Annotated[str | None, typer.Option(help="KIND or KIND:FIELD=VALUE,... instead of the model's rule.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All schemes of the paper under one another.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also write a picture: F.png or F.html.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show how a text is cut into patches, with the entropy of every byte."""
    data = read_text(text, file)
    place = run_on(model, device, threads, "rows")
    from bltkit.api import ByteLM
    from bltkit.study.compare import compare_bundle
    from bltkit.study.pictures import write_picture
    from bltkit.study.terminal import render

    lm = ByteLM.load(model, device=place)
    lm = lm.with_patching(rule) if rule else lm
    shown = compare_bundle(data, lm.bundle) if compare else lm.patches(data)
    if plot:
        write_picture(shown, plot)
    if as_json:
        print_json(shown.to_json())
    else:
        print_rich(render(shown))


def score(
    text: Text = None,
    file: File = None,
    model: Model = "bltkit:tiny",
    context: Annotated[int | None, typer.Option(help="Bytes in a window; default: the model's training row.")] = None,
    stride: Annotated[int | None, typer.Option(help="Bytes between windows; default: half a window.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Bits per byte of a text under a model."""
    data = read_text(text, file)
    place = run_on(model, device, threads, "rows")
    from bltkit.api import ByteLM

    with progress_bar("scoring", "bytes") as progress:
        result = ByteLM.load(model, device=place).score(data, context=context, stride=stride, progress=progress)
    if as_json:
        print_json(result.to_json())
    else:
        patches = "" if result.mean_patch_bytes is None else f", {result.mean_patch_bytes:.2f} bytes per patch"
        print_text(f"{result.bits_per_byte:.4f} bits per byte over {result.num_bytes} bytes{patches}")
