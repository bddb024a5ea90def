from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffssl.extract.convolution import PackedConvolution, PlainConvolution, can_pack
from torch import Tensor

SHAPES = [(2, 3, 32, 16, 3, 1), (1, 64, 32, 7, 3, 1), (3, 32, 96, 8, 1, 1), (2, 16, 24, 10, 3, 2), (4, 8, 8, 1, 3, 1)]


def made(n: int, channels: int, own: int, size: int, side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, weight and bias."""
    generator = torch.Generator().manual_seed(size)
    shapes = ((n, channels, size, size), (own, channels, side, side), (own,))
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x.contiguous(memory_format=torch.channels_last), weight, bias


@pytest.mark.parametrize(("n", "channels", "own", "size", "side", "stride"), SHAPES)
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_is_torchs_convolution(kind: str, n: int, channels: int, own: int, size: int, side: int, stride: int) -> None:
    x, weight, bias = made(n, channels, own, size, side, torch.float32)
    ours = PlainConvolution(weight, bias, stride) if kind == "plain" else PackedConvolution(weight, bias, (size, size), stride)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride, side // 2)
    found = ours(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    other = ours(x, 2 * bias)
    torch.testing.assert_close(other.double(), expected + bias.double()[:, None, None], rtol=0, atol=1e-4)


def test_other_maps_than_it_was_packed_for() -> None:
    x, weight, bias = made(5, 16, 32, 12, 3, torch.float32)
    packed = PackedConvolution(weight, bias, (64, 64))
    torch.testing.assert_close(packed(x), F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-4)


def test_without_a_bias() -> None:
    x, weight, _ = made(2, 16, 32, 8, 1, torch.float32)
    torch.testing.assert_close(PackedConvolution(weight, None, (8, 8))(x), F.conv2d(x, weight), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_bfloat16(kind: str) -> None:
    x, weight, bias = made(2, 32, 32, 8, 3, torch.bfloat16)
    if kind == "packed" and not can_pack(weight):
        pytest.skip("this processor cannot pack bfloat16 weights")
    ours = PlainConvolution(weight, bias) if kind == "plain" else PackedConvolution(weight, bias, (8, 8))
    found = ours(x)
    expected = F.conv2d(x.float(), weight.float(), bias.float(), padding=1)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.01 * expected.abs().max()


def test_what_can_be_packed() -> None:
    weight = torch.zeros(4, 4, 3, 3)
    assert can_pack(weight) == torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if can_pack(weight.bfloat16()):
        PackedConvolution(weight.bfloat16(), None, (8, 8))
    else:
        with pytest.raises(RuntimeError):
            PackedConvolution(weight.bfloat16(), None, (8, 8))
    assert not can_pack(weight.half())
    assert not can_pack(weight.to("meta"))
