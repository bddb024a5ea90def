from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from diffssl.extract.flops import measure
from diffssl.extract.pooling import Tokens
from torch import Tensor, nn

DEVICES = pytest.mark.parametrize("device", ["meta", "cpu"])


@DEVICES
def test_convolutions_by_hand(device: str) -> None:
    """Two operations a multiply-add, summed from the beginning; what comes after the last block is in the share alone."""

    def steps() -> Iterator[tuple[str, Tensor]]:
        with torch.device(device):
            first, second, head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 2, stride=2), nn.Linear(4, 10)
            x = torch.zeros(1, 3, 16, 16)
        x = first(x)
        yield "Conv", x
        x = second(x)
        yield "Down", x
        head(x.mean(dim=(2, 3)))

    one, two = measure(steps())
    first, second, head = 2 * 9 * 3 * 8 * 256, 2 * 4 * 8 * 4 * 64, 2 * 4 * 10
    assert (one.number, one.kind, one.channels, one.size) == (1, "Conv", 8, 16)
    assert (two.number, two.kind, two.channels, two.size) == (2, "Down", 4, 8)
    assert one.gflop == pytest.approx(first / 1e9, abs=1e-6)
    assert two.gflop == pytest.approx((first + second) / 1e9, abs=1e-6)
    assert two.share == pytest.approx((first + second) / (first + second + head))


@DEVICES
def test_fused_attention_is_counted(device: str) -> None:
    """Scores and their sum over the values: 2 x heads x tokens^2 x width each."""

    def steps() -> Iterator[tuple[str, Tensor]]:
        q = torch.zeros(1, 2, 64, 128, device=device)
        yield "Attn", F.scaled_dot_product_attention(q, q, q)[:, 0].mT.reshape(1, 128, 8, 8)

    (block,) = measure(steps())
    assert block.gflop == pytest.approx(2 * 2 * 2 * 64 * 64 * 128 / 1e9, abs=1e-6)


def test_class_tokens_are_noted() -> None:
    tokens = Tokens(torch.zeros(1, 8, 4, 4), torch.zeros(1, 8))
    blocks = measure(iter([("Embed", torch.ones(1, 3, 8, 8) @ torch.ones(8, 8)), ("Attn", tokens)]))
    assert [block.class_token for block in blocks] == [False, True]
    assert (blocks[1].channels, blocks[1].size) == (8, 4)


@pytest.mark.parametrize("shape", [(1, 8), (1, 8, 4), (1, 8, 4, 2)])
def test_maps_are_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"block 1: an activation is a map \(n, C, H, H\), got"):
        measure(iter([("Conv", torch.zeros(shape))]))
