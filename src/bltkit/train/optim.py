"""The optimizer and its schedule (BLT 4.7, spec 8)."""

import math

import torch
from torch import nn

from bltkit.train.config import OptimSection


def learning_rate(config: OptimSection, step: int, schedule_steps: int) -> float:
    """Rate of update number `step` (from 0): linear warm-up, then a cosine down to min_lr_ratio at schedule_steps."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, schedule_steps - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    ratio = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * ratio


def build_optimizer(config: OptimSection, model: nn.Module) -> torch.optim.AdamW:
    """AdamW over all weights in one group, as the released models were trained (decay also on norms)."""
    return torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def apply_update(
    optimizer: torch.optim.Optimizer, config: OptimSection, step: int, schedule_steps: int
) -> torch.Tensor:
    """Clip the step's whole gradient, update, clear. Returns the gradient's 2-norm before clipping."""
    rate = learning_rate(config, step, schedule_steps)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = nn.utils.clip_grad_norm_(weights, config.clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
