"""DifFormer (arXiv 2311.17921): several blocks and timesteps fused by one transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attention import WIDTH, Tokenizer, Transformer


class DifFormer(nn.Module):
    """A tokenizer a block, shared over timesteps; one transformer for all timesteps; a linear layer on their class tokens.

    Args:
        shapes: (C, h, w) of each block's map.
        timesteps: number of timesteps.
        classes: number of outputs K.
        width: of a token.
        depth: number of transformer blocks.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int, int]], timesteps: int, classes: int, width: int = WIDTH, depth: int = 2
    ) -> None:
        super().__init__()
        self.tokenizers = nn.ModuleList(Tokenizer(shape, width, norm=True) for shape in shapes)
        self.transformer = Transformer(width, depth)
        self.output = nn.Linear(timesteps * width, classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (n, C, h, w), all blocks of the first timestep, then of the next, to (n, K)."""
        blocks = len(self.tokenizers)
        steps = [maps[start : start + blocks] for start in range(0, len(maps), blocks)]
        tokens = [
            torch.cat([tokenizer(values) for tokenizer, values in zip(self.tokenizers, step, strict=True)], dim=1)
            for step in steps
        ]
        # The timesteps share the transformer, so they pass through it as one batch.
        vectors = self.transformer(torch.cat(tokens)).view(len(steps), -1, self.transformer.cls.shape[-1])
        logits: Tensor = self.output(vectors.transpose(0, 1).flatten(1))
        return logits
