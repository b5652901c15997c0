"""The command `blt`: verbs to functions, no logic. Text on stdout, progress and messages on stderr.

Exit status 0 on success, 2 on a user's mistake (one line), 1 on anything else. torch is imported by the verbs that
need it, so that `blt --help` is quick.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Text = Annotated[str | None, typer.Argument(help="The text; `-` reads bytes from stdin.")]
File = Annotated[Path | None, typer.Option("--file", help="Read the text's bytes from this file.")]
Model = Annotated[str, typer.Option(help="Checkpoint directory, bltkit:NAME or hf:OWNER/NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def patch(
    text: Text = None,
    file: File = None,
    model: Model = "bltkit:tiny",
    rule: Annotated[str | None, typer.Option(help="KIND or KIND:FIELD=VALUE,... instead of the model's rule.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All schemes of the paper under one another.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also write a picture: F.png or F.html.")] = None,
    as_json: Json = False,
) -> None:
    """Show how a text is cut into patches, with the entropy of every byte."""
    from bltkit.api import ByteLM
    from bltkit.study.compare import compare_bundle
    from bltkit.study.pictures import write_picture
    from bltkit.study.terminal import render

    data = _read(text, file)
    lm = ByteLM.load(model)
    lm = lm.with_patching(rule) if rule else lm
    shown = compare_bundle(data, lm.bundle) if compare else lm.patches(data)
    if plot:
        write_picture(shown, plot)
    if as_json:
        _print_json(shown.to_json())
    else:
        Console().print(render(shown))


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; `-` reads bytes from stdin.")] = None,
    file: File = None,
    model: Model = "bltkit:tiny",
    max_bytes: Annotated[int, typer.Option(help="At most so many bytes.")] = 256,
    strategy: Annotated[str, typer.Option(help="How bytes are decided; ar: one after another.")] = "ar",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_p: Annotated[float | None, typer.Option(help="Smallest set of bytes with this probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest bytes.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only bytes at least so likely relative to the best.")] = None,
    seed: Annotated[int, typer.Option(help="A sample depends on this and the prompt alone.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End at this string (repeatable).")] = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt, streaming."""
    from bltkit.api import ByteLM
    from bltkit.vocab import Utf8Stream

    if strategy != "ar":
        raise ValueError(f"--strategy {strategy} does not exist; known: ar")
    data = b"" if prompt is None and file is None else _read(prompt, file)
    terminal, show = sys.stdout.isatty(), Utf8Stream()
    made, stats = b"", None
    for chunk in ByteLM.load(model).stream(
        data,
        max_bytes=max_bytes,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop or (),
    ):
        made, stats = made + chunk.data, chunk.stats
        if not as_json:
            sys.stdout.buffer.write(show.feed(chunk.data).encode() if terminal else chunk.data)
            sys.stdout.flush()
    assert stats is not None
    if as_json:
        _print_json({"text": made.decode("utf-8", "replace"), "bytes_hex": made.hex(), "stats": asdict(stats)})
    else:
        sys.stdout.buffer.write((show.end() if terminal else "").encode() + b"\n")
        _say(f"{stats.bytes} bytes, {stats.bytes_per_second:.0f} bytes/s, {stats.global_passes} global passes")


