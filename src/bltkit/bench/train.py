"""A training step: patches, forward, backward and the optimizer, on rows of text; each side in its own process.

Before anything is timed both sides say their loss and all their gradients on the rows that are timed, with the same
patches given to both (the peer's own entropies leak from row to row, docs/model.md 12). Large matrix products take their turn
as well: what share of their rate a step reaches is then measured under the same conditions.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open

from bltkit.bench.bench_subject import BenchSubject, row
from bltkit.bench.peer import installed
from bltkit.bench.record import BenchRow, row_of
from bltkit.bench.side_process import Remote
from bltkit.bench.timing import Progress, RepeatLimits, Side, check_batch, in_turn, silent, threads_of
from bltkit.bench.training import OurSide, PatchesFrom, TrainingTask, TransformersSide, UpdateOf, dense_adamw
from bltkit.checkpoint import Bundle, save_bundle
from bltkit.cost.formulas.operations import forward_flops

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4

MATMUL_WIDTH = 2048
MATMUL_RUNS = 8
"""Products of a turn: about a second at 100 GFLOP/s."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one side."""

    before: int | None
    """Held with libraries and weights, in front of the first step."""
    peak: int | None
    """The most it held."""

    @property
    def added(self) -> int | None:
        """By training: gradients, the optimizer's state, activations."""
        return None if self.before is None or self.peak is None else self.peak - self.before


@dataclass(frozen=True)
class Training:
    """What a row of training says besides."""

    patches: PatchesFrom
    optimizer: str
    """Of our side."""
    flops_per_byte: float
    """Of a step by exact count: three forward passes, and one of the entropy model where patches are `own`."""
    gflops: float
    """Achieved."""
    matmul_gflops: float
    """Of large fp32 products in the same rounds."""
    global_attention_seconds: float
    """Of a step, in the global transformer's attention: what grows with the square of the row."""
    memory: Memory
    peer_memory: Memory | None
    loss_difference: float | None
    gradient_difference: float | None
    """Largest over all tensors of |ours - theirs| / |theirs|, 2-norms."""

    @property
    def share(self) -> float:
        """Of the matmul rate."""
        return self.gflops / self.matmul_gflops

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = asdict(self) | {"share_of_matmul": self.share}
        for name, memory in (("memory", self.memory), ("peer_memory", self.peer_memory)):
            if memory is not None:
                found[name] |= {"added": memory.added}
        return found

    def summary(self) -> str:
        """What follows a speed, for people."""
        found = [f"patches {self.patches}, {self.optimizer}"]
        found.append(f"{self.gflops:.0f} of {self.matmul_gflops:.0f} GFLOP/s ({self.share:.0%})")
        found.append(f"global attention {self.global_attention_seconds:.2f} s a step")
        if self.memory.peak is not None:
            line = f"peak {self.memory.peak / 1e9:.2f} GB"
            if self.peer_memory is not None and self.peer_memory.peak is not None:
                line += f", peer {self.peer_memory.peak / 1e9:.2f} ({self.memory.peak / self.peer_memory.peak:.2f})"
            found.append(line)
        if self.loss_difference is not None:
            found.append(f"loss differs by {self.loss_difference:.1e}, gradients by {self.gradient_difference:.1e}")
        return ", ".join(found)


