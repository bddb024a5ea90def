from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffssl.extract.winograd import WinogradConvolution
from torch import Tensor


def made(n: int, channels: int, own: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, weight and bias."""
    generator = torch.Generator().manual_seed(size)
    shapes = ((n, channels, size, size), (own, channels, 3, 3), (own,))
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x.contiguous(memory_format=torch.channels_last), weight, bias


# One strip; several; the smallest; strips of one row each where a row has more tiles than a strip; no powers of two.
@pytest.mark.parametrize(
    ("n", "channels", "own", "size"),
    [(2, 32, 48, 16), (1, 16, 32, 96), (3, 8, 8, 2), (1, 2, 4, 1100), (2, 24, 40, 44), (1, 300, 130, 14)],
)
def test_is_the_convolution(n: int, channels: int, own: int, size: int) -> None:
    """As exact as torch's own: the error against float64 is no more than 1e-5 of the largest magnitude."""
    x, weight, bias = made(n, channels, own, size)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    ours = WinogradConvolution(weight, bias, size)
    found = ours(x)
    assert found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert torch.equal(found, ours(x)), "a strip must not see what an earlier one left"


def test_another_bias_stands_in() -> None:
    x, weight, bias = made(1, 16, 16, 8)
    other = torch.arange(16.0)
    found = WinogradConvolution(weight, bias, 8)(x, other)
    torch.testing.assert_close(found, F.conv2d(x, weight, other, padding=1), rtol=0, atol=1e-4)


def test_its_input_stays() -> None:
    x, weight, bias = made(2, 16, 16, 8)
    before = x.clone()
    WinogradConvolution(weight, bias, 8)(x)
    assert torch.equal(x, before)
