"""Gaussian noise that is a pure function of (seed, sample, timestep, draw, crop).

Scheme 1, fixed by golden values in the tests: the 128-bit key of a Philox-4x64 generator is the blake2b digest of the
arguments; its raw 64-bit words, taken in pairs, become pairs of normals by Box-Muller in float64, cast to float32.
So the noise of an image does not depend on the subset, the order, the batch size, the worker or the device, nor on how
numpy's own distributions are implemented.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SCHEME = 1


def noise_for(
    seed: int, sample_id: str, timestep: int, shape: Sequence[int], draw: int = 0, crop: int = 0
) -> NDArray[np.float32]:
    """Standard normal noise of one sample at one timestep.

    Args:
        seed: of the store.
        sample_id: as in the store's ``rows/id``.
        timestep: 0-based diffusion timestep; every timestep has noise of its own, as in the papers' code.
        shape: of the noised sample, such as (3, 256, 256).
        draw: number of the noise draw.
        crop: number of the crop.

    Returns:
        float32 array of the given shape.
    """
    message = json.dumps([SCHEME, int(seed), sample_id, int(timestep), int(draw), int(crop)], ensure_ascii=False).encode()
    key = int.from_bytes(blake2b(message, digest_size=16, person=b"diffssl-noise").digest(), "little")
    size = math.prod(shape)
    pairs = -(-size // 2)
    words = np.random.Philox(key=key).random_raw(2 * pairs) >> np.uint64(11)
    uniform = words.astype(np.float64)
    # The first half in (0, 1], so that its logarithm is finite; the second half is an angle in [0, 2 pi).
    radius = np.sqrt(-2.0 * np.log((uniform[:pairs] + 1.0) * 2.0**-53))
    angle = uniform[pairs:] * (2.0 * math.pi * 2.0**-53)
    normals = np.empty(2 * pairs, dtype=np.float32)
    normals[:pairs] = radius * np.cos(angle)
    normals[pairs:] = radius * np.sin(angle)
    return normals[:size].reshape(tuple(shape))
