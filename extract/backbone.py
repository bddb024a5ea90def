"""The contract between extraction and a frozen network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..store import Block
from .images import Resize
from .pooling import Tokens


class Backbone(Protocol):
    """A frozen network whose intermediate activations are features.

    What it is: the properties. What it does: :meth:`encode`, :meth:`schedule`, :meth:`diffuse`, :meth:`features`. It is on
    one device and never changes. An encoder without timesteps needs no :meth:`schedule` and no :meth:`diffuse`: they are
    never called.
    """

    @property
    def blocks(self) -> Sequence[Block]:
        """Its blocks, numbered from 1 in the order the data flows."""
        ...

    @property
    def diffusion_steps(self) -> int | None:
        """Number of its timesteps; None for an encoder without timesteps."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the images it takes, in pixels."""
        ...

    @property
    def resize(self) -> Resize:
        """How images are resized before they are cropped to that size."""
        ...

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what it denoises: the image itself, or its latent."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def schedule(self, timestep: int) -> tuple[float, float]:
        """(alpha, sigma) of a timestep: x_t = alpha x_0 + sigma eps."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) float32 images in [-1, 1] -> x_0 of shape (n, *sample_shape); the identity for pixel models."""
        ...

    def diffuse(self, x_0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t from x_0 and standard normal noise of the same shape."""
        ...

    def features(self, x_t: Tensor, timestep: int | None, blocks: Collection[int]) -> Iterator[tuple[int, Tensor | Tokens]]:
        """Yield (block, activation) in the order the data flows, and stop after the deepest block.

        An activation is a map (n, C, H, H), or :class:`~diffssl.extract.pooling.Tokens` where there is a class token too.
        An iterator and not a dictionary, so that the caller pools a map and lets go of it before the next block runs.

        Args:
            x_t: (n, *sample_shape) float32.
            timestep: None for an encoder without timesteps.
            blocks: numbers of those wanted.
        """
        ...