@app.command()
def score(
    text: Text = None,
    file: File = None,
    model: Model = "bltkit:tiny",
    context: Annotated[int | None, typer.Option(help="Bytes in a window; default: the model's training row.")] = None,
    stride: Annotated[int | None, typer.Option(help="Bytes between windows; default: half a window.")] = None,
    as_json: Json = False,
) -> None:
    """Bits per byte of a text under a model."""
    from bltkit.api import ByteLM

    data = _read(text, file)
    with _progress("scoring") as progress:
        result = ByteLM.load(model).score(data, context=context, stride=stride, progress=progress)
    if as_json:
        _print_json(result.to_json())
    else:
        patches = "" if result.mean_patch_bytes is None else f", {result.mean_patch_bytes:.2f} bytes per patch"
        print(f"{result.bits_per_byte:.4f} bits per byte over {result.num_bytes} bytes{patches}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run; default: runs/out/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train an entropy model, a boundary model or a BLT."""
    from bltkit.config import load_toml, parse
    from bltkit.train import TrainConfig
    from bltkit.train import train as run

    parsed: TrainConfig = parse(TrainConfig, load_toml(config, overrides or []), str(config))
    result = run(parsed, out or Path("runs/out") / config.stem, resume=resume, say=_say)
    if as_json:
        _print_json(asdict(result))
    else:
        bits = f"{result.bits_per_byte:.4f} bits per byte"
        print(f"{result.out}: step {result.steps}, {bits}, {result.bytes_seen} bytes seen")
    if result.interrupted:
        raise typer.Exit(130)


@app.command()
def calibrate(
    files: Annotated[list[str], typer.Option(help="Texts: files, globs, jsonl, `stdlib` (repeatable).")],
    patch_bytes: Annotated[float, typer.Option(help="Wanted mean bytes per patch.")],
    model: Model = "bltkit:tiny",
    rule: Annotated[str | None, typer.Option(help="Rule whose threshold is sought; default: the model's.")] = None,
    as_json: Json = False,
) -> None:
    """Find the threshold for a mean patch size and store it with the model."""
    from bltkit.study.calibration import calibrate_model

    with _progress("entropies") as progress:
        result = calibrate_model(model, files, patch_bytes, rule, progress)
    _print(result, as_json)


@app.command()
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
    _print(report, as_json)
    if not report.healthy:
        raise typer.Exit(1)


@app.command()
def flops(
    target: Annotated[str, typer.Argument(help="A training config (TOML) or a MODEL.")],
    patch_bytes: Annotated[float | None, typer.Option(help="Bytes per patch; default: the model's, else 4.5.")] = None,
    context: Annotated[int, typer.Option(help="Bytes in the row.")] = 8192,
    as_json: Json = False,
) -> None:
    """Parameters and floating-point operations per byte, by module."""
    from bltkit.study.flops import ledger_of

    _print(ledger_of(target, patch_bytes, context), as_json)


class Measured(StrEnum):
    """What `blt bench` measures."""

    prefill = "prefill"
    decode = "decode"
    train = "train"
    patch = "patch"


@app.command()
def bench(
    what: Annotated[Measured, typer.Argument(help="What is measured.")],
    preset: Annotated[str | None, typer.Option(help="Random weights of this shape; default: 69m.")] = None,
    model: Annotated[str | None, typer.Option(help="A checkpoint instead of a preset.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Bytes in the row (repeatable); default: 1024.")] = None,
    batch: Annotated[int, typer.Option(help="Rows of a training step.")] = 2,
    peer: Annotated[str | None, typer.Option(help="Side by side with: transformers.")] = None,
    threads: Annotated[int | None, typer.Option(help="On both sides; default: torch's.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each side at least.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of each side at least.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Measure bytes per second, in turn with a peer on the same weights."""
    from bltkit import bench as benchmarks
    from bltkit.checkpoint import load_bundle, resolve_model

    if preset is not None and model is not None:
        raise ValueError("give --preset or --model, not both")
    contexts = context or [1024]
    if model is not None:
        subject = benchmarks.subject_of(model, load_bundle(resolve_model(model)))
    else:
        subject = benchmarks.preset_subject(preset or "69m", max(contexts))
    options: dict[str, Any] = {"threads": threads, "command": shlex.join(["blt", *sys.argv[1:]]), "progress": _say}
    options |= {"limits": benchmarks.Limits(repeats, seconds)}
    options |= {} if what == Measured.patch else {"peer": peer}
    options |= {"batch": batch} if what == Measured.train else {}
    rows = [getattr(benchmarks, what.value)(subject, length, **options) for length in contexts]
    if as_json:
        _print_json(rows[0].to_json() if len(rows) == 1 else {"rows": [row.to_json() for row in rows]})
    else:
        print("\n".join(row.summary() for row in rows))


def _read(text: str | None, file: Path | None) -> bytes:
    """The bytes that a verb works on."""
    from bltkit.vocab import to_bytes

    if (text is None) == (file is None):
        raise ValueError("give a TEXT (`-` for stdin) or --file F, one of them")
    if file is not None:
        if file.is_dir():
            raise ValueError(f"{file} is a directory; name a file")
        return file.read_bytes()
    assert text is not None
    return sys.stdin.buffer.read() if text == "-" else to_bytes(text)


def _print(result: Any, as_json: bool) -> None:
    """A result as JSON or as its summary."""
    if as_json:
        _print_json(result.to_json())
    else:
        print(result.summary())


def _print_json(value: Any) -> None:
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not unicode, allow_nan=False))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, told (done, total); silent where stderr is no terminal."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# typer carries its own copy of click, whose base error it does not export.
_USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def main(arguments: list[str] | None = None) -> int:
    """Run `blt`; returns the exit status."""
    arguments = _spread_files(sys.argv[1:] if arguments is None else arguments)
    try:
        status = app(args=arguments or ["--help"], prog_name="blt", standalone_mode=False)
        _flush()
        return status if isinstance(status, int) else 0
    except _USAGE_ERRORS as error:
        message = " ".join(str(getattr(error, "format_message", error.__str__)()).split())
        if message:
            _say(f"blt: {message}")
        return 2
    except BrokenPipeError:  # whoever read stdout has seen enough, as `| head -1` does
        return 1
    except (ValueError, OSError) as error:
        _say("blt: " + " ".join(str(error).split()))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _say("blt: interrupted")
        return 130
    except FloatingPointError as error:
        _say(f"blt: {error}")
        return 1


def _flush() -> None:
    """Hand over what was printed. Where nobody takes it, Python would complain once more at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _spread_files(arguments: list[str]) -> list[str]:
    """`--files a b c` as `--files a --files b --files c`, which is all that typer reads."""
    spread: list[str] = []
    inside = False
    for position, argument in enumerate(arguments):
        if argument.startswith("-"):
            inside = argument == "--files"
        elif inside and arguments[position - 1] != "--files":
            spread.append("--files")
        spread.append(argument)
    return spread


def run() -> None:
    """The console script."""
    sys.exit(main())
