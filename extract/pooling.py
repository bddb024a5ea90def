"""Adaptive average pooling of one activation to several sizes, on its device."""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor

_LARGE_WINDOW = 16


def pool_map(activation: Tensor, sizes: Collection[int]) -> dict[int, Tensor]:
    """Pool a feature map to every size, each from the float32 activation itself.

    Args:
        activation: (n, C, H, H).
        sizes: sides of the pooled maps, at most H; H itself is the map as it is.

    Returns:
        size -> (n, C, size, size) float32.
    """
    if max(sizes) > activation.shape[-1]:
        raise ValueError(f"pooling never upsamples: sizes {sorted(sizes)} from a map of {tuple(activation.shape)}")
    activation = activation.float()
    return {size: activation if size == activation.shape[-1] else _average(activation, size) for size in sizes}


def _average(activation: Tensor, size: int) -> Tensor:
    """Adaptive average pooling, where the windows are large by way of the sums of their columns.

    Which way is a function of the two sizes alone, so that a value never depends on what else is pooled. On a CPU,
    torch's adaptive pooling reads large windows one number after the other: this took 0.3 to 0.6 of its time.
    """
    n, channels, height, _ = activation.shape
    window = height // size
    if size == 1 or window < _LARGE_WINDOW or height % size:
        return F.adaptive_avg_pool2d(activation, size)
    columns = activation.reshape(n * channels * size, window, height).sum(1)
    return columns.view(n, channels, size, size, window).sum(-1) / window**2
