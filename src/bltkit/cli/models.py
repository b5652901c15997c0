"""Verbs that make a model or look at one: `train`, `check`, `flops`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bltkit.cli.terminal import Json, print_json, say, show

if TYPE_CHECKING:
    from bltkit.study.plan import Run


def train(
    config: Annotated[Path, typer.Argument(help="TOML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run; default: runs/out/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train an entropy, boundary or token model or a BLT; `torchrun -m bltkit train ...` trains on many processes."""
    from bltkit.config import load_toml, parse
    from bltkit.train import TrainConfig
    from bltkit.train import train as run
    from bltkit.train.parallel import is_main

    parsed: TrainConfig = parse(TrainConfig, load_toml(config, overrides or []), str(config))
    result = run(parsed, out or Path("runs/out") / config.stem, resume=resume, say=say)
    if as_json and is_main():
        print_json(asdict(result))
    elif is_main():
        bits = f"{result.bits_per_byte:.4f} bits per byte"
        print(f"{result.out}: step {result.steps}, {bits}, {result.bytes_seen} bytes seen")
    if result.interrupted:
        raise typer.Exit(130)


def check(
    model: Annotated[str, typer.Argument(help="Checkpoint directory, bltkit:NAME or hf:OWNER/NAME.")],
    files: Annotated[list[str] | None, typer.Option(help="Texts to check with; default: the standard library.")] = None,
    as_json: Json = False,
) -> None:
    """Look for the known failures of a BLT; each with cause and remedy."""
    from bltkit.checkpoint import load_bundle, resolve_model
    from bltkit.data import read_documents
    from bltkit.eval.health import check as look

    documents = [document.data for document in read_documents(files)] if files else None
    with Console(stderr=True).status("loading") as status:
        report = look(load_bundle(resolve_model(model)), documents, progress=status.update)
    show(report, as_json)
    if not report.healthy:
        raise typer.Exit(1)


def flops(
    target: Annotated[str, typer.Argument(help="A training config (TOML) or a MODEL.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ..., for a config")] = None,
    patch_bytes: Annotated[float | None, typer.Option(help="Bytes per patch; default: the model's, else 4.5.")] = None,
    context: Annotated[int, typer.Option(help="Bytes in the row.")] = 8192,
    mesh: Annotated[str | None, typer.Option(help="Plan the config's run on NODESxDEVICES, such as 8x8.")] = None,
    device: Annotated[str, typer.Option(help="With --mesh: a100, h100, h200, b200 or cpu.")] = "h100",
    rate: Annotated[float | None, typer.Option(help="With --mesh: TFLOP/s achieved; default: 40 % of peak.")] = None,
    memory: Annotated[float | None, typer.Option(help="With --mesh: GB of a device; default: its own.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="With --mesh: GB/s of a device to other nodes.")] = None,
    as_json: Json = False,
) -> None:
    """Parameters and operations per byte, by module; with --mesh also memory, traffic and time of the run."""
    from bltkit.study.flops import ledger_of

    ledger = ledger_of(target, patch_bytes, context, overrides or [])
    if mesh is None:
        if (device, rate, memory, bandwidth) != ("h100", None, None, None):
            raise ValueError("--device, --rate, --memory and --bandwidth belong to a plan: add --mesh NODESxDEVICES")
        show(ledger, as_json)
        return
    from bltkit.study.planner import plan

    found = plan(
        _run_of(target, overrides or []),
        mesh,
        device=device,
        rate=rate,
        memory=memory,
        bandwidth=bandwidth,
        patch_bytes=patch_bytes,
    )
    if as_json:
        print_json(ledger.to_json() | {"plan": found.to_json()})
    else:
        print(ledger.summary(), found.summary(), sep="\n\n")


def _run_of(target: str, overrides: list[str]) -> "Run":
    """What a plan needs of a training config."""
    from bltkit.config import load_toml, parse
    from bltkit.model import TokenConfig
    from bltkit.study.flops import scorer_named
    from bltkit.study.plan import Run
    from bltkit.train import TrainConfig

    if not target.endswith(".toml"):
        raise ValueError(f"--mesh plans a training run, which {target} is not: name a training config (TOML)")
    config: TrainConfig = parse(TrainConfig, load_toml(target, overrides), target)
    if isinstance(config.model, TokenConfig):
        raise ValueError(f"--mesh plans runs of byte models, and {target} trains a token model; leave it out")
    patching, data, trainer = config.patching, config.data, config.trainer
    # Stored starts need no scorer; nor does a rule that reads no scores.
    stored = all(source.kind == "annotated" for source in data.sources)
    silent = patching.rule is not None and patching.rule.scores is None
    scorer = None
    if config.model.kind == "blt" and patching.model is not None and not (stored or silent):
        scorer = scorer_named(patching.model)[0]
    return Run(
        model=config.model,
        max_steps=trainer.max_steps,
        row_bytes=data.row_bytes,
        batch_rows=data.batch_rows,
        accumulate=trainer.accumulate,
        row_patches=data.row_patches,
        shard=trainer.shard,
        recompute=trainer.checkpoint_activations,
        precision=trainer.precision,
        scorer=scorer,
    )
