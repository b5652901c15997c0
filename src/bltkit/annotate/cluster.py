"""Annotation on a Ray cluster: the same shards by the same function, spread over processes by Ray Data.

Sources, entropy model and the directory written to must be visible under the same paths on every machine. A process has
one core (or one GPU) and computes shard after shard; the driver only counts.
"""

import os
from pathlib import Path
from typing import Any

import torch

from bltkit.annotate.annotation_plan import Progress, ShardPlan, ShardReader
from bltkit.annotate.shard_work import ShardWork, compute_shard, load_scorer
from bltkit.checkpoint import scorer_hash


class RayWorker:
    """One process of the cluster: it loads the model once."""

    def __init__(self, work: ShardWork, folder: str) -> None:
        os.chdir(folder)  # paths may be relative to where the command was given
        scorer, _ = load_scorer(work.model, work.device)
        if scorer_hash(scorer) != work.scorer_sha256:
            raise ValueError(f"{work.model} is another model on this machine; the same files must be visible on all")
        self._work, self._scorer, self._reader = work, scorer, ShardReader(work.plan)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Computes the shards whose numbers stand in column `id`; returns their bytes."""
        shards = [self._work.plan.shards[int(number)] for number in batch["id"]]
        done = [compute_shard(self._work, self._scorer, self._reader, shard, 1, None) for shard in shards]
        return {"bytes": done}


def run_on_ray(work: ShardWork, missing: list[ShardPlan], workers: int | None, progress: Progress | None) -> None:
    """Compute the missing shards on the running cluster, or on this machine where none runs.

    Raises ValueError where Ray is not installed, or as `compute_shard` does.
    """
    ray = _import_ray()
    begun = not ray.is_initialized()
    if begun:
        _connect(ray, workers)
    try:
        gpu = torch.device(work.device).type == "cuda"
        found = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
        count = min(workers or found, len(missing))
        if not 1 <= count <= found:
            raise ValueError(f"workers = {workers}, but the cluster has {found} {'GPUs' if gpu else 'cores'}")
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        numbers = [{"id": shard.number} for shard in missing]
        results = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            RayWorker,
            fn_constructor_args=(work, str(Path.cwd())),
            batch_size=1,
            concurrency=count,
            num_cpus=0 if gpu else 1,
            num_gpus=1 if gpu else 0,
        )
        total, done = sum(shard.bytes for shard in missing), 0
        for row in results.iter_rows():
            done += int(row["bytes"])
            if progress is not None:
                progress(done, total)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError):
            raise error.cause from None
        raise
    finally:
        if begun:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install 'bltkit[ray]'") from None
    return ray


def _connect(ray: Any, workers: int | None) -> None:
    import logging

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:  # no cluster runs
        ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
