"""Adaptive average pooling of one activation to several sizes, on its device."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..store.selection import CLASS_TOKEN

_LARGE_WINDOW = 16


class Tokens(NamedTuple):
    """Activation of a transformer's block that has a class token.

    Attributes:
        map: (n, C, H, H), the patch tokens in their places.
        cls: (n, C), the class token.
    """

    map: Tensor
    cls: Tensor


def pool_map(activation: Tensor | Tokens, pools: Collection[int | str]) -> dict[int | str, Tensor]:
    """Pool a feature map to every size, each from the float32 activation itself.

    Args:
        activation: (n, C, H, H), or tokens.
        pools: sides of the pooled maps, at most H; H itself is the map as it is. ``cls`` is the class token.

    Returns:
        size -> (n, C, size, size) float32; ``cls`` -> (n, C, 1, 1) float32.
    """
    found: dict[int | str, Tensor] = {}
    if CLASS_TOKEN in pools:
        if not isinstance(activation, Tokens):
            raise ValueError(f"pool {CLASS_TOKEN} of an activation without a class token, {tuple(activation.shape)}")
        found[CLASS_TOKEN] = activation.cls.float()[:, :, None, None]
    whole = activation.map if isinstance(activation, Tokens) else activation
    sizes = [pool for pool in pools if isinstance(pool, int)]
    if max(sizes, default=0) > whole.shape[-1]:
        raise ValueError(f"pooling never upsamples: sizes {sorted(sizes)} from a map of {tuple(whole.shape)}")
    whole = whole.float() if sizes else whole
    return found | {size: whole if size == whole.shape[-1] else _average(whole, size) for size in sizes}


def _average(activation: Tensor, size: int) -> Tensor:
    """Adaptive average pooling, where the windows are large by way of the sums of their columns.

    Which way is a function of the two sizes and the layout alone, so that a value never depends on what else is pooled.
    On a CPU, torch's adaptive pooling of contiguous maps reads large windows one number after the other: this took 0.3 to
    0.6 of its time. Of channels-last maps it adds up all channels at once.
    """
    n, channels, height, _ = activation.shape
    window = height // size
    if size == 1 or window < _LARGE_WINDOW or height % size or not activation.is_contiguous():
        return F.adaptive_avg_pool2d(activation, size)
    columns = activation.reshape(n * channels * size, window, height).sum(1)
    return columns.view(n, channels, size, size, window).sum(-1) / window**2
