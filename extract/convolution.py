"""Convolutions of channels-last maps whose weights are laid out once, not at every call."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainConvolution(nn.Module):
    """torch's own, with weights in the compute dtype and in channels-last order: right on every device.

    Args:
        weight: (K, C, k, k).
        bias: (K,), or None.
        stride: of the windows; the padding is that of an odd k, which keeps the size where the stride is 1.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int = 1) -> None:
        super().__init__()
        self._stride, self._padding = stride, weight.shape[-1] // 2
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._bias = bias

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(n, C, H, W) -> (n, K, H', W'); another bias may stand in for its own."""
        return F.conv2d(x, self._weight, self._bias if bias is None else bias, self._stride, self._padding)


class PackedConvolution(nn.Module):
    """oneDNN's, with weights in the blocked order that its kernel wants.

    torch makes that order anew in every call. At a batch of one and small maps, where weights are larger than
    activations, that is up to three quarters of a call's time.

    Args:
        weight: (K, C, k, k) on a CPU, float32 or bfloat16.
        bias: (K,), or None.
        shape: (H, W) of the maps to come: what the order is best for. Others give the same values.
        stride: see :class:`PlainConvolution`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, shape: tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        pad = weight.shape[-1] // 2
        self._how: tuple[list[int], list[int], list[int], int] = ([pad, pad], [stride, stride], [1, 1], 1)
        # The operators that torch.compile emits for frozen weights.
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.contiguous(), *self._how, [1, weight.shape[1], *shape]
        )
        self._bias = bias

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(n, C, H, W) channels-last -> (n, K, H', W') channels-last; another bias may stand in for its own."""
        bias = self._bias if bias is None else bias
        found: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self._weight, bias, *self._how, "none", [], "")
        return found


def can_pack(weight: Tensor) -> bool:
    """Whether :class:`PackedConvolution` takes these weights here."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _packs_bfloat16())


@cache
def _packs_bfloat16() -> bool:
    """Whether this processor does: oneDNN says so of some for which torch's operator then refuses to."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    with suppress(RuntimeError):
        PackedConvolution(torch.zeros(8, 8, 3, 3, dtype=torch.bfloat16), None, (8, 8))
        return True
    return False
