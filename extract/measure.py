"""Timing one batch, for ``--plan --measure``."""

from __future__ import annotations

import time

import torch

from .job import Job, load_backbone
from .pooling import pool_map
from .precision import TF32, tf32

_REPEATS = 3


def seconds_per_forward(job: Job) -> float:
    """Seconds of a forward pass to the deepest block, pooling included, per image; the median of three batches."""
    backbone = load_backbone(job)
    pools: dict[int, set[int | str]] = {}
    for key in job.keys:
        pools.setdefault(key.block, set()).add(key.pool)
    x = torch.zeros(job.header.batch_size, *backbone.sample_shape, device=backbone.device)
    seconds = []
    with torch.inference_mode(), tf32(backbone.device, job.header.identity.fields["compute_dtype"] == TF32):
        for _ in range(_REPEATS + 1):
            started = time.perf_counter()
            for block, activation in backbone.features(x, job.keys[0].timestep, pools):
                pooled = {pool: value.cpu() for pool, value in pool_map(activation, pools[block]).items()}
                del pooled
            seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[_REPEATS // 2] / job.header.batch_size
