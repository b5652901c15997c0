"""The verb `convert`: a checkpoint in another layout."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bltkit.cli.terminal import Json, progress_bar, show


class Layout(StrEnum):
    """What `blt convert` writes."""

    ours = "ours"
    hf = "hf"
    meta = "meta"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Folder of a checkpoint: one of Meta's as it was downloaded (params.json and consolidated.pth, or "
            "config.json with args and safetensors), Hugging Face's, or ours.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="Directory to write; it must not exist.")],
    to: Annotated[
        Layout,
        typer.Option(
            help="ours: Hugging Face's files and bltkit.json; hf: without bltkit.json; meta: the layout of Meta's that "
            "the checkpoint came from."
        ),
    ] = Layout.ours,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="Store the large matrices of the BLT in this form: bf16, fp16, fp32; for ours also int8 and int4.",
        ),
    ] = None,
    entropy: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the entropy model, where it is neither in SRC nor beside it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint between Meta's layouts, Hugging Face's and ours, in bounded memory: bit for bit, or with its
    large matrices in another form."""
    from bltkit.convert import convert as run

    with progress_bar("convert", "bytes") as progress:
        result = run(source, out, to=to.value, weights=weights, entropy=entropy, progress=progress)
    show(result, as_json)