def train(
    subject: BenchSubject,
    context: int,
    *,
    batch: int = 2,
    peer: str | None = None,
    patches: PatchesFrom = "own",
    update_of: UpdateOf = dense_adamw,
    limits: RepeatLimits | None = None,
    threads: int | None = None,
    command: str = "",
    progress: Progress = silent,
) -> BenchRow:
    """Bytes per second of training steps on `batch` rows of `context` ids. The subject keeps its weights.

    update_of: makes our optimizer, by default the peer's; importable by its name. Raises ValueError for a bad number
    or peer, RuntimeError where the peer's loss or gradients are others.
    """
    check_batch(batch)
    if peer not in (None, "transformers"):
        installed(peer)
        raise ValueError(f"peer {peer!r} has other weights and only decodes; take 'transformers' here")
    peer_name = None if peer is None else f"{peer} {installed(peer).__version__}"
    ids = row(context, batch).to(subject.device)
    with threads_of(threads) as count, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        directory = f"{folder}/model"
        save_bundle(directory, Bundle(subject.model, subject.scorer, subject.rule))
        found = subject.patches(ids)
        starts = found.starts.cpu().numpy()
        task = TrainingTask(directory, subject.name, ids.cpu().numpy(), starts, patches, count, str(subject.device))
        progress(f"train {batch} x {context}: loading")
        remotes = [stack.enter_context(Remote("our side", OurSide, task, update_of))]
        if peer_name is not None:
            remotes.append(stack.enter_context(Remote(peer_name, TransformersSide, task, dense_adamw)))
        differences = _compare(remotes, Path(folder), progress) if peer_name is not None else (None, None)
        sides = []
        for remote in remotes:
            name = f"train {batch} x {context}, {remote.name}"
            sides.append(Side(name, batch * context, lambda remote=remote: remote.call("step")))  # type: ignore[misc]
            remote.call("step")  # the first is slow
        square = torch.ones(MATMUL_WIDTH, MATMUL_WIDTH, device=subject.device)
        sides.append(Side("products", 1.0, lambda: [square @ square for _ in range(MATMUL_RUNS)]))
        *timings, products = in_turn(sides, limits or RepeatLimits(repeats=3), subject.device, progress)
        memory = [Memory(*remote.call("memory")) for remote in remotes]
        attention = remotes[0].call("global_attention")
    mean_patch_bytes = batch * (context - 1) / max(1, int(found.num_patches.sum()) - batch)
    flops = 3 * forward_flops(subject.model.config, mean_patch_bytes, context)
    if patches == "own":
        flops += forward_flops(cast(Any, subject.scorer).config, 1.0, context)
    return row_of(
        subject,
        "train",
        timings,
        context=context,
        batch=batch,
        threads=count,
        peer_name=peer_name,
        max_difference=None,
        mean_patch_bytes=mean_patch_bytes,
        command=command,
        training=Training(
            patches=patches,
            optimizer=update_of.__name__,
            flops_per_byte=flops,
            gflops=flops * timings[0].bytes_per_second / 1e9,
            matmul_gflops=MATMUL_RUNS * 2 * MATMUL_WIDTH**3 * products.bytes_per_second / 1e9,
            global_attention_seconds=attention,
            memory=memory[0],
            peer_memory=memory[1] if len(memory) > 1 else None,
            loss_difference=differences[0],
            gradient_difference=differences[1],
        ),
    )


def _compare(remotes: list[Remote], folder: Path, progress: Progress) -> tuple[float, float]:
    """Of the loss, and of the gradient's tensors the largest. Raises RuntimeError where they are no rounding."""
    progress("comparing loss and gradients")
    files = [folder / f"gradients-{at}.safetensors" for at in range(2)]
    ours, theirs = (remote.call("gradients", str(file)) for remote, file in zip(remotes, files, strict=True))
    worst, where = 0.0, ""
    with safe_open(files[0], "pt") as own, safe_open(files[1], "pt") as other:
        names = set(own.keys())
        if names != set(other.keys()):
            raise RuntimeError(f"gradients of one side only: {sorted(names ^ set(other.keys()))[:3]}")
        for name in names:
            right = other.get_tensor(name)
            relative = float((own.get_tensor(name) - right).norm() / right.norm().clamp_min(1e-30))
            if not relative <= worst:  # NaN is wrong as well
                worst, where = relative, name
    for file in files:
        file.unlink()
    if not abs(ours - theirs) <= LOSS_TOLERANCE:
        raise RuntimeError(f"ours and the peer disagree: a loss of {ours:.7f} against {theirs:.7f}")
    if not worst <= GRADIENT_TOLERANCE:
        raise RuntimeError(f"ours and the peer disagree: the gradient of {where} by {worst:.2g} of its norm")
    return abs(ours - theirs), worst
