"""Measuring the blocks of a network: shapes, and the FLOPs to get there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..store import Block
from .pooling import Tokens


def measure(steps: Iterator[tuple[str, Tensor | Tokens]]) -> list[Block]:
    """Blocks, numbered from 1, from one forward pass of one image, on the meta device if the network is there.

    Args:
        steps: (kind, activation) of every block, in the order the data flows. What runs between two of them counts for
            the second; what runs after the last, such as an output layer, counts for the full forward pass alone.
    """
    found: list[tuple[str, Tensor | Tokens, int]] = []
    # Attention is counted by its matrix products, which the fused kernels of some devices hide.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for kind, activation in steps:
            found.append((kind, activation, counter.get_total_flops()))
    total = counter.get_total_flops()
    return [_block(number, kind, activation, flops, total) for number, (kind, activation, flops) in enumerate(found, start=1)]


def _block(number: int, kind: str, activation: Tensor | Tokens, flops: int, total: int) -> Block:
    shape = activation.map.shape if isinstance(activation, Tokens) else activation.shape
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(f"block {number}: an activation is a map (n, C, H, H), got {tuple(shape)}")
    has_token = isinstance(activation, Tokens)
    return Block(number, kind, shape[1], shape[2], round(flops / 1e9, 6), flops / max(total, 1), has_token)
