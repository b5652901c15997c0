"""`blt generate --prompts F --out G`: many prompts side by side, a line of results as each finishes, resumable."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bltkit.cli.terminal import print_json, progress_bar, say, say_placement

if TYPE_CHECKING:
    from bltkit.generate import Generation
    from bltkit.generate.prompt_file import NamedPrompt


def continue_prompts(
    prompts: Path,
    out: Path,
    model: str,
    loading: dict[str, Any],
    backend: str,
    batch_size: int | None,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Continue every prompt that has no result yet. What has finished stays, whatever ends the run.

    loading: device, device map and forms of weights, as for `ByteLM.load`.

    Raises ValueError for a broken prompt file, results of other options or another request, and a second writer.
    """
    from bltkit.api import BATCH_SIZE, ByteLM
    from bltkit.checkpoint import resolve_model
    from bltkit.checkpoint.fingerprint import fingerprint
    from bltkit.files.lock import writer_lock
    from bltkit.generate import parse_options
    from bltkit.generate.prompt_file import ResultFile, check_prompts, read_prompts

    if out.exists() and prompts.exists() and out.samefile(prompts):
        raise ValueError(f"--out {out} is the file of prompts; name another file")
    parse_options(b"", options)
    written = {name: value for name, value in options.items() if name != "stop"}
    written["stop"] = [text.encode(errors="surrogateescape").hex() for text in options["stop"]]
    forms = {"weights": loading["weights"] or "fp32"}
    forms |= {"scorer_weights": loading["scorer_weights"]} if loading["scorer_weights"] else {}
    place = ResultFile(out, written | forms | {"model": fingerprint(resolve_model(model))})
    place.check_place()
    total = check_prompts(prompts)
    with writer_lock(place.directory, say):
        finished = place.open()
        running: dict[int, NamedPrompt] = {}
        num_before = 0
        for number, item in enumerate(read_prompts(prompts), 1):
            if item.id not in finished:
                continue
            if finished[item.id] != item.digest:
                raise ValueError(
                    f"{prompts}, prompt {number}: id {item.id!r} has a result in {out} for another prompt, seed, "
                    "max_bytes or stop; give it another id, or choose another --out"
                )
            num_before += 1

        def left() -> Any:
            unfinished = (item for item in read_prompts(prompts) if item.id not in finished)
            for index, item in enumerate(unfinished):
                running[index] = item
                yield item.prompt

        began, num_bytes, done = time.perf_counter(), 0, 0
        try:
            if num_before < total:
                lm = ByteLM.load(model, **loading).with_backend(backend)
                say_placement(loading["device_map"], lm)
                with progress_bar("generating") as progress:
                    progress(num_before, total)
                    for index, result in lm.generate_iter(left(), batch_size=batch_size or BATCH_SIZE, **options):
                        place.append(_row(running.pop(index), result, options))
                        done, num_bytes = done + 1, num_bytes + len(result.data)
                        progress(num_before + done, total)
        except KeyboardInterrupt:
            say(f"{num_before + done} of {total} prompts are finished in {out}; the same command continues")
            raise
    seconds = time.perf_counter() - began
    if as_json:
        print_json(
            {"out": str(out), "prompts": total, "generated": done, "skipped": num_before}
            | {"bytes": num_bytes, "seconds": seconds}
        )
    else:
        before = f", {num_before} were finished before" if num_before else ""
        speed = f"{num_bytes:,} bytes, {num_bytes / seconds:,.0f} bytes/s"
        say(f"{out}: {done} prompt{'s' * (done != 1)} continued{before}; {speed}")


def _row(item: "NamedPrompt", result: "Generation", options: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": item.id, "text": result.text}
    try:
        result.data.decode()
    except UnicodeDecodeError:
        row["bytes_hex"] = result.data.hex()
    row |= {"finish": result.finish, "seed": options["seed"] if item.prompt.seed is None else item.prompt.seed}
    row |= {"logprobs": list(result.logprobs)} if options["logprobs"] else {}
    return row | {"request": item.digest, "stats": result.stats.to_json()}
