"""A small convolutional head. The papers report heads of 2.5 to 66 million parameters, not their layers: these are ours."""

from __future__ import annotations

from torch import Tensor, nn

SMALLEST_MAP = 4
_GROUPS = 8


class ConvHead(nn.Module):
    """Two 3x3 convolutions, the second with stride 2, each with group norm and ReLU; the mean over places; a linear layer.

    Args:
        shape: (C, h, w) of the map.
        classes: number of outputs K.
        width: channels of both convolutions, a multiple of 8.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, width),
            nn.ReLU(),
        )
        self.output = nn.Linear(width, classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """One map (n, C, h, w) to (n, K)."""
        (values,) = maps
        logits: Tensor = self.output(self.layers(values).mean(dim=(2, 3)))
        return logits
