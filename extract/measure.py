"""Timing one batch, for ``--plan --measure``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from .adm import load_adm
from .pooling import pool_map
from .settings import pick_device, torch_dtype

if TYPE_CHECKING:
    from .run import Job

_REPEATS = 3


def seconds_per_forward(job: Job) -> float:
    """Seconds of a forward pass to the deepest block, pooling included, per image; the median of three batches."""
    fields = job.header.identity.fields
    device = pick_device(job.spec.device)
    condition = fields["condition"] if job.model.config["class_cond"] else None
    backbone = load_adm(job.model, device, condition, torch_dtype(fields["compute_dtype"]))
    sizes: dict[int, set[int]] = {}
    for key in job.keys:
        sizes.setdefault(key.block, set()).add(int(key.pool))
    x = torch.zeros(job.header.batch_size, *backbone.sample_shape, device=device)
    seconds = []
    with torch.inference_mode():
        for _ in range(_REPEATS + 1):
            started = time.perf_counter()
            for block, activation in backbone.features(x, job.spec.timesteps[0], sizes):
                pooled = {size: value.cpu() for size, value in pool_map(activation, sizes[block]).items()}
                del pooled
            seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[_REPEATS // 2] / job.header.batch_size
