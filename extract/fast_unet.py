"""The blocks of a guided_diffusion U-Net for inference: the same functions of the same weights, made faster.

Maps are channels-last throughout, and weights are laid out once. As all samples of a batch have one timestep and one
condition, the embedding is one row, and its scale and shift are folded into the weights of the normalisation. Which
layers there are is read from guided_diffusion's modules by their class names, so that this file does not import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import PackedConvolution, PlainConvolution, can_pack
from .winograd import WinogradConvolution

_GROUPS, _EPSILON = 32, 1e-5  # of guided_diffusion's normalisation
_WINOGRAD_CHANNELS = 128
_WINOGRAD_SIZE = 16


class FastBlock(nn.Module):
    """A block that takes (h, emb) as guided_diffusion's does, with ``h`` channels-last and one row of ``emb``.

    Weights are laid out when it runs for the first time: those of blocks behind the deepest never are.

    Args:
        block: of a U-Net on its device, with float32 weights; let go of when it has been replaced.
        dtype: of maps and of the weights of convolutions; normalisation and embeddings stay in float32.
    """

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._block: nn.Module | None = block
        self._dtype = dtype
        self._layers = nn.ModuleList()

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """(n, C, H, H) and (1, E) float32 -> (n, K, H', H')."""
        if self._block is not None:
            self._layers.extend(_layers(self._block, h.shape[-1], self._dtype))
            self._block = None
        for layer in self._layers:
            h = layer(h, emb) if isinstance(layer, _Residual) else layer(h)
        return h


def _layers(block: Any, size: int, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The layers of a block that is given maps of a side."""
    for layer in block:
        kind = type(layer).__name__
        if kind == "ResBlock":
            kind = type(layer.h_upd).__name__
            size = _resized(size, kind)
            yield _Residual(layer, kind, size, dtype)
        elif kind == "AttentionBlock":
            yield _Attention(layer, size, dtype)
        elif kind == "Conv2d":
            yield _convolution(layer, size, dtype)
        else:  # Upsample or Downsample
            size = _resized(size, kind)
            yield _Resize(layer, kind, size, dtype)


def _resized(size: int, kind: str) -> int:
    return {"Upsample": size * 2, "Downsample": size // 2, "Identity": size}[kind]


def _convolution(layer: Any, size: int, dtype: torch.dtype) -> nn.Module:
    """The fastest way here of a convolution that makes maps of a side."""
    weight, bias, stride = layer.weight.to(dtype), layer.bias.to(dtype), layer.stride[0]
    if weight.ndim == 3:  # in one dimension, over the places of a map
        weight = weight[..., None]
    if not can_pack(weight):
        return PlainConvolution(weight, bias, stride)
    large = weight.shape[-1] == 3 and stride == 1 and size % 2 == 0 and size >= _WINOGRAD_SIZE
    if large and min(weight.shape[:2]) >= _WINOGRAD_CHANNELS and dtype == torch.float32:
        return WinogradConvolution(weight, bias, size)
    return PackedConvolution(weight, bias, (size * stride, size * stride), stride)


def _resize(x: Tensor, kind: str) -> Tensor:
    if kind == "Upsample":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if kind == "Downsample" else x


def _normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Group normalisation in float32.

    On a CPU, torch's own reads channels-last maps of less than 32x32 group by group, which is slow where a group has few
    channels: 20 times slower than these sums with 32 channels and 16x16.
    """
    x = x.float()
    n, channels, height, width = x.shape
    if x.device.type != "cpu" or channels >= 8 * _GROUPS or height * width >= 1024:
        return F.group_norm(x, _GROUPS, weight, bias, _EPSILON)
    places = x.permute(0, 2, 3, 1).reshape(n, -1, channels)
    mean = places.mean(1).view(n, _GROUPS, -1).mean(2)
    square = places.square().mean(1).view(n, _GROUPS, -1).mean(2)
    deviation = (square - mean.square()).clamp_(min=0).add_(_EPSILON).rsqrt_()
    scale = deviation.repeat_interleave(channels // _GROUPS, 1) * weight
    shift = bias - mean.repeat_interleave(channels // _GROUPS, 1) * scale
    return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


class _Resize(nn.Module):
    """A layer that halves or doubles the side, as a convolution or with one behind it where it has one."""

    def __init__(self, layer: Any, kind: str, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._kind = kind if kind == "Upsample" or not layer.use_conv else "Identity"
        own = (layer.conv if kind == "Upsample" else layer.op) if layer.use_conv else None
        self._convolution = nn.Identity() if own is None else _convolution(own, size, dtype)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self._convolution(_resize(x, self._kind))
        return found


class _Residual(nn.Module):
    def __init__(self, layer: Any, kind: str, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._kind = kind
        self._dtype = dtype
        self._scale_shift = layer.use_scale_shift_norm
        self._norm_in, self._conv_in = layer.in_layers[0], _convolution(layer.in_layers[2], size, dtype)
        self._embed = layer.emb_layers
        self._norm_out, self._conv_out = layer.out_layers[0], _convolution(layer.out_layers[3], size, dtype)
        skip = layer.skip_connection
        self._skip = skip if isinstance(skip, nn.Identity) else _convolution(skip, size, dtype)
        self._bias = layer.in_layers[2].bias

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = _resize(self._activate(x, self._norm_in.weight, self._norm_in.bias), self._kind)
        embedded = self._embed(emb)[0]
        weight, bias = self._norm_out.weight, self._norm_out.bias
        if self._scale_shift:
            scale, shift = embedded.chunk(2)
            h = self._conv_in(h)
            weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
        else:
            h = self._conv_in(h, (self._bias + embedded).to(self._dtype))
        found: Tensor = self._conv_out(self._activate(h, weight, bias))
        return found.add_(self._skip(_resize(x, self._kind)))

    def _activate(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(_normalise(x, weight, bias), inplace=True).to(self._dtype)


class _Attention(nn.Module):
    def __init__(self, layer: Any, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._heads = layer.num_heads
        self._heads_first = type(layer.attention).__name__ == "QKVAttentionLegacy"
        self._norm = layer.norm
        self._qkv, self._out = _convolution(layer.qkv, size, dtype), _convolution(layer.proj_out, size, dtype)
        self._dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        normal = _normalise(x, self._norm.weight, self._norm.bias).to(self._dtype)
        qkv = self._qkv(normal).permute(0, 2, 3, 1)
        # (n, places, heads, 3, channels of a head), or 3 before the heads, which is where they differ.
        split = (self._heads, 3) if self._heads_first else (3, self._heads)
        qkv = qkv.reshape(n, height * width, *split, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3 if self._heads_first else 2))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        found: Tensor = self._out(seen.reshape(n, height, width, channels).permute(0, 3, 1, 2))
        return found.add_(x)
