"""Timing one batch, for ``--plan --measure``."""

from __future__ import annotations

import time

import torch

from .job import Job, load_backbone
from .pooling import pool_map

_REPEATS = 3


def seconds_per_forward(job: Job) -> float:
    """Seconds of a forward pass to the deepest block, pooling included, per image; the median of three batches."""
    backbone = load_backbone(job)
    sizes: dict[int, set[int]] = {}
    for key in job.keys:
        sizes.setdefault(key.block, set()).add(int(key.pool))
    x = torch.zeros(job.header.batch_size, *backbone.sample_shape, device=backbone.device)
    seconds = []
    with torch.inference_mode():
        for _ in range(_REPEATS + 1):
            started = time.perf_counter()
            for block, activation in backbone.features(x, job.spec.timesteps[0], sizes):
                pooled = {size: value.cpu() for size, value in pool_map(activation, sizes[block]).items()}
                del pooled
            seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[_REPEATS // 2] / job.header.batch_size
