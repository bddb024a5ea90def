"""TF32 on GPUs: off unless asked for, whatever torch's default is, and only while features are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

TF32 = "tf32"  # as a compute dtype: float32 with TF32 allowed


@contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 convolutions and products of matrices, and put back what was set before.

    torch's own default is that products are exact and convolutions are not. Nothing is touched for a device without TF32.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
