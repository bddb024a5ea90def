"""The contract between extraction and a frozen network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..store import Block


class Backbone(Protocol):
    """A frozen network whose intermediate activations are features.

    What it is: ``blocks``, ``diffusion_steps`` and ``sample_shape``. What it does: :meth:`encode`, :meth:`diffuse`,
    :meth:`features`. It is on one device and never changes.
    """

    blocks: Sequence[Block]
    diffusion_steps: int
    sample_shape: tuple[int, int, int]
    device: torch.device

    def schedule(self, timestep: int) -> tuple[float, float]:
        """(alpha, sigma) of a timestep: x_t = alpha x_0 + sigma eps."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) float32 images in [-1, 1] -> x_0 of shape (n, *sample_shape); the identity for pixel models."""
        ...

    def diffuse(self, x_0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t from x_0 and standard normal noise of the same shape."""
        ...

    def features(self, x_t: Tensor, timestep: int, blocks: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (block, (n, C, H, W) activation) in the order the data flows, and stop after the deepest block.

        An iterator and not a dictionary, so that the caller pools a map and lets go of it before the next block runs.
        """
        ...
