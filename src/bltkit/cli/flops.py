"""The verb `flops`: what models cost per byte of text, and what a training run would take."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bltkit.cli.terminal import Json, lists, print_json, print_text, say, show

if TYPE_CHECKING:
    from bltkit.cost.ledger import Ledger
    from bltkit.cost.planning.training_plan import PlannedRun

_OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*\s*=")
"""`section.key=value`; a shape `llama:width=...` has a colon in front of its first `=`, a path a dot or a slash."""


def flops(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET... [section.key=value...]",
            help="Training configs (TOML, whose values may be changed), MODELs, or token models: token:DIR, "
            "llama:3-8b or llama:width=...,layers=...,heads=...,vocab_size=...",
        ),
    ],
    patch_bytes: Annotated[
        float | None, typer.Option(help="Bytes per patch; default: the rule's or the model's, else 4.5.")
    ] = None,
    bytes_per_token: Annotated[float | None, typer.Option(help="Of token models; default: 4.4.")] = None,
    context: Annotated[int, typer.Option(help="Bytes in the row.")] = 8192,
    annotated: Annotated[
        bool | None,
        typer.Option(
            "--annotated/--online", help="Patches are stored, or found while training; default: as a config says."
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            callback=lists("strategies"),
            is_eager=True,
            help="Decode with it: speculative:draft=8, verified:draft=8, diffusion:alpha=0.7 ...; `list` shows them.",
        ),
    ] = None,
    accepted: Annotated[
        float | None, typer.Option(help="With --strategy: share of drafted bytes that are kept, 0 to 1.")
    ] = None,
    unmasking: Annotated[float | None, typer.Option(help="With --strategy: passes that fill a block, on average.")] = (
        None
    ),
    stats: Annotated[
        Path | None, typer.Option(help="With --strategy: passes of a real run, from `blt generate --json`.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Cost against patch size, and each module's share: F.png, F.svg or F.html.")
    ] = None,
    mesh: Annotated[str | None, typer.Option(help="Plan the config's run on NODESxDEVICES, such as 8x8.")] = None,
    device: Annotated[str, typer.Option(help="With --mesh: a100, h100, h200, b200 or cpu.")] = "h100",
    rate: Annotated[float | None, typer.Option(help="With --mesh: TFLOP/s achieved; default: 40 % of peak.")] = None,
    memory: Annotated[float | None, typer.Option(help="With --mesh: GB of a device; default: its own.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="With --mesh: GB/s of a device to other nodes.")] = None,
    as_json: Json = False,
) -> None:
    """Parameters, operations and bytes read per byte of text, by module; with --mesh a plan of the run."""
    from bltkit.cost.ledger import Decoding, SideBySide, ledger_of
    from bltkit.cost.ledger.target import is_token_model

    names = [one for at, one in enumerate(targets) if not at or not _OVERRIDE.match(one)]
    overrides = [one for at, one in enumerate(targets) if at and _OVERRIDE.match(one)]
    decoding = None
    if strategy is not None:
        decoding = Decoding(strategy, accepted, unmasking, stats)
    elif (accepted, unmasking, stats) != (None, None, None):
        raise ValueError("--accepted, --unmasking and --stats tell of a strategy's passes: add --strategy S")
    if mesh is None and (device, rate, memory, bandwidth) != ("h100", None, None, None):
        raise ValueError("--device, --rate, --memory and --bandwidth belong to a plan: add --mesh NODESxDEVICES")
    several = len(names) > 1
    if several and (overrides or mesh is not None or plot is not None):
        given = overrides[0] if overrides else "--mesh" if mesh is not None else "--plot"
        raise ValueError(f"{given} is for one model, but {len(names)} are named: {', '.join(names)}")
    ledgers = [
        ledger_of(
            name,
            # Side by side each model takes what is of its kind.
            None if several and is_token_model(name) else patch_bytes,
            context,
            overrides,
            bytes_per_token=None if several and not is_token_model(name) else bytes_per_token,
            annotated=None if several and is_token_model(name) else annotated,
            decoding=None if several and is_token_model(name) else decoding,
        )
        for name in names
    ]
    if several:
        show(SideBySide(tuple(names), tuple(ledgers)), as_json)
        return
    (target,), (ledger,) = names, ledgers
    if plot is not None:
        from bltkit.cost.ledger.drawing import write_costs

        write_costs(target, plot, context, overrides)
        say(f"wrote {plot}")
    if mesh is None:
        show(ledger, as_json)
        return
    from bltkit.cost.planning.planner import plan

    found = plan(
        _run_of(target, overrides, ledger),
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
        print_text(f"{ledger.summary()}\n\n{found.summary()}")


def _run_of(target: str, overrides: list[str], ledger: "Ledger") -> "PlannedRun":
    """What a plan needs of a training config. ledger: its own, which knows the size of patches."""
    from bltkit.config import load_toml, parse
    from bltkit.cost.ledger import scorer_named
    from bltkit.cost.planning.training_plan import PlannedRun
    from bltkit.data.sources import AnnotatedSource
    from bltkit.model import TokenConfig
    from bltkit.train import TrainConfig

    if not target.endswith(".toml"):
        raise ValueError(f"--mesh plans a training run, which {target} is not: name a training config (TOML)")
    config: TrainConfig = parse(TrainConfig, load_toml(target, overrides), target)
    if isinstance(config.model, TokenConfig):
        raise ValueError(f"--mesh plans runs of byte models, and {target} trains a token model; leave it out")
    patching, data, trainer = config.patching, config.data, config.trainer
    # Stored starts need no scorer; nor does a rule that reads no scores.
    stored = all(isinstance(source, AnnotatedSource) for source in data.sources)
    silent = patching.rule is not None and patching.rule.scores is None
    scorer = None
    if config.model.kind == "blt" and patching.model is not None and not (stored or silent):
        scorer = scorer_named(patching.model)[0]
    return PlannedRun(
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
        patch_bytes=ledger.patch_bytes,
        patch_bytes_source=ledger.patch_bytes_source,
    )
