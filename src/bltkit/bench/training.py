"""The two sides of a training benchmark, each made and asked inside a process of its own (`side_process.py`)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from bltkit.bench.bench_subject import subject_of
from bltkit.bench.peer import load_blt
from bltkit.bench.side_process import resident_bytes
from bltkit.bench.timing import finish, timed
from bltkit.checkpoint import load_bundle
from bltkit.checkpoint.names import blt_parts
from bltkit.model.attention import Visibility
from bltkit.patches import Patches

LEARNING_RATE = 1e-4
ATTENTION_RUNS = 3

PatchesFrom = Literal["own", "given"]
"""`own`: each side computes entropies and cuts the text in every step. `given`: both are told the same patches."""

UpdateOf = Callable[[nn.Module], Callable[[], object]]
"""What makes of a model the function that updates its weights and clears their gradients."""


@dataclass(frozen=True)
class TrainingTask:
    """What both sides do, as it goes through a pipe."""

    directory: str
    """A checkpoint."""
    name: str
    """Of the model, for errors."""
    ids: npt.NDArray[np.int64]
    """[B, T]."""
    starts: npt.NDArray[np.bool_]
    """[B, T + 1], see `Patches`."""
    patches: PatchesFrom
    threads: int
    device: str


def dense_adamw(model: nn.Module) -> Callable[[], object]:
    """torch's fused AdamW over all weights that learn, n-gram tables as any other."""
    optimizer = torch.optim.AdamW(
        [each for each in model.parameters() if each.requires_grad], LEARNING_RATE, fused=True
    )

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


class TrainingSide:
    """A model, its optimizer and the rows that it learns in every step."""

    model: nn.Module

    def __init__(self, task: TrainingTask, update_of: UpdateOf) -> None:
        torch.set_num_threads(task.threads)
        self.device = torch.device(task.device)
        self.ids = torch.from_numpy(task.ids).to(self.device)
        self.given = Patches.from_starts(torch.from_numpy(task.starts).to(self.device))
        self.told = task.patches == "given"
        self.load(task)
        self.before = resident_bytes()
        self.update = update_of(self.model)

    def load(self, task: TrainingTask) -> None:
        """Set `model`."""
        raise NotImplementedError

    def logits(self, told: bool) -> Float[Tensor, "B T V"]:
        """told: take the patches given."""
        raise NotImplementedError

    def named_gradients(self) -> Iterable[tuple[str, Tensor]]:
        """By transformers' names."""
        raise NotImplementedError

    def loss(self, told: bool) -> Tensor:
        """Mean over all bytes but each row's first."""
        return F.cross_entropy(self.logits(told)[:, :-1].flatten(0, 1), self.ids[:, 1:].flatten())

    def gradients(self, path: str) -> float:
        """The loss with the patches given; its gradients go into a file of tensors, and the model keeps none."""
        loss = self.loss(told=True)
        loss.backward()
        save_file({name: grad.detach().cpu().contiguous() for name, grad in self.named_gradients()}, Path(path))
        self.model.zero_grad(set_to_none=True)
        return float(loss.detach())

    def step(self) -> None:
        """All that is timed."""
        self.loss(self.told).backward()
        self.update()
        finish(self.device)

    def memory(self) -> tuple[int | None, int | None]:
        """Bytes held by the process (on a GPU: there) once it had its libraries and weights, and the most it held."""
        if self.device.type == "cuda":
            weights = sum(each.nbytes for each in self.model.parameters())
            return weights, torch.cuda.max_memory_allocated(self.device)
        return self.before, resident_bytes(peak=True)


class OurSide(TrainingSide):
    """bltkit's."""

    def load(self, task: TrainingTask) -> None:
        """See `TrainingSide`."""
        bundle = load_bundle(task.directory, dtype=torch.float32)
        for module in (bundle.model, bundle.scorer):
            for weight in cast(nn.Module, module).parameters():
                weight.data = weight.data.clone()  # of its own, not in the file's memory map
        self.subject = subject_of(task.name, bundle).on(self.device)
        self.model = self.subject.model

    def logits(self, told: bool) -> Float[Tensor, "B T V"]:
        """See `TrainingSide`."""
        patches = self.given if told else self.subject.patches(self.ids)
        logits: Tensor = self.model(self.ids, patches)
        return logits

    def named_gradients(self) -> Iterable[tuple[str, Tensor]]:
        """See `TrainingSide`."""
        for name, weight in self.model.named_parameters():
            assert weight.grad is not None, name
            grad = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
            parts = blt_parts(name, weight.shape)
            yield from zip((each.name for each in parts), grad.split([each.shape[0] for each in parts]), strict=True)

    def global_attention(self) -> float:
        """Seconds of a step that the global transformer's attention takes, forward and backward, timed apart."""
        model, config = self.subject.model, self.subject.model.config.latent
        documents = model.patch_documents(model.documents(self.ids), self.given)
        shape = (len(self.ids), self.given.max_patches)
        visible = Visibility.of(shape[1], 0, config.window, documents, self.device)
        like = model.decoder.norm.weight
        fused = like.new_empty(*shape, config.heads + 2 * config.num_kv_heads, config.head_dim).normal_()
        q, k, v = (
            each.transpose(1, 2).requires_grad_()
            for each in fused.split((config.heads, config.num_kv_heads, config.num_kv_heads), 2)
        )

        def run() -> None:
            out = visible.attend(q, k, v)
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

        run()
        return config.layers * min(timed(run, self.device) for _ in range(ATTENTION_RUNS))


class TransformersSide(TrainingSide):
    """Its `BltForCausalLM` as it comes. Where it cuts the text itself, what its entropy model computed is kept for
    backward as well; no gradient gets there, so the optimizer leaves its weights alone."""

    def load(self, task: TrainingTask) -> None:
        """See `TrainingSide`."""
        self.model = load_blt(task.directory, task.name).to(self.device)

    def logits(self, told: bool) -> Float[Tensor, "B T V"]:
        """See `TrainingSide`."""
        patches = {"patch_lengths": self.given.lengths} if told else {}
        logits: Tensor = self.model(self.ids, use_cache=False, **patches).logits
        return logits

    def named_gradients(self) -> Iterable[tuple[str, Tensor]]:
        """See `TrainingSide`."""
        return ((name, each.grad) for name, each in self.model.named_parameters() if each.grad is not None)
