"""Measuring the blocks of a network: shapes, and the FLOPs to get there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..store import Block
from .pooling import Tokens


class Meter:
    """Measures what runs inside of ``with``: one forward pass of one image, on the meta device if the network is there."""

    def __init__(self) -> None:
        self._counter = FlopCounterMode(display=False)
        self._stack = ExitStack()
        self._found: list[tuple[str, Tensor | Tokens, int]] = []

    def __enter__(self) -> Self:
        self._stack.enter_context(torch.no_grad())
        # Attention is counted by its matrix products, which the fused kernels of some devices hide.
        self._stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        self._stack.enter_context(self._counter)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, kind: str, activation: Tensor | Tokens) -> None:
        """Note a block that has just run, made of ``kind``: what ran since the block before it counts for it."""
        self._found.append((kind, activation, self._counter.get_total_flops()))

    def blocks(self) -> list[Block]:
        """The blocks that were noted, numbered from 1; their shares are of all that ran."""
        total = max(self._counter.get_total_flops(), 1)
        return [_block(number, *found, total) for number, found in enumerate(self._found, start=1)]


def measure(steps: Iterator[tuple[str, Tensor | Tokens]]) -> list[Block]:
    """Blocks, numbered from 1, from one forward pass of one image, on the meta device if the network is there.

    Args:
        steps: (kind, activation) of every block, in the order the data flows. What runs between two of them counts for
            the second; what runs after the last, such as an output layer, counts for the full forward pass alone.
    """
    with Meter() as meter:
        for kind, activation in steps:
            meter.add(kind, activation)
    return meter.blocks()


def _block(number: int, kind: str, activation: Tensor | Tokens, flops: int, total: int) -> Block:
    has_token = isinstance(activation, Tokens)
    shape = activation.map.shape if isinstance(activation, Tokens) else activation.shape
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(f"block {number}: an activation is a map (n, C, H, H), got {tuple(shape)}")
    return Block(number, kind, shape[1], shape[2], round(flops / 1e9, 6), flops / total, has_token)
