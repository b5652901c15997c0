"""`blt annotate`: what is to be computed, what of it is there already, and the shards that are missing.

A job is its manifest without the shards. A finished shard has a note `shard-00000.json` beside its file; when all have
one, the manifest is written with their contents and the notes go. Whoever is killed in between leaves shards that the
next run with the same job recognises, and redoes the others.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch

from bltkit.annotate.annotation_plan import SHARD_BYTES, AnnotationPlan, Progress, ShardPlan, ShardReader, plan_shards
from bltkit.annotate.shard_work import ShardWork, compute_shard, load_scorer, note_of
from bltkit.annotate.summary import Annotation, report_of
from bltkit.checkpoint import scorer_hash
from bltkit.checkpoint.intact import sha256
from bltkit.compute import check_threads, device_of
from bltkit.config import parse
from bltkit.data.sources import SourceConfig
from bltkit.data.sources.annotated import check_dtype
from bltkit.data.sources.shards import (
    MANIFEST,
    EntropyType,
    ScorerEntry,
    ShardEntry,
    ShardManifest,
    import_pyarrow,
    read_manifest,
    shard_name,
    write_manifest,
)
from bltkit.files import LOCK_FILES, read_json, writer_lock
from bltkit.model import Scorer
from bltkit.patching import PatchingRule
from bltkit.patching.calibrate import tuned_field

Engine = Literal["local", "ray"]


def annotate(
    sources: Sequence[SourceConfig],
    model: str,
    out: Path,
    *,
    engine: Engine = "local",
    rule: PatchingRule | None = None,
    dtype: EntropyType = "fp32",
    shard_bytes: int = SHARD_BYTES,
    workers: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Annotation:
    """Write entropies and patches of all documents of `sources` beside their text into directory `out`.

    model: MODEL whose entropy model is used. rule: by default the model's own; where there is none, entropies only.
    workers: cores (engine local) or processes of one core or GPU each (ray); by default torch's threads, or all that
        the cluster has. The files are the same whatever engine and workers.
    out: new, or of the same job, which is then finished. One process at a time writes into it, whatever the engine.

    Raises ValueError for a model without entropies, a rule that they do not decide, fp16 with a threshold that
    rounding would cross, sources that cannot be read, and an `out` that holds something else or that another process
    (named by number and host) writes into.
    """
    import_pyarrow()
    if workers is not None:
        check_threads(workers, "workers")
    device = str(device_of(device))
    _refuse_foreign(out)
    with ExitStack() as lock:
        held = out.exists()
        if held:
            lock.enter_context(writer_lock(out, say))
        scorer, own_rule = load_scorer(model, device)
        if rule is None and (out / MANIFEST).exists() and read_manifest(out).rule is None:
            own_rule = None  # `blt calibrate` gave the model one since; nobody asked for these shards to follow it
        rule = rule or own_rule
        if rule is not None:
            _check(rule, dtype, say)
        job = ShardManifest(
            scorer=ScorerEntry(name=model, sha256=scorer_hash(scorer)),
            rule=None if rule is None else str(rule),
            threshold=None if rule is None else getattr(rule, tuned_field(rule) or "", None),
            dtype=dtype,
            device=torch.device(device).type,
            shard_bytes=shard_bytes,
            sources=tuple(source.model_dump(mode="json") for source in sources),
        )
        there = _there(out, job)
        plan = plan_shards(sources, shard_bytes, progress)
        if not held:  # made only now that the sources are known to be readable
            lock.enter_context(writer_lock(out, say))
            there = _there(out, job)  # another process may have come first
        if there is None:
            write_manifest(out, job)
            there = job
        work = ShardWork(str(out), model, job.scorer.sha256, rule, dtype, device, plan)
        return _finish(work, scorer, job, there, engine, workers, progress, say)


def _finish(
    work: ShardWork,
    scorer: Scorer,
    job: ShardManifest,
    there: ShardManifest,
    engine: Engine,
    workers: int | None,
    progress: Progress | None,
    say: Callable[[str], None],
) -> Annotation:
    """Compute what is missing of a job whose directory is held by this process. there: the manifest that it has."""
    out, plan = Path(work.out), work.plan
    if there.complete:
        _check_content(there, plan, out)
    done = _finished(out, there, plan)
    missing = [shard for shard in plan.shards if shard.number not in done]
    if there.complete and missing:
        say(f"{len(missing)} of {len(plan.shards)} shards are missing or damaged; they are computed again")
    elif done and missing:
        say(f"{len(done)} of {len(plan.shards)} shards are there already")
    began = time.perf_counter()
    if missing:
        _run(engine, work, scorer, missing, workers, progress)
    seconds = time.perf_counter() - began
    shards = tuple(_entry(out, there, shard) for shard in plan.shards)
    complete = job.replace(shards=shards)
    if complete != there:
        write_manifest(out, complete)
    _remove_others(out, complete)
    return report_of(complete, plan, work.out, missing, seconds)


def _check(rule: PatchingRule, dtype: EntropyType, say: Callable[[str], None]) -> None:
    if not rule.streams or rule.scores == "boundary":
        raise ValueError(f"rule '{rule}' is not decided by entropies; take for example 'threshold'")
    if dtype == "fp16" and rule.scores is not None and "rise" in type(rule).model_fields:
        # Its stored starts are right all the same: they are made before rounding.
        say(f"rule '{rule}': its starts follow the fp32 entropies; the fp16 ones stored cannot give them again")
        return
    check_dtype(rule, dtype, "--dtype fp16")


def _run(
    engine: Engine, work: ShardWork, scorer: Scorer, missing: list[ShardPlan], workers: int | None, progress: Any
) -> None:
    if engine == "ray":
        from bltkit.annotate.cluster import run_on_ray

        run_on_ray(work, missing, workers, progress)
        return
    total, done = sum(shard.bytes for shard in missing), 0

    def tell(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(min(done, total), total)

    reader = ShardReader(work.plan)
    for shard in missing:
        compute_shard(work, scorer, reader, shard, workers or torch.get_num_threads(), tell)


def _refuse_foreign(out: Path) -> None:
    """Raises ValueError where `out` holds something, but no annotation. A lock's files count as nothing."""
    if os.path.lexists(out) and not out.is_dir():
        raise ValueError(f"{out} is a file; name a directory to write the shards into")
    if os.path.lexists(out / MANIFEST) or not out.exists():
        return
    if any(entry.name not in LOCK_FILES for entry in out.iterdir()):
        raise ValueError(f"{out} exists already and holds no annotated shards; choose another directory")


