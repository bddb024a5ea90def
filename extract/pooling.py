"""Adaptive average pooling of one activation to several sizes, on its device."""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor


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
    return {size: activation if size == activation.shape[-1] else F.adaptive_avg_pool2d(activation, size) for size in sizes}
