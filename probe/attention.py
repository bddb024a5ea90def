"""Heads of attention over the tokens of a pooled map: the learned pooling of both papers.

Sizes and details are those of the papers' code (``attention_head.py``, ``attention_fusion.py``): pre-norm blocks, GELU, no
bias in the projection to queries, keys and values, no positional embedding, no final norm, a class token that starts at zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ProbeError

WIDTH = 1024
HEADS = 8
RATIO = 4


class Tokenizer(nn.Module):
    """A map as tokens: optionally a layer norm over the whole map, then a 1x1 convolution to the width.

    Args:
        shape: (C, h, w) of the map.
        width: of a token.
        norm: LayerNorm over (C, h, w) and always the convolution, as arXiv 2311.17921; without, the convolution only where C is
            not the width, as arXiv 2307.08702.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape) if norm else nn.Identity()
        self.project = nn.Conv2d(shape[0], width, 1) if norm or shape[0] != width else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        """(n, C, h, w) to (n, h * w, width)."""
        tokens: Tensor = self.project(self.norm(values)).flatten(2).transpose(1, 2)
        return tokens


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then a perceptron with GELU, each added to its input."""

    def __init__(self, width: int, heads: int, ratio: int = RATIO) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) to the same."""
        n, length, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(n, length, width)
        tokens = tokens + self.proj(mixed)
        changed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return changed


class Transformer(nn.Module):
    """A class token, and transformer blocks: tokens in, the class token's vector out."""

    def __init__(self, width: int, depth: int, heads: int = HEADS) -> None:
        super().__init__()
        if width % heads:
            raise ProbeError(f"--width {width} cannot be divided among {heads} attention heads; take a multiple of {heads}")
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) to (n, width)."""
        whole = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        vector: Tensor = self.blocks(whole)[:, 0]
        return vector


class AttentionHead(nn.Module):
    """Tokens of one map, transformer blocks, a linear layer on the class token (heads of arXiv 2307.08702 and 2311.17921).

    Args:
        shape: (C, h, w) of the map.
        classes: number of outputs K.
        width: of a token.
        depth: number of blocks.
        norm: the tokenizer of arXiv 2311.17921.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: int = WIDTH, depth: int = 2, norm: bool = False
    ) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(shape, width, norm)
        self.transformer = Transformer(width, depth)
        self.output = nn.Linear(width, classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """One map (n, C, h, w) to (n, K)."""
        (values,) = maps
        logits: Tensor = self.output(self.transformer(self.tokenizer(values)))
        return logits


class AttentionPool(nn.Module):
    """One learned query attends to the places of a map; a linear layer on what it finds.

    Keys and values are linear in the map's channels; the softmax over places is the only nonlinearity.

    Args:
        shape: (C, h, w) of the map.
        classes: number of outputs K.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels = shape[0]
        self.heads = HEADS if channels % HEADS == 0 else 1
        self.query = nn.Parameter(torch.zeros(self.heads, 1, channels // self.heads))
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, classes)
        nn.init.normal_(self.query)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """One map (n, C, h, w) to (n, K)."""
        (values,) = maps
        tokens = values.flatten(2).transpose(1, 2)
        n, length, channels = tokens.shape
        split = (n, length, self.heads, channels // self.heads)
        keys, found = (layer(tokens).view(split).transpose(1, 2) for layer in (self.key, self.value))
        pooled = F.scaled_dot_product_attention(self.query.expand(n, -1, -1, -1), keys, found)
        logits: Tensor = self.output(pooled.flatten(1))
        return logits
