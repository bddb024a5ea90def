"""The contract of a model before it is loaded: what a plan, a header and a comparison with a store need of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..store import Block
from .images import Resize

if TYPE_CHECKING:
    import torch

    from .backbone import Backbone


MEMORY_FORMATS = CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"


class Model(Protocol):
    """A model that can be loaded, and what is known of it without its weights and, where possible, without torch.

    ``settings.py`` and ``job.py`` know models by this alone. Four of its answers are fields of a store's identity:
    :meth:`weights_sha256`, :meth:`identity` (the field ``model_config``), :meth:`condition` and :meth:`preprocessing`.
    """

    @property
    def name(self) -> str:
        """For people; a store keeps it."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        ...

    @property
    def resize(self) -> Resize:
        """How images are resized before they are cropped to that size."""
        ...

    @property
    def diffusion_steps(self) -> int | None:
        """Number of timesteps; None for an encoder without timesteps."""
        ...

    @property
    def conditional(self) -> bool:
        """Whether a condition means anything to it, so that a store's is taken where none is given."""
        ...

    @property
    def memory_formats(self) -> Sequence[str]:
        """Memory formats of activations that it can compute in; new stores get the first."""
        ...

    def condition(self, wanted: str | None) -> str:
        """The condition to use. Raises ``ExtractError`` where one is missing, not known, or makes no sense."""
        ...

    def identity(self) -> dict[str, Any]:
        """The part of the configuration that decides what features are, as JSON."""
        ...

    def preprocessing(self) -> dict[str, Any]:
        """What is done to an image before the network sees it, as JSON."""
        ...

    def weights_sha256(self) -> str | None:
        """Digest of the weights; None while they are not on this machine."""
        ...

    def fetch(self, echo: Callable[[str], object]) -> None:
        """Have the weights on this machine. Raises ``MissingWeights``."""
        ...

    def measure_blocks(self) -> list[Block]:
        """Kind, channels, size and cumulative GFLOP of every block."""
        ...

    def load(self, device: torch.device, dtype: torch.dtype, condition: str, memory_format: str = CONTIGUOUS) -> Backbone:
        """The network on its device, computing in ``dtype``. Raises ``ExtractError``.

        Args:
            device: where to.
            dtype: compute dtype.
            condition: what :meth:`condition` answered.
            memory_format: one of :attr:`memory_formats`.
        """
        ...
