"""Optimizer, weight-decay groups and the learning rate's schedule."""

from __future__ import annotations

import math

import torch

from sbp_ray.config import TrainingConfig


def build_optimizer(model: torch.nn.Module, cfg: TrainingConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices, and leaves norms and biases alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.peak_lr, betas=(cfg.beta1, cfg.beta2), fused=True)


def lr_at(step: int, num_steps: int, cfg: TrainingConfig) -> float:
    """Learning rate of step 0 … num_steps - 1: a linear rise to `peak_lr`, then `cfg.schedule` down to `final_lr`."""
    num_warmup = round(cfg.warmup_share * num_steps)
    if step < num_warmup:
        return cfg.peak_lr * (step + 1) / num_warmup
    last = num_steps - 1
    if cfg.schedule == "wsd":
        num_decay = max(1, min(round(cfg.decay_share * num_steps), last - num_warmup))
        fallen = max(0.0, (step - (last - num_decay)) / num_decay)
    else:
        progress = (step - num_warmup) / max(1, last - num_warmup)
        fallen = (1 - math.cos(math.pi * progress)) / 2
    return cfg.peak_lr + (cfg.final_lr - cfg.peak_lr) * fallen


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
