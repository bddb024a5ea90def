"""3x3 convolutions by Winograd's algorithm: 16 products of matrices for every four outputs where the definition has 36."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .convolution import PackedConvolution

_STRIP = 512  # tiles of a strip: what lies between its steps stays in a core's caches
_KERNEL = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]]


class WinogradConvolution(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1 by minimal filtering F(2x2, 3x3) (Lavin and Gray, arXiv:1509.09308).

    Each 2x2 tile of outputs is A' [(G w G') * (B' d B)] A, where d is the 4x4 tile of inputs around it: sums, and in each
    of the 16 places of a tile a product of matrices over channels. Sums in float32 are as exact as the definition's. It
    works through the images strip by strip, some rows of tiles at once.

    Args:
        weight: (K, C, 3, 3) float32 on a CPU.
        bias: (K,).
        size: side of the maps to come, even.
    """

    def __init__(self, weight: Tensor, bias: Tensor, size: int) -> None:
        super().__init__()
        self._bias = bias
        tiles = size // 2
        self._rows = max(rows for rows in range(1, tiles + 1) if tiles % rows == 0 and (rows == 1 or rows * tiles <= _STRIP))
        kernel = torch.tensor(_KERNEL, dtype=torch.float64)
        places = torch.einsum("ia,kcab,jb->ijkc", kernel, weight.double(), kernel).float().flatten(0, 1)
        shape = (self._rows * tiles, 1)
        self._products = nn.ModuleList(PackedConvolution(place[:, :, None, None], None, shape) for place in places)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(n, C, size, size) channels-last -> (n, K, size, size) channels-last; another bias may stand in for its own."""
        bias = self._bias if bias is None else bias
        n, channels, size, _ = x.shape
        maps = x.permute(0, 2, 3, 1)
        found = x.new_empty(n, size // 2, 2, size // 2, 2, len(bias))
        strip = x.new_zeros(2 * self._rows + 2, size + 2, channels)  # of the input, and one more on each side
        for own, out in zip(maps, found, strict=True):
            for top in range(0, size, 2 * self._rows):
                first, last = max(top - 1, 0), min(top + 2 * self._rows + 1, size)
                strip[0] = strip[-1] = 0
                strip[first - top + 1 : last - top + 1, 1:-1] = own[first:last]
                self._convolve(strip, bias, out[top // 2 : top // 2 + self._rows])
        return found.view(n, size, size, -1).permute(0, 3, 1, 2)

    def _convolve(self, strip: Tensor, bias: Tensor, out: Tensor) -> None:
        """Fill ``out``, (rows, 2, tiles, 2, K), from a strip of (2 rows + 2, 2 tiles + 2, C)."""
        rows, _, tiles, _, _ = out.shape
        channels = strip.shape[-1]
        vertical = strip.new_empty(4, rows, 2 * tiles + 2, channels)
        _sum_inputs([strip[i : i + 2 * rows - 1 : 2] for i in range(4)], vertical)
        values = strip.new_empty(4, 4, rows, tiles, channels)
        _sum_inputs([vertical[:, :, i : i + 2 * tiles - 1 : 2] for i in range(4)], values.movedim(1, 0))
        products: list[list[Tensor]] = [[] for _ in range(4)]
        for place, (product, own) in enumerate(zip(self._products, values.flatten(0, 1), strict=True)):
            # The product in place (1, 1) is a term of all four outputs, and of each with a plus.
            made = product(own.view(1, -1, 1, channels).permute(0, 3, 1, 2), bias if place == 5 else None)
            products[place // 4].append(made.permute(0, 2, 3, 1).view(rows, tiles, -1))
        for column in zip(*products, strict=True):
            _sum_products(column, column[:2])
        for i in range(2):
            _sum_products(products[i], [out[:, i, :, 0], out[:, i, :, 1]])


def _sum_inputs(d: Sequence[Tensor], out: Sequence[Tensor] | Tensor) -> None:
    """B' d along one axis."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _sum_products(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """A' m along one axis; ``m`` is used up."""
    m[0].add_(m[1])
    torch.add(m[0], m[2], out=out[0])
    m[1].sub_(m[2])
    torch.sub(m[1], m[3], out=out[1])