def _there(out: Path, job: ShardManifest) -> ShardManifest | None:
    """The manifest of this job that is there, if one is. Raises ValueError where `out` is something else."""
    _refuse_foreign(out)
    if not os.path.lexists(out / MANIFEST):
        return None
    there = read_manifest(out)
    wanted, found = (manifest.model_dump(exclude={"shards", "format"}) for manifest in (job, there))
    for manifest in (wanted, found):
        manifest["scorer"] = manifest["scorer"]["sha256"]  # a model may have moved
    different = [name for name in wanted if wanted[name] != found[name]]
    if different:
        name = different[0]
        raise ValueError(
            f"{out} holds the annotation of another job: {name} is {_short(found[name])} there, "
            f"{_short(wanted[name])} here; choose another --out, or remove that directory"
        )
    for rest in out.glob(".*.tmp-*"):
        rest.unlink(missing_ok=True)  # of a process that was killed
    return there


def _check_content(there: ShardManifest, plan: AnnotationPlan, out: Path) -> None:
    stored, planned = ([shard.content for shard in shards] for shards in (there.shards, plan.shards))
    if stored != planned:
        raise ValueError(
            f"{out} is complete, but the text of the sources has changed since; choose another --out, or remove it"
        )


def _finished(out: Path, there: ShardManifest, plan: AnnotationPlan) -> set[int]:
    """Numbers of the shards that need not be computed: noted, of the same text, and whole."""
    found = set()
    for shard in plan.shards:
        entry, path = _entry_or_none(out, there, shard), out / shard_name(shard.number)
        if entry is None or entry.content != shard.content or not path.exists() or sha256(path) != entry.sha256:
            note_of(out, shard.number).unlink(missing_ok=True)
        else:
            found.add(shard.number)
    return found


def _entry_or_none(out: Path, there: ShardManifest, shard: ShardPlan) -> ShardEntry | None:
    note = note_of(out, shard.number)
    if note.is_file():
        try:
            entry: ShardEntry = parse(ShardEntry, read_json(note, escaped_bytes=True), str(note))
        except ValueError:
            return None  # damaged: the shard is computed again, which gives the same bytes
        return entry
    return there.shards[shard.number] if shard.number < len(there.shards) else None


def _entry(out: Path, there: ShardManifest, shard: ShardPlan) -> ShardEntry:
    entry = _entry_or_none(out, there, shard)
    assert entry is not None and entry.content == shard.content, shard
    return entry


def _remove_others(out: Path, manifest: ShardManifest) -> None:
    """The notes, which the manifest replaces, and shards of text that has changed before the job was finished."""
    names = {shard.file for shard in manifest.shards}
    for path in out.glob("shard-*"):
        if path.name not in names:
            path.unlink(missing_ok=True)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
